"""The reviewers' decisions as a table and as a data set."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.services.reviews.export import export_reviews


def _decide(desk, name, action, label="", reviewer="Ann"):
    case = desk.open(name, reviewer)
    if label == "no_tumor":
        case.editor.clear()
    elif action == "correct":
        axis, index = case.view.axes[0], case.view.start
        drawn = case.view.mask_slice(axis, index).copy()
        drawn[2:9, 3:12] = 1
        case.editor.draw("brush", index, drawn)
    desk.decide(case, reviewer, action, label)
    return case


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_corrected_cases_are_a_data_set(desk, tmp_path):
    volume = _decide(desk, "volume.nii.gz", "correct")
    series = _decide(desk, "dicom", "correct", "glioma")
    _decide(desk, "healthy.png", "accept")
    _decide(desk, "meningioma.png", "correct", "no_tumor")
    folder = tmp_path / "reviewed"
    done = export_reviews(desk, folder)
    assert (done.decisions, done.cases, done.left_out) == (4, 3, [])
    rows = {row["scan"]: row for row in _rows(folder / "index.csv")}
    assert set(rows) == {"volume.nii.gz", "dicom", "meningioma.png"}
    assert rows["dicom"]["label"] == "glioma" and rows["dicom"]["patient"].startswith("dicom-")
    assert rows["meningioma.png"]["mask"] == "", "a scan without a tumor has no mask"
    for case in (volume, series):
        row = rows[case.result.name]
        written = nib.load(folder / row["mask"])
        np.testing.assert_array_equal(np.asarray(written.dataobj), case.view.mask)
        image = open_scan(folder / row["image"])
        np.testing.assert_allclose(image.affine, case.scan.affine, atol=1e-4)
        np.testing.assert_array_equal(image.voxels, case.scan.voxels)
    samples = load_samples(folder)
    assert {sample.label for sample in samples} == {"meningioma", "glioma", "no_tumor"}
    assert any(sample.mask is not None for sample in samples)


def test_accepted_scans_come_along_on_request_and_reviewers_can_be_chosen(desk, tmp_path):
    _decide(desk, "healthy.png", "accept")
    _decide(desk, "meningioma.png", "relabel", "glioma", "Bob")
    export_reviews(desk, tmp_path / "all", accepted=True)
    assert [row["scan"] for row in _rows(tmp_path / "all" / "index.csv")] == ["healthy.png", "meningioma.png"]
    done = export_reviews(desk, tmp_path / "ann", reviewer="Ann")
    assert (done.decisions, done.cases) == (1, 0) and not (tmp_path / "ann" / "index.csv").exists()
    with pytest.raises(InputError, match="no decisions by Cem"):
        export_reviews(desk, tmp_path / "cem", reviewer="Cem")


def test_a_rejected_or_refused_scan_teaches_nothing(desk, tmp_path):
    _decide(desk, "meningioma.png", "reject")
    _decide(desk, "noise.png", "relabel", "refused")
    done = export_reviews(desk, tmp_path / "reviewed")
    assert done.cases == 0 and done.left_out == ["noise.png: called refused, which is not a class to train on"]
    assert [row["action"] for row in _rows(tmp_path / "reviewed" / "decisions.csv")] == ["reject", "relabel"]


def test_pixels_of_a_picture_are_kept(desk, scans, tmp_path):
    _decide(desk, "meningioma.png", "correct")
    export_reviews(desk, tmp_path / "r")
    written = np.asarray(Image.open(tmp_path / "r" / "images" / "meningioma.png"))
    np.testing.assert_array_equal(written, np.asarray(Image.open(scans / "meningioma.png")))


def test_other_files_are_left_alone_and_an_export_is_replaced_on_request(desk, tmp_path):
    _decide(desk, "meningioma.png", "correct")
    (tmp_path / "index.csv").write_text("mine")
    with pytest.raises(InputError, match="leaves it alone"):
        export_reviews(desk, tmp_path)
    assert (tmp_path / "index.csv").read_text() == "mine"
    export_reviews(desk, tmp_path / "r")
    with pytest.raises(InputError, match="--overwrite"):
        export_reviews(desk, tmp_path / "r")
    export_reviews(desk, tmp_path / "r", overwrite=True)


def test_images_of_the_user_are_never_replaced(desk, tmp_path):
    case = _decide(desk, "meningioma.png", "correct")
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "meningioma.png").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="leaves it alone"):
            export_reviews(desk, tmp_path / "set", overwrite=overwrite)
    assert all(path.read_text() == "mine" for path in (tmp_path / "set").rglob("*.png"))
    assert case.result.mask_path() is not None


def test_a_later_export_leaves_no_orphans(desk, tmp_path):
    _decide(desk, "meningioma.png", "correct")
    export_reviews(desk, tmp_path / "r")
    desk.decide(desk.open("meningioma.png", "Ann"), "Ann", "reject")
    export_reviews(desk, tmp_path / "r", overwrite=True)
    assert [path.name for path in (tmp_path / "r").rglob("*") if path.is_file()] == ["decisions.csv"]


def test_a_reviewers_export_has_the_mask_that_this_reviewer_saw(desk, tmp_path):
    _decide(desk, "meningioma.png", "relabel", "glioma", "Ann")
    _decide(desk, "meningioma.png", "correct", "glioma", "Bob")
    for reviewer, reviewed in (("Ann", False), ("Bob", True)):
        export_reviews(desk, tmp_path / reviewer, reviewer=reviewer)
        written = np.asarray(Image.open(tmp_path / reviewer / "masks" / "meningioma.png"))
        expected = desk.result("meningioma.png").mask(reviewed).voxels
        np.testing.assert_array_equal(written != 0, expected != 0)


def test_a_comment_is_not_a_formula(desk, tmp_path):
    case = desk.open("meningioma.png", "Ann")
    desk.decide(case, "Ann", "accept", comment='=HYPERLINK("http://evil","x")')
    export_reviews(desk, tmp_path / "r")
    assert _rows(tmp_path / "r" / "decisions.csv")[0]["comment"].startswith("'=")
