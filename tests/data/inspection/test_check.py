"""What a check must find in a data set, and what it must not."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.scans.lgg import write_lgg_phantoms
from tests.scans.phantoms import read_rows, save_mat, small_slice, write_rows
from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.findings import NOTES, PROBLEMS, CheckReport, Finding
from tumorlens.data.phantom import phantom_slice, phantom_volume


def index_of(folder, rows, columns="image,mask,label,patient,fold,split"):
    write_rows(folder / "index.csv", rows, columns)
    return folder


def counts_of(report):
    """Counts by kind, but for the notes on what a test set need not have."""
    kinds = [f.kind for f in report.findings if f.kind not in ("no_mask", "no_patient")]
    return {kind: kinds.count(kind) for kind in kinds}


def test_a_sound_set(phantom_set):
    report = check_set(phantom_set)
    assert (report.files, report.slices, report.patients) == (40, 40, 20)
    assert report.problems == 0
    assert set(counts_of(report)) <= {"unnamed_file"}  # the empty masks of the healthy, which the index leaves out
    assert counts_of(report)["unnamed_file"] == 10
    assert report.as_text().endswith("\n\nno problems")


def test_every_kind_of_broken_row_is_found_in_one_pass(phantom_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(phantom_set, folder)
    rows = read_rows(folder / "index.csv")
    (folder / rows[0]["image"]).write_text("no picture")  # healthy
    save(folder / rows[1]["image"], np.full((96, 96), 7, np.uint8))  # healthy
    rows[2]["image"] = "images/gone.png"
    rows[3]["mask"] = "masks/gone.png"
    rows[4]["label"] = "2"
    rows[5]["fold"] = "x"
    save(folder / rows[6]["mask"], np.zeros((96, 96), np.uint8))
    save(folder / rows[7]["mask"], np.ones((96, 90), np.uint8))
    rows[8]["mask"] = rows[6]["image"]  # healthy, and a picture is not an empty mask
    (folder / rows[10]["mask"]).write_bytes(b"")
    save(folder / "images" / "small.png", phantom_slice(900, "glioma", size=40, pixel_mm=5.4).image)
    rows.append({"image": "images/small.png", "label": "glioma", "patient": "new", "fold": "1"})
    rows.append(dict(rows[11]))
    rows.append({"image": "", "label": "glioma"})
    index_of(folder, rows, "image,mask,label,patient,fold")
    counts = counts_of(check_set(folder))
    expected = {"unreadable": 2, "constant": 1, "missing_file": 2, "unknown_label": 1, "bad_row": 2, "empty_mask": 1}
    expected |= {"mask_shape": 1, "healthy_mask": 1, "tiny": 1, "repeated_row": 1, "folds": 1}
    assert {kind: n for kind, n in counts.items() if kind in PROBLEMS} == expected


def test_the_texts_name_the_problem_and_the_place(tmp_path):
    save(tmp_path / "a.png", small_slice(1).image)
    index_of(tmp_path, [{"image": "a.png", "label": "2"}, {"image": "b.png", "label": "glioma"}])
    report = check_set(tmp_path)
    assert report.of("unknown_label")[0].startswith("line 2: label '2' is a number")
    assert report.of("missing_file") == [f"line 3: no such file {tmp_path / 'b.png'}"]
    assert report.of("no_label") == ["a.png"]
    assert counts_of(check_set(tmp_path, {"2": "glioma"})) == {"missing_file": 1}


def test_patients_and_copies_across_parts(tmp_path):
    images = [small_slice(s, "glioma").image for s in range(5)]
    images.append(images[0][:, ::-1].copy())  # a mirror image under another patient, in the test part and fold 1
    rows = []
    for i, image in enumerate(images):
        save(tmp_path / f"{i}.png", image)
        part = {"split": "test" if i in (4, 5) else "train", "fold": (0, 1, 2, 0, 1, 1)[i]}
        rows.append({"image": f"{i}.png", "label": "glioma", "patient": f"p{i}", **part})
    rows[4]["patient"] = "p3"  # train, fold 0 and test, fold 1
    report = check_set(index_of(tmp_path, rows))
    assert report.of("patient_in_two_splits") == ["patient p3: 1 in test, 1 in train"]
    assert report.of("patient_in_two_folds") == ["patient p3: 1 in fold 0, 1 in fold 1"]
    assert len(report.of("copy_in_two_splits")) == len(report.of("copy_in_two_folds")) == 1
    text = report.of("copy_in_two_splits")[0]
    assert text.startswith("0.png and 5.png, mirrored (correlation 1.0000)")
    assert text.endswith("train and test")
    assert set(counts_of(report)) <= {
        "patient_in_two_splits", "patient_in_two_folds", "copy_in_two_splits", "copy_in_two_folds"
    }  # fmt: skip


def test_one_picture_under_two_labels(tmp_path):
    image = small_slice(3, "meningioma").image
    save(tmp_path / "glioma" / "1.png", image)
    save(tmp_path / "meningioma" / "1.png", image[:, ::-1].copy())
    save(tmp_path / "pituitary" / "1.png", small_slice(4, "pituitary").image)
    report = check_set(tmp_path)
    assert counts_of(report) == {"label_conflict": 1, "copy": 1}
    assert report.of("label_conflict")[0].endswith("glioma and meningioma")


def test_yes_and_no_folders_are_a_set_and_a_tumor_agrees_with_its_type(tmp_path):
    image = small_slice(3, "meningioma").image
    save(tmp_path / "yes" / "1.png", image)
    save(tmp_path / "meningioma" / "1.png", image[:, ::-1].copy())
    save(tmp_path / "no" / "1.png", small_slice(4, "no_tumor").image)
    save_mat(tmp_path / "yes" / "2.mat", small_slice(8, "glioma"), 2, "p2")
    report = check_set(tmp_path)
    assert report.problems == 0
    assert report.of("no_mask") == ["meningioma/1.png: meningioma", "yes/1.png: tumor"]
    save(tmp_path / "no" / "2.png", image)
    assert {text.split(": ")[-1] for text in check_set(tmp_path).of("label_conflict")} == {
        "meningioma and no_tumor",
        "no_tumor and tumor",
    }


def test_equal_files_within_a_part_are_a_note(tmp_path):
    for name in ("1.png", "2.png"):
        save(tmp_path / "glioma" / name, small_slice(3).image)
    report = check_set(tmp_path)
    assert report.of("equal_files") == ["glioma/1.png = glioma/2.png"]
    assert report.problems == 0


def test_an_unknown_class_folder_does_not_stop_the_check(tmp_path):
    for folder in ("Training/glioma", "Training/scan 7", "Testing/notumor"):
        save(tmp_path / folder / "1.png", small_slice(len(folder)).image)
    (tmp_path / "Testing" / "notumor" / "2.png").write_bytes(b"")
    report = check_set(tmp_path)
    (text,) = report.of("unknown_label")
    assert text.startswith("Training/scan 7: the folder scan 7 is not named for a class")
    assert len(report.of("unreadable")) == 1
    assert report.files == 4


def test_a_sick_volume_without_a_mask(tmp_path):
    save_volume(tmp_path / "glioma" / "a.nii.gz", phantom_volume(7, shape=(32, 40, 12), spacing_mm=(6, 6, 15)))
    report = check_set(tmp_path)
    assert report.of("volume_without_mask") == ["glioma/a.nii.gz: glioma"]


def test_volumes_are_looked_at_slice_by_slice(tmp_path):
    phantom = phantom_volume(7, shape=(72, 90, 20), spacing_mm=(2.6, 2.4, 9))
    save_volume(tmp_path / "t1.nii.gz", phantom)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(phantom.mask[:-1], phantom.affine), tmp_path / "short.nii.gz")
    row = {"image": "t1.nii.gz", "mask": "mask.nii.gz", "label": "glioma"}
    report = check_set(index_of(tmp_path, [row]))
    assert counts_of(report) == {"unnamed_file": 1}  # no slice of it is called a copy of its neighbor
    assert report.files == 1 < report.slices
    assert report.patients == 0
    assert counts_of(check_set(index_of(tmp_path, [{**row, "label": "no_tumor"}])))["healthy_mask"] == 1
    assert counts_of(check_set(index_of(tmp_path, [{**row, "mask": "short.nii.gz"}])))["mask_shape"] == 1


def test_a_volume_may_stand_in_the_index_once_for_each_plane(tmp_path):
    save_volume(tmp_path / "t1.nii.gz", phantom_volume(7, "no_tumor", shape=(64, 80, 64), spacing_mm=(2.9, 2.7, 2.8)))
    rows = [{"image": "t1.nii.gz", "label": "no_tumor", "cut": cut} for cut in ("", "axial", "coronal")]
    columns = "image,label,cut"
    one = check_set(index_of(tmp_path, rows[:1], columns)).slices
    report = check_set(index_of(tmp_path, [rows[0], rows[2]], columns))
    assert counts_of(report) == {}
    assert report.slices > one
    assert counts_of(check_set(index_of(tmp_path, [rows[2], rows[2]], columns)))["repeated_row"] == 1
    wrong = check_set(index_of(tmp_path, [rows[0], {**rows[0], "cut": "oblique"}], columns))
    assert "plane 'oblique' is not one of" in str(wrong.findings)
    save(tmp_path / "a.png", small_slice(3, "no_tumor").image)
    flat = check_set(index_of(tmp_path, [rows[0], {"image": "a.png", "label": "no_tumor", "cut": "axial"}], columns))
    assert "a picture has no planes" in str(flat.findings)


def test_matlab_files_against_their_folder(tmp_path):
    phantom = small_slice(7, "glioma")
    (tmp_path / "glioma").mkdir()
    (tmp_path / "meningioma").mkdir()
    save_mat(tmp_path / "glioma" / "1.mat", phantom, 2, "p1")
    save_mat(tmp_path / "meningioma" / "2.mat", small_slice(8, "glioma"), 2, "p2")
    report = check_set(tmp_path)
    assert report.of("file_label") == ["meningioma/2.mat: the file says glioma, the set meningioma"]
    assert report.patients == 2


def test_matlab_files_without_a_label(tmp_path):
    save_mat(tmp_path / "1.mat", small_slice(7), 2, "p1")
    save_mat(tmp_path / "2.mat", small_slice(8), 9, "p2")
    reason = f"{tmp_path / '2.mat'}: cjdata.label is missing or is not 1, 2 or 3"
    with pytest.raises(InputError, match=re.escape(f"{reason}; `tumorlens data check` lists all that is wrong")):
        load_samples(tmp_path)
    report = check_set(tmp_path)
    assert (report.files, report.problems, report.of("unreadable")) == (2, 1, [reason])


def test_images_beside_masks(tmp_path):
    for i in range(3):
        phantom = small_slice(i)
        save(tmp_path / "images" / f"{i}.png", phantom.image)
        save(tmp_path / "masks" / f"{i}_mask.png", phantom.mask * np.uint8(255))
    report = check_set(tmp_path)
    assert counts_of(report) == {"no_label": 3}
    assert report.problems == 0


def test_images_without_masks_and_masks_without_images(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", small_slice(i).image)
    save(tmp_path / "masks" / "0.png", small_slice(0).mask)
    report = check_set(tmp_path)
    assert report.of("unmasked") == ["images/1.png", "images/2.png"]
    assert report.problems == 0
    save(tmp_path / "masks" / "case1.png", small_slice(1).mask)
    report = check_set(tmp_path)
    assert report.of("missing_file") == ["masks/case1.png: the mask has no image of its name"]
    assert report.of("unmasked") == ["images/1.png", "images/2.png"]


def test_how_masks_of_several_values_are_read(tmp_path):
    for i in range(5):
        save(tmp_path / "images" / f"{i}.png", small_slice(i, "glioma").image)
    drawn = small_slice(0, "glioma").mask
    save(tmp_path / "masks" / "0.png", drawn)
    classes = drawn.copy()
    classes[: int(np.median(np.nonzero(drawn)[0]))] *= 4
    save(tmp_path / "masks" / "1.png", classes)
    save(tmp_path / "masks" / "2.png", classes * np.uint8(60))
    Image.fromarray(classes.astype(np.float32) / 4).save(tmp_path / "masks" / "3.tif")
    Image.fromarray(classes.astype(np.float32) * 63.5).save(tmp_path / "masks" / "4.tif")
    assert set(np.unique(classes)) == {0, 1, 4}
    assert check_set(tmp_path).of("mask_values") == [
        "masks/1.png: values 1, 4, all of them lesion",
        "masks/2.png: 2 gray levels, lesion above 120",
        "masks/3.tif: fractions up to 1, lesion from 0.5 on",
        "masks/4.tif: 2 gray levels, lesion above 127",
    ]


def test_a_folder_per_patient(tmp_path):
    write_lgg_phantoms(tmp_path, patients=2, slices=5)
    report = check_set(tmp_path)
    assert (counts_of(report), report.files, report.patients) == ({}, 10, 2)
    first, second, third = sorted(tmp_path.rglob("*[1-3].tif"))[:3]
    first.with_name(f"{first.stem}_mask.tif").unlink()
    second.unlink()
    third.write_bytes(b"")
    report = check_set(tmp_path)
    counts = {kind: len(report.of(kind)) for kind in ("missing_file", "unreadable", "unknown_label")}
    assert counts == {"missing_file": 2, "unreadable": 1, "unknown_label": 0}
    assert (report.files, report.patients) == (9, 2)
    assert len(report.of("no_label")) == 1  # that of the missing mask; the other slices keep their labels


@pytest.mark.parametrize(
    ("folds", "reason"),
    [((0, 1, ""), "1 of 3 rows have no fold"), ((1, 2, 3), "1, 2, 3; training counts them from 0"), ((0, 1, 1), "few")],
)
def test_folds_that_training_cannot_use(tmp_path, folds, reason):
    rows = []
    for i, fold in enumerate(folds):
        save(tmp_path / f"{i}.png", small_slice(i).image)
        rows.append({"image": f"{i}.png", "label": "glioma", "patient": f"p{i}", "fold": fold})
    [text] = check_set(index_of(tmp_path, rows)).of("folds")
    assert reason in text


def test_nothing_to_check(tmp_path):
    with pytest.raises(InputError, match="no such data folder"):
        check_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither an index"):
        check_set(tmp_path)
    save(tmp_path / "holiday" / "1.png", small_slice(1).image)
    with pytest.raises(InputError, match="holiday"):
        check_set(tmp_path)
    with pytest.raises(InputError, match="label 'holiday' is a number"):
        check_set(tmp_path, {"holiday": "7"})
    (tmp_path / "index.csv").write_text("image,label\n")
    with pytest.raises(InputError, match="no rows"):
        check_set(tmp_path)


def test_the_list_is_grouped_and_cut():
    findings = [Finding("tiny", f"{i}.png: 9 x 9 pixels") for i in range(7)] + [Finding("no_patient", "0.png")]
    report = CheckReport("set", 7, 7, 0, tuple(findings))
    lines = report.as_text(examples=2).splitlines()
    assert lines[0] == "set: 7 files, 7 slices read, patients not known"
    assert f"  {PROBLEMS['tiny']}: 7" in lines
    assert "    ... and 5 more" in lines
    assert f"  {NOTES['no_patient']}: 1" in lines
    assert lines[-1] == "7 problems of 1 kind"
    assert len(json.loads(json.dumps(report.as_dict()))["problems"]["tiny"]["items"]) == 7


@pytest.mark.real
def test_the_official_split_of_brisc_leaks_and_its_folds_do_not(real, tmp_path):
    """Every tenth known copy of a test slice in the training part, and strangers beside them."""
    rows = read_rows(real / "brisc" / "index.csv")
    by_source = {}
    for row in rows:
        if row["figshare_image"]:
            by_source.setdefault(row["figshare_image"], []).append(row)
    twins = [pair for pair in by_source.values() if len({row["official_split"] for row in pair}) == 2][::20]
    assert len(twins) > 5
    write_rows(tmp_path / "index.csv", [row for pair in twins for row in pair], ",".join(rows[0]))
    report = check_set(f"{tmp_path / 'index.csv'}@{real / 'brisc'}")
    assert len(report.of("copy_in_two_splits")) >= 0.95 * len(twins)
    assert report.of("patient_in_two_splits")
    assert not report.of("patient_in_two_folds")
    assert not report.of("copy_in_two_folds")
