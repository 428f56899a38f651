"""A division keeps patients and copies whole, keeps the shares, and is read back by training as it was written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scans.lgg import write_lgg_phantoms
from tests.scans.phantoms import read_rows, save_mat, small_slice, write_rows
from tests.scans.pictures import save, save_volume
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.divide import assign_parts, divide, write_index
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.training.partition import load_partition


def many_patients(n=200, seed=0):
    """Slices of patients, 1 to 30 each, whose classes are as unequal as in life."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=(0.1, 0.5, 0.25, 0.15))
    sizes = rng.integers(1, 31, n)
    return [Sample(Path(f"{p}-{k}.png"), str(labels[p]), f"p{p}") for p in range(n) for k in range(sizes[p])]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25)])
def test_shares_hold_in_every_class(shares, seed):
    samples = many_patients(seed=seed)
    parts = assign_parts(samples, shares, seed)
    patients_of = {part: {s.patient for s, p in zip(samples, parts, strict=True) if p == part} for part in set(parts)}
    assert sum(len(patients) for patients in patients_of.values()) == len({s.patient for s in samples})
    for label in CLASSES:
        counts = Counter(p for s, p in zip(samples, parts, strict=True) if s.label == label)
        for part, share in zip(("train", "validation", "test"), shares, strict=True):
            assert abs(counts[part] / counts.total() - share) < 0.05
    for part, share in zip(("train", "validation", "test"), shares, strict=True):
        assert abs(len(patients_of[part]) / 200 - share) < 0.04


