"""Copies and mirror images are found, and do not lie on both sides of a split."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.scans.phantoms import read_rows, write_rows
from tests.scans.pictures import save
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.duplicates import (
    alike_by_nature,
    alike_pairs,
    check_near_duplicates,
    drop_near_duplicates,
    equal_files,
    group_by_likeness,
    group_patients,
    labels_contradict,
    leaking,
    near_duplicates,
    signatures,
)
from tumorlens.data.datasets.folds import Split
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.prepared import prepare
from tumorlens.data.training.run_folder import describe_run, write_config
from tumorlens.segmentation.config import SegmenterConfig


def samples_of(patients, **fields):
    return [Sample(Path(f"{i}.png"), "glioma", patient=p, **fields) for i, p in enumerate(patients)]


@pytest.fixture(scope="module")
def gliomas():
    """Slices of six patients."""
    return [phantom_slice(seed, "glioma", size=128, pixel_mm=1.8).image for seed in range(6)]


def signatures_of(images):
    preprocess = Preprocess(224)
    return signatures(np.stack([preprocess(image).image for image in images]))


def changed(image, how):
    if how == "mirrored":
        return image[:, ::-1].copy()
    if how == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)
    if how == "framed":
        return np.pad(image[:, ::-1], ((5, 45), (30, 3)))
    return cv2.resize(image, (90, 90), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("how", ["mirrored", "jpeg", "framed", "smaller"])
def test_copies_across_a_split_are_named(gliomas, how):
    images = [*gliomas, changed(gliomas[2], how)]
    samples = samples_of([f"p{i}" for i in range(7)])
    signatures_nd = signatures_of(images)
    with pytest.raises(InputError, match=r"a pair of slices shows .* 2\.png in training and 6\.png in test"):
        check_near_duplicates(samples, Split([0, 1, 2], [3, 4], [5, 6]), signatures_nd)
    check_near_duplicates(samples, Split([0, 1], [3, 4], [5, 6]), signatures_nd)


def test_training_gives_way_to_test(gliomas):
    images = [*gliomas[:5], gliomas[1][:, ::-1].copy()]
    samples = samples_of(["a", "b", "b", "c", "d", "e"])
    clean, gone = drop_near_duplicates(samples, Split([0, 1, 2], [3], [4, 5]), signatures_of(images))
    assert gone == [1, 2]  # the copy, and the other slice of its patient
    assert clean == Split([0], [3], [4, 5])


def test_copies_without_a_patient_become_one_group(gliomas):
    images = [*gliomas[:4], gliomas[0][:, ::-1].copy()]
    grouped = group_by_likeness(samples_of([""] * 5), signatures_of(images))
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


def test_a_test_slice_leaks_by_its_patient_or_as_a_copy(gliomas):
    images = [*gliomas[:4], gliomas[1][:, ::-1].copy(), gliomas[5]]
    samples = samples_of(["a", "b", "c", "a", "e", "f"])
    assert leaking(samples, Split([0, 1], [2], [3, 4, 5]), signatures_of(images)) == [3, 4]


def test_an_official_split_may_keep_its_leaks_and_says_how_many(phantom_set, tmp_path):
    """As papers use it: patient 1 lies in both parts, and one test slice is the mirror image of a training slice."""
    shutil.copytree(phantom_set, tmp_path / "set")
    rows = read_rows(tmp_path / "set" / "index.csv")
    for row in rows:
        row["official_split"] = "test" if row["patient"] == "p0" or row["image"] == "images/1_0.png" else "train"
    image = cv2.imread(str(tmp_path / "set" / rows[-1]["image"]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "set" / "images" / "twin.png"), image[:, ::-1])
    rows.append({**rows[-1], "image": "images/twin.png", "mask": "", "patient": "other", "official_split": "test"})
    index = tmp_path / "set" / "index.csv"
    write_rows(index, rows, ",".join(rows[0]))
    config = DataConfig(data=(str(index),), split="official", duplicates="keep", size=128)
    parts = load_partition(config)
    assert len(parts.train) + len(parts.validation) + len(parts.test) == len(rows)
    assert parts.leaks == 2
    assert "leaks: 2 of the test slices" in str(parts)
    write_config(tmp_path / "run", SegmenterConfig(data=config.data, init="none"))
    card = describe_run(tmp_path / "run", parts, 0, "")
    assert card["leaking_test_slices"] == 2
    few = load_partition(replace(config, patients=0.1))  # patients who are not learned from leak nothing
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
    """BRISC says which figshare slice it shows, often mirrored: nearly all must be recognized, and no others."""
    rows = [row for row in read_rows(real / "brisc" / "index.csv") if row["figshare_image"]][::60]
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


def lgg_slices_of(patients):
    """As an LGG folder has them: each picture with its mask beside it."""
    return [replace(s, mask=Path(f"{s.image.stem}_mask.png"), channel=1) for s in samples_of(patients)]


def test_look_alikes_do_not_count_in_volumes_whose_patients_the_set_names():
    named, other = lgg_slices_of(["a", "b"])
    assert alike_by_nature(named, other)
    (picture,) = samples_of(["c"], channel=1)  # --frame-channel says nothing of volumes
    (unknown,), (cluster,) = lgg_slices_of([""]), lgg_slices_of(["alike-3"])
    (apart,) = samples_of(["d"], mask=Path("masks/0.png"), channel=1)
    bright = replace(named, channel=None)
    for stranger in (picture, unknown, cluster, apart, bright):
        assert not alike_by_nature(named, stranger)
        assert not alike_by_nature(stranger, named)


def test_only_pairs_that_count_stop_or_shrink_a_split(gliomas):
    signatures_nd = signatures_of([gliomas[3], gliomas[3][:, ::-1].copy()])
    split = Split([0], [], [1])
    named = lgg_slices_of(["a", "b"])
    check_near_duplicates(named, split, signatures_nd)
    assert drop_near_duplicates(named, split, signatures_nd) == (split, [])
    gray = samples_of(["a", "b"])
    with pytest.raises(InputError, match=r"a pair of slices shows the same picture across .*; --duplicates"):
        check_near_duplicates(gray, split, signatures_nd)
    assert drop_near_duplicates(gray, split, signatures_nd)[1] == [0]
    # One cluster of unknown patients, made before the split: its name is not from the set.
    clustered = group_by_likeness(lgg_slices_of(["", ""]), signatures_nd)
    with pytest.raises(InputError, match="a pair of slices shows the same picture"):
        check_near_duplicates(clustered, split, signatures_nd)


def test_the_last_slice_with_a_lesion_may_look_like_the_first_without(tmp_path):
    """Neighbors of one patient: no conflict, unless they are one picture."""
    image = phantom_slice(3, "glioma").image
    near = np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    save(tmp_path / "a.png", image)
    save(tmp_path / "b.png", near)
    rows = [
        {"image": "a.png", "label": "glioma", "patient": "p"},
        {"image": "b.png", "label": "no_tumor", "patient": "p"},
    ]
    index, columns = tmp_path / "index.csv", "image,label,patient"
    samples = load_samples(write_rows(index, rows, columns))
    [pair] = alike_pairs(signatures(prepare(samples, Preprocess()).images))
    assert not labels_contradict(*samples, pair)
    assert not check_set(tmp_path).of("label_conflict")
    rows[1]["patient"] = "q"
    assert len(check_set(write_rows(index, rows, columns)).of("label_conflict")) == 1
    rows[1].update(image="a.png", patient="p")
    assert len(check_set(write_rows(index, rows, columns)).of("label_conflict")) == 1


def test_equal_files_are_found_by_content(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"11")):
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in "abcd"]
    assert equal_files([*paths, tmp_path / "a", tmp_path / "gone"]) == [[tmp_path / "a", tmp_path / "c"]]


def test_pairs_in_blocks_are_those_of_the_whole(phantom_set, monkeypatch):
    images = prepare(load_samples(phantom_set)[:12], Preprocess(96)).images
    signatures_nd = signatures(np.concatenate([images, images[:3, :, ::-1]]))
    monkeypatch.setattr("tumorlens.data.datasets.duplicates._BLOCK", 4)
    pairs = alike_pairs(signatures_nd)
    assert {(p.first, p.second) for p in pairs} == {
        (i, j) for i, j, _ in near_duplicates(signatures_nd, signatures_nd) if i < j
    }
    assert {(p.first, p.second): p.mirrored for p in pairs}[(1, 13)]
    groups = group_patients([s.__class__(s.image, s.label) for s in load_samples(phantom_set)[:15]], pairs)
    assert groups[0] == groups[12]
    assert groups[1] == groups[13]
