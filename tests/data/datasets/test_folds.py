"""Nothing on both sides of a split: not a patient, not a copy, not a mirror image."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.duplicates import (
    alike_by_nature,
    check_near_duplicates,
    drop_near_duplicates,
    group_by_likeness,
    leaking,
    near_duplicates,
    signatures,
)
from tumorlens.data.datasets.folds import (
    Split,
    check_patients,
    make_folds,
    share_of_patients,
    split_by_fold,
    split_official,
)
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.prepared import prepare
from tumorlens.data.training.run_folder import describe_run, write_config
from tumorlens.segmentation.config import SegmenterConfig


def samples_of(patients, **fields):
    return [Sample(Path(f"{i}.png"), "glioma", patient=p, **fields) for i, p in enumerate(patients)]


def prepared(images):
    preprocess = Preprocess(224)
    return signatures(np.stack([preprocess(image).image for image in images]))


def test_folds_keep_patients_together_and_labels_balanced():
    rng = np.random.default_rng(0)
    samples = []
    for patient in range(60):
        label = ("no_tumor", "glioma", "meningioma")[patient % 3]
        samples += [Sample(Path(f"{patient}-{k}"), label, f"p{patient}") for k in range(int(rng.integers(1, 9)))]
    folds = make_folds(samples, seed=3)
    assert folds == make_folds(samples, seed=3)
    for patient in {s.patient for s in samples}:
        assert len({f for s, f in zip(samples, folds, strict=True) if s.patient == patient}) == 1
    for label in ("no_tumor", "glioma", "meningioma"):
        counts = np.bincount([f for s, f in zip(samples, folds, strict=True) if s.label == label], minlength=5)
        assert counts.min() > 0.5 * counts.mean()


def test_too_few_patients():
    with pytest.raises(InputError, match="3 patients are too few for 5 folds"):
        make_folds(samples_of(["a", "b", "c", "a"]))


def test_too_few_slices_of_every_class():
    samples = [Sample(Path(f"{i}.png"), CLASSES[i % 4], patient=str(i)) for i in range(16)]
    with pytest.raises(InputError, match="16 slices are too few: 5 folds need 5 of a class"):
        make_folds(samples)


def test_a_seed_that_is_none_is_told_as_such():
    with pytest.raises(InputError, match=r"^seed 4294967296 is not a number from 0 to 4294967295$"):
        make_folds(samples_of([f"p{i}" for i in range(20)]), seed=2**32)


def test_split_uses_the_next_fold_for_validation():
    samples = [Sample(Path(f"{i}"), "glioma", f"p{i}", fold=i % 5) for i in range(20)]
    split = split_by_fold(samples, 4)
    assert {samples[i].fold for i in split.test} == {4}
    assert {samples[i].fold for i in split.validation} == {0}
    assert {samples[i].fold for i in split.train} == {1, 2, 3}
    with pytest.raises(InputError, match="fold 5 does not exist"):
        split_by_fold(samples, 5)


def test_a_share_of_the_patients_is_one_of_each_class_and_grows():
    samples = [
        Sample(Path(f"{label}{patient}-{k}"), label, f"{label}{patient}")
        for label, patients in (("no_tumor", 4), ("glioma", 20), ("meningioma", 3))
        for patient in range(patients)
        for k in range(2)
    ]
    samples.append(Sample(Path("a tumor-free slice"), "no_tumor", "glioma7"))
    whole = list(range(len(samples)))
    assert share_of_patients(samples, whole, 1.0) == whole
    kept = {share: share_of_patients(samples, whole, share) for share in (0.05, 0.25, 0.5)}
    assert set(kept[0.05]) < set(kept[0.25]) < set(kept[0.5]) < set(whole)
    for share, members in kept.items():
        patients = {samples[i].patient for i in members}
        assert members == [i for i in whole if samples[i].patient in patients]  # all slices of each, in order
        counts = [sum(p.startswith(label) for p in patients) for label in ("no_tumor", "glioma", "meningioma")]
        assert counts == [max(1, round(share * n)) for n in (4, 20, 3)]


def test_a_patient_on_both_sides_is_named():
    samples = samples_of(["a", "b", "a"])
    with pytest.raises(InputError, match=r"patient a is in training \(0\.png\) and in test \(2\.png\)"):
        check_patients(samples, Split([0, 1], [], [2]))


def test_an_overlap_in_a_given_fold_column_raises():
    samples = [Sample(Path(f"{i}"), "glioma", "one" if i < 2 else f"p{i}", fold=i % 5) for i in range(10)]
    with pytest.raises(InputError, match="patient one"):
        split_by_fold(samples, 0)


def test_official_split():
    samples = [Sample(Path(f"{i}"), "glioma", f"p{i}", split="test" if i > 14 else "train") for i in range(20)]
    split, gone = split_official(samples)
    assert gone == []
    assert split.test == [15, 16, 17, 18, 19]
    assert len(split.validation) == 3
    with pytest.raises(InputError, match="no official"):
        split_official(samples[:10])


def test_patients_in_two_official_parts_give_way_where_duplicates_are_dropped():
    parts = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    patients = ["a", "b", "c", "d", "e", "a", "f", "b", "g", "h", "c", "g"]
    samples = [Sample(Path(f"{i}"), "glioma", p, split=s) for i, (p, s) in enumerate(zip(patients, parts, strict=True))]
    with pytest.raises(InputError, match="patient"):
        split_official(samples)
    split, gone = split_official(samples, drop=True)
    assert split == Split([0, 3, 4, 5], [6, 7], [9, 10, 11])  # c is tested, b validated, g tested
    assert gone == [1, 2, 8]


def changed(image, how):
    if how == "mirrored":
        return image[:, ::-1].copy()
    if how == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)
    if how == "framed":
        return np.pad(image[:, ::-1], ((10, 90), (60, 5)))
    return cv2.resize(image, (180, 180), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("how", ["mirrored", "jpeg", "framed", "smaller"])
def test_copies_across_a_split_are_named(how):
    images = [phantom_slice(s, "glioma").image for s in range(6)]
    images.append(changed(images[2], how))
    samples = samples_of([f"p{i}" for i in range(7)])
    marks = prepared(images)
    with pytest.raises(InputError, match=r"1 near-duplicates .* 2\.png in training and 6\.png in test"):
        check_near_duplicates(samples, Split([0, 1, 2], [3, 4], [5, 6]), marks)
    check_near_duplicates(samples, Split([0, 1], [3, 4], [5, 6]), marks)


def test_training_gives_way_to_test():
    images = [phantom_slice(s, "glioma").image for s in range(5)]
    images.append(images[1][:, ::-1].copy())
    samples = samples_of(["a", "b", "b", "c", "d", "e"])
    clean, gone = drop_near_duplicates(samples, Split([0, 1, 2], [3], [4, 5]), prepared(images))
    assert gone == [1, 2]  # the copy, and the other slice of its patient
    assert clean == Split([0], [3], [4, 5])


def test_copies_without_a_patient_become_one_group():
    images = [phantom_slice(s, "glioma").image for s in range(4)]
    images.append(images[0][:, ::-1].copy())
    grouped = group_by_likeness(samples_of([""] * 5), prepared(images))
    assert grouped[0].patient == grouped[4].patient
    assert len({s.patient for s in grouped}) == 4


def test_partition_refuses_or_drops(phantom_set, tmp_path):
    """A data set whose fold column hides a mirror image under another patient's name."""
    shutil.copytree(phantom_set, tmp_path / "set")
    index, name = tmp_path / "set" / "index.csv", "twin.png"
    image = cv2.imread(str(phantom_set / "images" / "1_0.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "set" / "images" / name), image[:, ::-1])
    with index.open("a") as file:
        file.write(f"images/{name},,glioma,someone-else,3\n")
    config = DataConfig(data=(str(index),), fold=0, size=64)
    with pytest.raises(InputError, match=r"twin\.png in training and .*1_0\.png in test"):
        load_partition(config)
    parts = load_partition(DataConfig(data=(str(index),), fold=0, size=64, duplicates="drop"))
    assert [s.patient for s in parts.dropped] == ["someone-else"]


def test_a_test_slice_leaks_by_its_patient_or_as_a_copy():
    images = [phantom_slice(s, "glioma").image for s in range(6)]
    images[4] = images[1][:, ::-1].copy()
    samples = samples_of(["a", "b", "c", "a", "e", "f"])
    assert leaking(samples, Split([0, 1], [2], [3, 4, 5]), prepared(images)) == [3, 4]


def test_an_official_split_may_keep_its_leaks_and_says_how_many(phantom_set, tmp_path):
    """As papers use it: patient 1 lies in both parts, and one test slice is the mirror image of a training slice."""
    shutil.copytree(phantom_set, tmp_path / "set")
    rows = list(csv.DictReader((tmp_path / "set" / "index.csv").open()))
    for row in rows:
        row["official_split"] = "test" if row["patient"] == "p0" or row["image"] == "images/1_0.png" else "train"
    image = cv2.imread(str(tmp_path / "set" / rows[-1]["image"]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "set" / "images" / "twin.png"), image[:, ::-1])
    rows.append({**rows[-1], "image": "images/twin.png", "mask": "", "patient": "other", "official_split": "test"})
    index = tmp_path / "set" / "index.csv"
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = DataConfig(data=(str(index),), split="official", duplicates="keep", size=128)
    parts = load_partition(config)
    assert len(parts.train) + len(parts.validation) + len(parts.test) == len(rows)
    assert parts.leaks == 2
    assert "leaks: 2 of the test slices" in str(parts)
    write_config(tmp_path / "run", SegmenterConfig(data=config.data, init="none"))
    card = describe_run(tmp_path / "run", parts, 0, "")
    assert card["leaking_test_slices"] == 2
    few = load_partition(replace(config, patients=0.1))  # patients who are not learnt from leak nothing
    assert few.leaks is not None and few.leaks < 2
    assert config.tested == "official test part" and replace(config, split="folds", fold=2).tested == "test fold 2"
    with pytest.raises(InputError, match="patient"):
        load_partition(replace(config, duplicates="error"))
    clean = load_partition(replace(config, duplicates="drop"))
    assert clean.leaks is None
    assert "leaks" not in str(clean)
    with pytest.raises(InputError, match="official split only"):
        load_partition(replace(config, split="folds"))


@pytest.mark.real
def test_known_copies_between_the_real_sets_are_found(real):
    """BRISC says which figshare slice it shows, often mirrored: nearly all must be recognised, and no others."""
    with (real / "brisc" / "index.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["figshare_image"]][::60]
    brisc = {s.image.name: s for s in load_samples(real / "brisc")}
    figshare = {s.image.name: s for s in load_samples(real / "figshare")}
    left = [brisc[r["image"].split("/")[-1]] for r in rows]
    right = [
        figshare[r["figshare_image"].split("/")[-1]] for r in rows if r["figshare_image"].split("/")[-1] in figshare
    ]
    preprocess = Preprocess(224)
    pairs = near_duplicates(signatures(prepare(left, preprocess).images), signatures(prepare(right, preprocess).images))
    assert len({i for i, _, _ in pairs}) >= 0.97 * len(left)
    strangers = [(i, j) for i, j, _ in pairs if left[i].patient != right[j].patient]
    assert not strangers


def slices_of(patients):
    """As an LGG folder has them: each picture with its mask beside it."""
    return [replace(s, mask=Path(f"{s.image.stem}_mask.png"), channel=1) for s in samples_of(patients)]


def test_look_alikes_count_unless_they_are_slices_of_volumes_whose_patients_the_set_tells():
    told, other = slices_of(["a", "b"])
    assert alike_by_nature(told, other)
    (picture,) = samples_of(["c"], channel=1)  # --frame-channel says nothing of volumes
    (unknown,), (cluster,) = slices_of([""]), slices_of(["alike-3"])
    (apart,) = samples_of(["d"], mask=Path("masks/0.png"), channel=1)
    bright = replace(told, channel=None)
    for stranger in (picture, unknown, cluster, apart, bright):
        assert not alike_by_nature(told, stranger)
        assert not alike_by_nature(stranger, told)


def test_only_pairs_that_count_stop_or_shrink_a_split():
    image = phantom_slice(3, "glioma").image
    marks = prepared([image, image[:, ::-1].copy()])
    split = Split([0], [], [1])
    told = slices_of(["a", "b"])
    check_near_duplicates(told, split, marks)
    assert drop_near_duplicates(told, split, marks) == (split, [])
    grey = samples_of(["a", "b"])
    with pytest.raises(InputError, match="1 near-duplicates across the split"):
        check_near_duplicates(grey, split, marks)
    assert drop_near_duplicates(grey, split, marks)[1] == [0]
    # One cluster of unknown patients, made before the split: its name is no word of the set.
    clustered = group_by_likeness(slices_of(["", ""]), marks)
    with pytest.raises(InputError, match="near-duplicates across the split"):
        check_near_duplicates(clustered, split, marks)


def test_folds_that_are_missing_are_told():
    some = [Sample(Path(f"{i}.png"), "glioma", f"p{i}", fold=None if i == 3 else i % 5) for i in range(10)]
    with pytest.raises(InputError, match="1 of 10 slices have no fold; give one to all or to none"):
        split_by_fold(some, 0)
    gap = [Sample(Path(f"{i}.png"), "glioma", f"p{i}", fold=(0, 2, 3)[i % 3]) for i in range(9)]
    with pytest.raises(InputError, match="folds up to 3, but none is 1"):
        split_by_fold(gap, 0)