def test_another_seed_another_division():
    samples = many_patients()
    first, again, other = (assign_parts(samples, (0.7, 0.15, 0.15), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_no_part_stays_empty():
    samples = [Sample(Path(f"{p}{k}"), "glioma", f"p{p}") for p in range(3) for k in range(10)]
    assert set(assign_parts(samples, (0.7, 0.15, 0.15))) == {"train", "validation", "test"}
    assert set(assign_parts(samples, (0.8, 0.0, 0.2))) == {"train", "test"}
    with pytest.raises(InputError, match="2 patients are too few for train and validation and test"):
        assign_parts(samples[:20], (0.7, 0.15, 0.15))


def test_an_index_that_training_takes(phantom_set, tmp_path):
    index = tmp_path / "index.csv"
    division = divide(phantom_set)
    write_index(division, index)
    rows = read_rows(index)
    assert list(rows[0]) == ["image", "mask", "label", "patient", "split"]
    assert [r["image"] for r in rows] == [r["image"] for r in read_rows(phantom_set / "index.csv")]
    assert [r["mask"] for r in rows] == [r["mask"] for r in read_rows(phantom_set / "index.csv")]
    parts = {part: {r["patient"] for r in rows if r["split"] == part} for part in ("train", "validation", "test")}
    assert (
        not parts["train"] & parts["validation"] | parts["train"] & parts["test"] | parts["validation"] & parts["test"]
    )
    assert {len(p) for p in parts.values()} <= {2, 3, 4, 12, 13, 14}
    run = load_partition(DataConfig(data=(f"{index}@{phantom_set}",), split="official", size=64))
    for name in ("train", "validation", "test"):
        samples = getattr(run, name).samples
        assert {s.patient for s in samples} == parts[name]
        assert {s.label for s in samples} == set(CLASSES)
    assert division.counts()["train"]["slices"] == len(run.train)


def test_unknown_types_and_sequences_stay_in_the_index(tmp_path):
    rows = []
    for i in range(12):
        label, sequence = ("no_tumor", "flair") if i % 2 else ("tumor", "")
        save(tmp_path / f"{i}.png", small_slice(i, "no_tumor" if i % 2 else "glioma").image)
        rows.append({"image": f"{i}.png", "label": label, "patient": f"p{i}", "sequence": sequence})
    index = write_rows(tmp_path / "index.csv", rows, "image,label,patient,sequence")
    division = divide(index, folds=3)
    assert [list(counts) for counts in division.counts().values()] == [["no_tumor", "tumor", "slices", "patients"]] * 3
    write_index(division, tmp_path / "folds.csv")
    again = load_samples(tmp_path / "folds.csv")
    assert [(s.label, s.sequence) for s in again] == [(row["label"], row["sequence"]) for row in rows]
    write_index(division, tmp_path / "folds.csv", overwrite=True)


def test_folds_that_training_takes(phantom_set, tmp_path):
    index = tmp_path / "index.csv"
    write_index(divide(phantom_set, folds=4), index)
    rows = read_rows(index)
    assert {r["fold"] for r in rows} == {"0", "1", "2", "3"}
    assert {r["split"] for r in rows} == {""}
    run = load_partition(DataConfig(data=(f"{index}@{phantom_set}",), fold=3, size=64))
    assert {s.fold for s in run.test.samples} == {3}
    assert {s.fold for s in run.validation.samples} == {0}
    with pytest.raises(InputError, match="no official"):
        load_partition(DataConfig(data=(f"{index}@{phantom_set}",), split="official", size=64))


def test_copies_stay_together_without_patients_and_with(tmp_path):
    """Class folders whose every picture has a mirror image, and an index that gives the mirrors other patients."""
    for i in range(12):
        image = small_slice(i, CLASSES[i % 4]).image
        save(tmp_path / CLASSES[i % 4] / f"{i}a.png", image)
        save(tmp_path / CLASSES[i % 4] / f"{i}b.png", image[:, ::-1].copy())
    index = tmp_path / "index.csv"
    write_index(divide(tmp_path, shares=(0.5, 0.25, 0.25)), index)
    rows = read_rows(index)
    by_picture = {}
    for row in rows:
        by_picture.setdefault(Path(row["image"]).stem[:-1], set()).add((row["patient"], row["split"]))
    assert all(len(places) == 1 for places in by_picture.values())
    load_partition(DataConfig(data=(str(tmp_path),), split="official", size=224))  # the index beside its pictures
    for number, row in enumerate(rows):
        row["patient"] = f"p{number}"
    write_rows(index, rows, ",".join(rows[0]))
    division = divide(tmp_path, shares=(0.5, 0.25, 0.25), seed=4)
    assert division.merged == 12
    write_index(division, index, overwrite=True)
    assert len({r["patient"] for r in read_rows(index)}) == 24
    load_partition(DataConfig(data=(str(tmp_path),), split="official", size=224))


def volumes(folder, n=4):
    rows = ["image,mask,label,patient,every"]
    for i in range(n):
        phantom = phantom_volume(i, "glioma", shape=(48, 60, 14), spacing_mm=(3.9, 3.6, 13))
        save_volume(folder / f"{i}.nii.gz", phantom)
        nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), folder / f"{i}_mask.nii.gz")
        rows.append(f"{i}.nii.gz,{i}_mask.nii.gz,glioma,{'' if i == 1 else f'p{i}'},{2 if i == 2 else ''}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_volumes_round_trip(tmp_path):
    """A row stands for a file: label, mask and `every` come back, and with them the very same slices."""
    source = volumes(tmp_path / "set")
    index = tmp_path / "index.csv"
    write_index(divide(source), index)
    rows = read_rows(index)
    assert [r["every"] for r in rows] == ["1", "1", "2", "1"]
    assert {r["label"] for r in rows} == {"glioma"}
    assert rows[1]["patient"].startswith("1.nii.gz-")
    before, after = load_samples(source), load_samples(f"{index}@{source}")

    def plain(samples):
        return [(s.image, s.slice_index, s.label, s.mask) for s in samples]

    assert plain(before) == plain(after)
    assert {"no_tumor", "glioma"} == {s.label for s in after}
    assert all(len({s.split for s in after if s.image == image}) == 1 for image in {s.image for s in after})


def test_the_planes_of_a_volume_round_trip(tmp_path):
    source, index = volumes(tmp_path / "set"), tmp_path / "index.csv"
    head, *rows = (source / "index.csv").read_text().splitlines()
    cuts = [f"{row},{cut}" for row in rows for cut in ("", "coronal")]
    (source / "index.csv").write_text("\n".join([f"{head},cut", *cuts]))
    write_index(divide(source), index)
    assert [row["cut"] for row in read_rows(index)] == ["", "coronal"] * 4
    before, after = load_samples(source), load_samples(f"{index}@{source}")
    assert [(s.image, s.place, s.label) for s in before] == [(s.image, s.place, s.label) for s in after]
    write_index(divide(source), index, overwrite=True)  # it is known as ours


def rows_of_one_image(folder, rows):
    """Four patients with a picture each, and an index whose first picture stands in several rows."""
    for i in range(4):
        save(folder / f"{i}.png", np.stack([small_slice(10 * i + c, "glioma").image for c in range(3)], axis=-1))
        save(folder / f"{i}_a.png", small_slice(i, "glioma").mask)
        save(folder / f"{i}_b.png", small_slice(i + 50, "glioma").mask)
    more = [f"{i}.png,{i}_a.png,glioma,p{i},1" for i in range(1, 4)]
    (folder / "index.csv").write_text("\n".join(["image,mask,label,patient,channel", *rows, *more]) + "\n")
    return folder


def test_all_rows_of_an_image_are_kept(tmp_path):
    """Two masks and two channels of a picture are not the same twice; a row that is, is written once."""
    first = [f"0.png,0_{m}.png,glioma,{p},{c}" for m, p, c in (("a", "", 1), ("b", "", 1), ("a", "", 2), ("a", "", 1))]
    source, index = rows_of_one_image(tmp_path / "set", first), tmp_path / "index.csv"
    division = divide(source)
    write_index(division, index)
    rows = [row for row in read_rows(index) if row["image"] == "0.png"]
    assert [(row["mask"], row["channel"]) for row in rows] == [("0_a.png", "1"), ("0_b.png", "1"), ("0_a.png", "2")]
    assert len({(row["patient"], row["split"]) for row in rows}) == 1
    before, after = load_samples(source), load_samples(f"{index}@{source}")
    assert {(s.image, s.mask, s.channel) for s in before} == {(s.image, s.mask, s.channel) for s in after}
    assert len(check_set(source).of("repeated_row")) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0.png,,meningioma,p0,1", "0.png has the label glioma in line 2 of the index and meningioma in line 3"),
        ("0.png,,glioma,p9,1", "0.png has the patient p0 in line 2 of the index and p9 in line 3"),
    ],
)
def test_rows_of_an_image_that_contradict_each_other_are_named(tmp_path, row, reason):
    with pytest.raises(InputError, match=reason):
        divide(rows_of_one_image(tmp_path, ["0.png,0_a.png,glioma,p0,1", row]))


