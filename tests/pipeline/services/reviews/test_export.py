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
    if action == "correct":
        axis, index = case.view.axes[0], case.view.start
        drawn = case.view.mask_slice(axis, index).copy()
        drawn[2:9, 3:12] = 1
        case.editor.draw("brush", index, drawn)
    desk.decide(case, reviewer, action, label, insist=True)
    return case


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_corrected_cases_are_a_data_set(desk, tmp_path):
    volume = _decide(desk, "volume.nii.gz", "correct")
    series = _decide(desk, "dicom", "correct", "glioma")
    _decide(desk, "healthy.png", "accept")
    _decide(desk, "meningioma.png", "relabel", "no_tumor")
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
