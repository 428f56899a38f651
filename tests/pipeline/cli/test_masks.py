"""`tumorlens masks`: exit codes, output, mistakes of users."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.scans.exchange import EVERYTHING, VOLUME, correct, make_results
from tumorlens.pipeline.services.reviews.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    make_results(folder)
    return folder


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made / "out", tmp_path / "out")


@pytest.fixture
def masks(command):
    return lambda *arguments: command("masks", *arguments)


def test_export(masks, out, tmp_path):
    done = masks("export", out, "-o", tmp_path / "x", "--format", "slicer")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "knee.png: no mask (refused)",
        "broken.png: no mask (the png file is damaged)",
        f"{len(EVERYTHING)} masks, 2 without mask: {tmp_path / 'x'}",
    ]
    assert (tmp_path / "x" / "P1" / "t1.seg.nrrd").is_file()
    again = masks("export", out, "-o", tmp_path / "x", "--format", "slicer")
    assert again.exit_code == 2
    assert again.stderr.startswith("tumorlens: error: ")
    assert "--overwrite" in again.stderr
    quiet = masks("export", out, "-o", tmp_path / "x", "--format", "slicer", "--overwrite", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_what_a_format_cannot_hold(masks, out, tmp_path):
    done = masks("export", out, "-o", tmp_path / "x", "--format", "dicomseg")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == f"1 mask, 2 without mask, 5 not written: {tmp_path / 'x'}"
    (line,) = done.stderr.splitlines()
    assert line == "tumorlens: warning: 5 scans are not from DICOM, so no file in this format is written for them"
    wrong = masks("export", out, "-o", tmp_path / "y", "--format", "nifti", "--scans", out)
    assert wrong.exit_code == 2
    assert "only coco, labelme, geojson do" in wrong.stderr
    assert masks("export", tmp_path, "-o", tmp_path / "y", "--format", "nifti").exit_code == 2
    assert not (tmp_path / "y").exists()


def test_import(masks, out, tmp_path):
    masks("export", out, "-o", tmp_path / "x", "--format", "itksnap")
    path = tmp_path / "x" / "P1" / "t1.nii.gz"
    correct(path, lambda mask: mask[:4].fill(0))
    done = masks("import", out, path, tmp_path / "x" / "flat.nii.gz", "--reviewer", "A. Reader", "-o", tmp_path / "p")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{VOLUME}: Dice 0.")
    assert lines[1:] == ["flat.nii.gz: unchanged", "1 changed, 1 unchanged"]
    assert (tmp_path / "p" / "P1" / "t1.changes.png").is_file()
    assert not (out / "P1" / "t1" / "mask.changes.png").exists()
    assert [decision.reviewer for decision in Store(out).decisions()] == ["A. Reader"]
    reviewed = np.asarray(nib.load(out / "P1" / "t1" / "mask.reviewed.nii.gz").dataobj)
    np.testing.assert_array_equal(reviewed, np.asarray(nib.load(path).dataobj))


def test_import_goes_on_after_a_problem(masks, out, tmp_path):
    masks("export", out, "-o", tmp_path / "x", "--format", "nrrd")
    (tmp_path / "x" / "flat.nrrd").write_text("NRRD0004\nbroken")
    done = masks("import", out, tmp_path / "x")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "flat.nrrd: the NRRD header is damaged" in done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(EVERYTHING) - 1} unchanged, 1 failed"
    none = masks("import", out, tmp_path / "x", "--format", "png")
    assert none.exit_code == 1
    assert "there are no masks in this folder of this format" in none.stderr