def test_groups_of_two_sets_are_not_one_patient(tmp_path):
    """Each set is divided by itself; then both train one network."""
    sources = []
    for number in range(2):
        folder = tmp_path / f"set{number}"
        for i in range(6):
            image = small_slice(100 * number + i, CLASSES[i % 2]).image
            save(folder / CLASSES[i % 2] / f"{i}.png", image)
            save(folder / CLASSES[i % 2] / f"{i}b.png", image[:, ::-1].copy())
        save_volume(folder / "no_tumor" / "v.nii.gz", phantom_volume(number, "no_tumor", (48, 60, 8), (3.9, 3.6, 22)))
        write_index(divide(folder, seed=number), tmp_path / f"{number}.csv")
        sources.append(f"{tmp_path / f'{number}.csv'}@{folder}")
    patients = [{row["patient"] for row in read_rows(tmp_path / f"{number}.csv")} for number in range(2)]
    assert [len(names) for names in patients] == [7, 7]
    assert not patients[0] & patients[1]
    assert not [name for names in patients for name in names if str(tmp_path) in name]
    run = load_partition(DataConfig(tuple(sources), split="official", duplicates="drop", size=64))
    assert len(run.train) > 0


def test_a_group_of_look_alikes_is_not_a_patient_of_a_divided_set(tmp_path):
    for name in ("divided", "plain"):
        for i in range(4):
            save(tmp_path / name / "glioma" / f"{i}.png", small_slice(i + 50 * (name == "plain"), "glioma").image)
    rows = [f"glioma/{i}.png,glioma,alike-{i + 4}" for i in range(4)]
    (tmp_path / "divided" / "index.csv").write_text("\n".join(["image,label,patient", *rows]))
    run = load_partition(DataConfig((str(tmp_path / "divided"), str(tmp_path / "plain")), split="all", size=64))
    assert len({s.patient for s in run.train.samples}) == 8


def test_matlab_files_bring_their_patients(tmp_path):
    for i in range(6):
        save_mat(tmp_path / f"{i}.mat", small_slice(i, "glioma"), 2, f"p{i // 2}")
    index = tmp_path / "index.csv"
    write_index(divide(tmp_path), index)
    assert [r["patient"] for r in read_rows(index)] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [s.label for s in load_samples(tmp_path)] == ["glioma"] * 6


def test_a_folder_per_patient(tmp_path):
    write_lgg_phantoms(tmp_path / "set", patients=4, slices=5)
    before = load_samples(tmp_path / "set")
    write_index(divide(tmp_path / "set"), tmp_path / "index.csv")
    after = load_samples(f"{tmp_path / 'index.csv'}@{tmp_path / 'set'}")
    assert [replace(s, split="") for s in after] == before
    run = DataConfig(data=(f"{tmp_path / 'index.csv'}@{tmp_path / 'set'}",), split="official")
    assert len(load_partition(run).test.samples) == 5


@pytest.mark.parametrize(
    ("shares", "reason"),
    [((0.7, 0.2, 0.2), "sum to 1.1, not to 1"), ((0.7, 0.3, 0.0), "test need more"), ((1.2, -0.4, 0.2), "at least 0")],
)
def test_shares_that_make_no_sense(phantom_set, shares, reason):
    with pytest.raises(InputError, match=reason):
        divide(phantom_set, shares=shares)


def test_shares_in_percent(phantom_set):
    assert divide(phantom_set, shares=(60, 20, 20)).counts() == divide(phantom_set, shares=(0.6, 0.2, 0.2)).counts()


def test_sets_that_cannot_be_divided(tmp_path):
    save(tmp_path / "one" / "glioma" / "1.png", small_slice(1).image)
    with pytest.raises(InputError, match="patients are too few"):
        divide(tmp_path / "one")
    with pytest.raises(InputError, match="1 patients are too few for 3 folds"):
        divide(tmp_path / "one", folds=3)
    with pytest.raises(InputError, match="2 folds are too few"):
        divide(tmp_path / "one", folds=2)
    (tmp_path / "one" / "glioma" / "2.png").write_text("no picture")
    with pytest.raises(InputError, match=r"2\.png.*tumorlens data check"):
        divide(tmp_path / "one")
    write_rows(tmp_path / "two.csv", [{"image": "one/glioma/1.png", "mask": "", "label": ""}], "image,mask,label")
    with pytest.raises(InputError, match="none of the 1 slices has a label or a mask"):
        divide(tmp_path / "two.csv")


def test_slices_of_which_nothing_is_known_are_left_out(tmp_path):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", small_slice(number).image)
        if number:
            save(tmp_path / "masks" / f"{number}.png", small_slice(number).mask)
    division = divide(tmp_path)
    assert division.left_out == 1
    write_index(division, tmp_path / "index.csv")
    assert {s.image.stem for s in load_samples(tmp_path / "index.csv")} == {"1", "2", "3"}


def test_files_of_others_are_left_alone(phantom_set, tmp_path):
    division = divide(phantom_set)
    foreign = tmp_path / "mine.csv"
    foreign.write_text("image,label,plane\n")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"tumorlens did not write this file .*columns image,mask,label"):
            write_index(division, foreign, overwrite)
    assert foreign.read_text() == "image,label,plane\n"
    write_index(division, tmp_path / "index.csv")
    with pytest.raises(InputError, match="give --overwrite"):
        write_index(division, tmp_path / "index.csv")
    write_index(division, tmp_path / "index.csv", overwrite=True)
    with pytest.raises(InputError, match="this is a folder"):
        write_index(division, tmp_path)
