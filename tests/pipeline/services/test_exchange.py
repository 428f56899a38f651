"""Masks leave an output folder in every format, are corrected, and come back."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.data.test_scan import all_orientations, reoriented
from tests.scans.exchange import (
    EVERYTHING,
    FAILED,
    FLAT,
    NEGATIVE,
    PICTURE,
    REFUSED,
    SERIES,
    UNPLACED,
    VOLUME,
    correct,
    lesions,
    make_results,
    written,
)
from tests.scans.volumes import oblique_affine
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.export import FORMATS
from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.outputs.table import write_table
from tumorlens.pipeline.services.exchange import ExportRequest, export_masks
from tumorlens.pipeline.services.exchange_import import import_masks
from tumorlens.pipeline.services.reviews.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scans and their results; tests copy them."""
    folder = tmp_path_factory.mktemp("exchange")
    make_results(folder)
    return folder


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made / "out", tmp_path / "out")


def export(out, folder, name, **settings):
    return export_masks(ExportRequest(out, folder, name, **settings))


def mask_of(out, name, reviewed=True):
    (result,) = (result for result in read_results(out) if result.name == name)
    return result.mask(reviewed).voxels


def restore(out, folder, before):
    """Import an export into results whose masks were emptied: it must bring all of them back."""
    for path in (folder / "labels.json", out / "reviews.sqlite", *out.rglob("mask.reviewed.*")):
        path.unlink(missing_ok=True)
    for result in read_results(out):
        if result.mask_path() is not None:
            mask = nib.load(result.mask_path()) if result.mask_path().suffix == ".gz" else None
            if mask is None:
                Image.fromarray(np.zeros_like(result.mask().voxels)).save(result.mask_path())
            else:
                nib.save(type(mask)(np.zeros(mask.shape, np.uint8), None, mask.header), result.mask_path())
    imported = list(import_masks(out, [folder], "A. Reader"))
    assert [one.problem for one in imported if one.problem] == []
    for name, mask in before.items():
        np.testing.assert_array_equal(mask_of(out, name), mask, err_msg=name)
    return {one.name: one for one in imported}


@pytest.mark.parametrize("by", ["lesion", "class"])
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(out, tmp_path, name, by):
    names = {SERIES} if FORMATS[name].kind == "dicom" else EVERYTHING
    before = {scan: mask_of(out, scan) for scan in names}
    report = export(out, tmp_path / "x", name, labels=by)
    assert set(report.exported) == names
    assert report.without_mask == {FAILED: "the png file is damaged", REFUSED: "refused"}
    assert set(report.problems) == EVERYTHING - names
    described = json.loads((tmp_path / "x" / "labels.json").read_text())
    assert described["scans"][SERIES]["values"]["1" if by == "lesion" else "2"]["class"] == "meningioma"
    assert set(described["files"]) == {
        path.relative_to(tmp_path / "x").as_posix()
        for path in (tmp_path / "x").rglob("*.*")
        if path.name != "labels.json"
    }
    imported = restore(out, tmp_path / "x", before)
    assert set(imported) == names
    for scan, one in imported.items():
        assert one.changed == (scan != NEGATIVE)
        assert one.before == 0
        assert one.after == before[scan].sum()
    again = list(import_masks(out, [tmp_path / "x"], "A. Reader"))
    assert not any(one.changed or one.problem for one in again)


@pytest.mark.parametrize("name", ["png", "labelme", "nrrd", "slicer"])
@pytest.mark.parametrize("code", all_orientations()[::7])
def test_round_trip_in_other_orientations(tmp_path, name, code):
    voxels = np.random.default_rng(2).integers(1, 900, (12, 10, 5)).astype(np.int16)
    turned, affine = reoriented(voxels, oblique_affine(), code)
    mask, _ = reoriented(lesions((12, 10, 5)), oblique_affine(), code)
    nib.save(nib.Nifti1Image(turned, affine), tmp_path / "a.nii.gz")
    out = tmp_path / "out"
    row = written(out, "a.nii.gz", open_scan(tmp_path / "a.nii.gz"), np.ascontiguousarray(mask))
    write_table(out / "results.csv", [row])
    export(out, tmp_path / "x", name)
    restore(out, tmp_path / "x", {"a.nii.gz": mask})


def test_lesions_have_the_numbers_of_the_result(out, tmp_path):
    export(out, tmp_path / "x", "nifti")
    numbers = np.asarray(nib.load(tmp_path / "x" / "P1" / "t1.nii.gz").dataobj)
    content = json.loads((out / "P1" / "t1" / "result.json").read_text())
    assert len(content["lesions"]) == numbers.max() == 3
    for lesion in content["lesions"]:
        place = np.argwhere(numbers == lesion["number"])
        assert len(place) == lesion["voxels"]
        np.testing.assert_array_equal(place.min(axis=0), lesion["bbox_min"])


def test_corrected_masks_are_taken_first(out, tmp_path):
    export(out, tmp_path / "x", "nifti")
    correct(tmp_path / "x" / "P1" / "t1.nii.gz", lambda mask: mask[5:, :, 2].fill(1))
    (one,) = import_masks(out, [tmp_path / "x" / "P1" / "t1.nii.gz"], "A. Reader")
    assert one.changed
    corrected, original = mask_of(out, VOLUME), mask_of(out, VOLUME, reviewed=False)
    assert corrected.sum() > original.sum()
    for name, settings, expected in (("r", {}, corrected), ("o", {"original": True}, original)):
        export(out, tmp_path / name, "nifti", **settings)
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / name / "P1" / "t1.nii.gz").dataobj) > 0, expected)


def test_a_correction_is_reported_recorded_and_drawn(out, tmp_path):
    original = {path.name: path.read_bytes() for path in (out / "P1" / "t1").iterdir()}
    before = mask_of(out, VOLUME)
    export(out, tmp_path / "x", "slicer")
    path = tmp_path / "x" / "P1" / "t1.seg.nrrd"
    scan = open_scan(path, constant=True)
    changed = np.asarray(scan.voxels > 0).copy()
    changed[2, 3:8, 1:4] = 0
    changed[11, 9, 2] = 1
    FORMATS["slicer"].write_volume(path, changed.astype(np.uint8), scan, [])
    (one,) = import_masks(out, [path], "A. Reader")
    overlap = np.count_nonzero(changed & (before > 0))
    assert one.dice == pytest.approx(2 * overlap / (before.sum() + changed.sum()))
    assert (one.before, one.after) == (before.sum(), changed.sum())
    ml = 8 * one.after / 1000  # voxels of 1 x 2 x 4 mm
    assert f"{8 * one.before / 1000:.2f} -> {ml:.2f} ml" in one.describe()
    np.testing.assert_array_equal(mask_of(out, VOLUME), changed)
    for name, content in original.items():
        assert (out / "P1" / "t1" / name).read_bytes() == content
    (decision,) = Store(out).decisions(VOLUME)
    assert (decision.reviewer, decision.action, decision.label) == ("A. Reader", "correct", None)
    assert decision.before["mask_voxels"] == before.sum()
    assert decision.after["mask_ml"] == pytest.approx(ml, abs=1e-4)
    np.testing.assert_array_equal(Store(out).mask(decision.number), changed)
    picture = np.array(Image.open(out / "P1" / "t1" / "mask.changes.png"))
    for color in ((240, 228, 66), (86, 180, 233), (213, 94, 0)):
        assert (np.abs(picture.astype(int) - 0.6 * np.array(color)).max(axis=2) < 4).any()
    assert not list(Store(out).decisions(PICTURE))


def test_a_corrected_series_gets_a_segmentation(made, out, tmp_path):
    export(out, tmp_path / "x", "nifti")
    correct(tmp_path / "x" / "series.nii.gz", lambda mask: mask[1:3].fill(1))
    (one,) = import_masks(out, [tmp_path / "x" / "series.nii.gz"], "A. Reader")
    assert any("not at hand" in text for text in one.warnings)
    (out / "series" / "mask.reviewed.dcm").write_bytes(b"damaged")
    report = export(out, tmp_path / "d", "dicomseg")
    assert "(--scans), or give --original" in report.problems[SERIES]
    assert export(out, tmp_path / "o", "dicomseg", original=True).exported == [SERIES]
    correct(tmp_path / "x" / "series.nii.gz", lambda mask: mask[4:6].fill(1))
    (one,) = import_masks(out, [tmp_path / "x" / "series.nii.gz"], "A. Reader", scans=[str(made / "scans")])
    assert one.warnings == ()
    assert "mask.reviewed.dcm" in one.files
    before = mask_of(out, SERIES)
    assert export(out, tmp_path / "e", "dicomseg").exported == [SERIES]
    restore(out, tmp_path / "e", {SERIES: before})


@pytest.mark.parametrize("name", ["coco", "labelme", "geojson"])
def test_pictures_beside_the_masks(made, out, tmp_path, name):
    before = {scan: mask_of(out, scan) for scan in EVERYTHING}
    report = export(out, tmp_path / "x", name, scans=(str(made / "scans"),))
    assert report.problems == {}
    picture = np.array(Image.open(tmp_path / "x" / "pictures" / "7.png"))
    np.testing.assert_array_equal(picture, np.array(Image.open(made / "scans" / PICTURE)))
    scan = open_scan(made / "scans" / VOLUME)
    for k in range(scan.n_slices):
        shown = np.array(Image.open(tmp_path / "x" / "P1" / "t1" / f"slice_{k:03d}.png"))
        assert shown.shape == scan.slice(k).shape
        assert np.corrcoef(shown.ravel(), scan.slice(k).ravel())[0, 1] > 0.99
    restore(out, tmp_path / "x", before)


def test_files_that_are_there_stay(out, tmp_path):
    export(out, tmp_path / "x", "png")
    with pytest.raises(InputError, match="an export is here already; give --overwrite"):
        export(out, tmp_path / "x", "png")
    export(out, tmp_path / "x", "png", overwrite=True)
    (tmp_path / "y" / "P1").mkdir(parents=True)
    (tmp_path / "y" / "P1" / "t1.nii.gz").write_text("mine")
    with pytest.raises(InputError, match=r"t1\.nii\.gz: tumorlens did not write this file"):
        export(out, tmp_path / "y", "nifti", overwrite=True)
    assert (tmp_path / "y" / "P1" / "t1.nii.gz").read_text() == "mine"


def test_problems_are_one_sentence_each_and_the_others_go_on(out, tmp_path):
    x = tmp_path / "x"
    export(out, x, "nifti")
    (x / "flat.nii.gz").write_bytes(b"broken")
    image = nib.load(x / "P1" / "t1.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.1, 1, 1, 1])), x / "P1" / "t1.nii.gz")
    shutil.copy(x / "healthy.nii.gz", x / "nobody.nii.gz")
    shutil.copy(x / "healthy.nii.gz", x / "knee.nii.gz")
    correct(x / "unplaced.nii.gz", lambda mask: mask[:3].fill(1))
    imported = {one.name: one for one in import_masks(out, [x, tmp_path / "missing", out / "results.csv"], "A")}
    problems = {name: one.problem for name, one in imported.items() if one.problem}
    assert imported[UNPLACED].changed
    assert "not on the grid of its scan" in problems.pop(VOLUME)
    assert "flat.nii.gz: this is not a" in problems.pop(FLAT)
    assert "no mask that could be corrected (its label is refused)" in problems.pop(REFUSED)
    assert "no scan of" in problems.pop(str(x / "nobody.nii.gz"))
    assert "no such file or folder" in problems.pop(str(tmp_path / "missing"))
    assert "not a mask in one of the formats" in problems.pop(str(out / "results.csv"))
    assert problems == {}


def test_slices_that_are_missing_and_masks_that_contradict(out, tmp_path):
    x = tmp_path / "x"
    export(out, x, "labelme")
    (x / "P1" / "t1" / "slice_003.json").unlink()
    (x / "flat" / "slice_000.json").write_text("{}{")
    imported = {one.name: one.problem for one in import_masks(out, [x], "A") if one.problem}
    assert "1 of the scan's 5 slices are missing (3)" in imported.pop(VOLUME)
    assert "the JSON file is damaged" in imported.pop(str(x / "flat" / "slice_000.json"))
    assert imported == {}
    export(out, tmp_path / "c", "coco")
    content = json.loads((tmp_path / "c" / "annotations.json").read_text())
    content["annotations"] = []
    (tmp_path / "c" / "annotations.json").write_text(json.dumps(content))
    problems = {one.name: one.problem for one in import_masks(out, [tmp_path / "c"], "A") if one.problem}
    assert set(problems) == EVERYTHING - {NEGATIVE}
    assert all("two different masks of one scan" in problem for problem in problems.values())
    assert all(one.after == 0 for one in import_masks(out, [tmp_path / "c" / "annotations.json"], "A"))


def test_a_folder_without_results(tmp_path):
    with pytest.raises(InputError, match=r"no results\.csv here"):
        export(tmp_path, tmp_path / "x", "png")


def test_an_earlier_scan_of_the_same_name_does_not_count(out, tmp_path):
    """Neither its mask, nor its label, nor the copy on the disk, which may also be damaged."""
    export(out, tmp_path / "x", "nifti")
    path = tmp_path / "x" / "P1" / "t1.nii.gz"
    correct(path, lambda mask: mask[5:, :, 2].fill(1))
    (one,) = import_masks(out, [path], "A")
    assert one.changed
    Store(out).decide(VOLUME, "A", "relabel", "glioma", before={"of": result_named(out, VOLUME).identity})
    about = out / "P1" / "t1" / "result.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "made_of": {"source_sha256": "another"}}))
    for name in ("mask.reviewed.nii.gz", "mask.reviewed.png"):
        (about.parent / name).write_bytes(b"damaged")
    report = export(out, tmp_path / "y", "nifti")
    assert VOLUME in report.exported
    original = mask_of(out, VOLUME, reviewed=False)
    exported = np.asarray(nib.load(tmp_path / "y" / "P1" / "t1.nii.gz").dataobj)
    np.testing.assert_array_equal(exported > 0, original)
    described = json.loads((tmp_path / "y" / "labels.json").read_text())["scans"][VOLUME]
    assert (described["label"], described["reviewed"], described["decision"]) == ("meningioma", False, 2)
    (one,) = import_masks(out, [tmp_path / "y" / "P1" / "t1.nii.gz"], "A")
    assert one.describe() == f"{VOLUME}: unchanged"
    (one,) = import_masks(out, [path], "A")
    assert "the export is of another scan of this name" in one.problem
    about.write_text(json.dumps(content))  # the first scan again: its correction holds, although its copy is damaged
    export(out, tmp_path / "z", "nifti")
    exported = np.asarray(nib.load(tmp_path / "z" / "P1" / "t1.nii.gz").dataobj)
    np.testing.assert_array_equal(exported > 0, Store(out).mask(1))
    assert json.loads((tmp_path / "z" / "labels.json").read_text())["scans"][VOLUME]["label"] == "glioma"


def result_named(out, name):
    return next(result for result in read_results(out) if result.name == name)


def test_a_newer_correction_of_another_reviewer_stays(out, tmp_path):
    early, late = tmp_path / "early", tmp_path / "late"
    export(out, early, "nifti")
    export(out, late, "nifti")
    correct(late / "P1" / "t1.nii.gz", lambda mask: mask[5:, :, 2].fill(1))
    assert any(one.changed for one in import_masks(out, [late], "B"))
    (one,) = import_masks(out, [early / "P1" / "t1.nii.gz"], "A")
    assert one.describe() == f"{VOLUME}: unchanged since the export"
    alone = tmp_path / "alone" / "P1"
    alone.mkdir(parents=True)
    shutil.copy(early / "P1" / "t1.nii.gz", alone)
    (one,) = import_masks(out, [alone / "t1.nii.gz"], "A")
    assert one.describe() == f"{VOLUME}: equals an earlier state of the mask, left alone"
    correct(early / "P1" / "t1.nii.gz", lambda mask: mask[:, :2].fill(0))
    (one,) = (one for one in import_masks(out, [early], "A") if one.name == VOLUME)
    assert re.fullmatch(r"B has decided on this scan at .*, after its export; export it again .*", one.problem)
    assert [decision.reviewer for decision in Store(out).decisions(VOLUME)] == ["B"]
    (one,) = import_masks(out, [early / "P1" / "t1.nii.gz"], "B")  # their own newer one they may replace
    assert one.changed
    export(out, early, "nifti", overwrite=True)
    correct(early / "P1" / "t1.nii.gz", lambda mask: mask[:, :4].fill(0))
    (one,) = import_masks(out, [early / "P1" / "t1.nii.gz"], "A")
    assert one.changed


@pytest.mark.parametrize("name", FORMATS)
def test_untouched_masks_of_each_format_are_known(out, tmp_path, name):
    names = {SERIES} if FORMATS[name].kind == "dicom" else EVERYTHING
    export(out, tmp_path / "x", name)
    for scan in names:
        Store(out).decide(scan, "B", "correct", mask=1 - mask_of(out, scan))
    (tmp_path / "x" / "P1").mkdir(exist_ok=True)
    (tmp_path / "x" / "P1" / "labels.json").write_text("{}")  # somebody else's, on the way to ours
    imported = {one.name: one.describe() for one in import_masks(out, [tmp_path / "x"], "A")}
    imported.pop(str(tmp_path / "x" / "P1" / "labels.json"), None)
    assert imported == {scan: f"{scan}: unchanged since the export" for scan in names}


@pytest.mark.parametrize("where", [True, False])
@pytest.mark.parametrize("name", [VOLUME, PICTURE, FLAT])
def test_the_scan_itself_is_not_a_mask(made, out, tmp_path, name, where):
    scans = [str(made / "scans")] if where else []
    (one,) = import_masks(out, [made / "scans" / name], "A", scans=scans)
    assert "this is not a mask" in one.problem
    few = np.array(Image.open(made / "scans" / PICTURE)) // 16  # a scan of few values is known by its source only
    if name == PICTURE and where:
        copy = shutil.copytree(made, tmp_path / "made")
        Image.fromarray(few).save(copy / "scans" / PICTURE)
        row = written(out, PICTURE, open_scan(copy / "scans" / PICTURE), lesions(few.shape))
        write_table(out / "results.csv", [row])
        (one,) = import_masks(out, [copy / "scans" / PICTURE], "A", scans=[str(copy / "scans")])
        assert "this is the scan itself" in one.problem
    assert not Store(out).decisions()


def test_masks_of_several_volumes(out, tmp_path):
    image = nib.load(out / "P1" / "t1" / "mask.nii.gz")
    (tmp_path / "P1").mkdir()
    path = tmp_path / "P1" / "t1.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, axis=3), image.affine), path)
    (one,) = import_masks(out, [path], "A")
    assert one.problem == f"{path}: the file holds several volumes, and a mask is one; save one volume"


def test_pictures_of_changes(made, out, tmp_path):
    """Below the changes of a color picture lies the picture; a file of the user's that has the same name stays."""
    copy = shutil.copytree(made / "scans", tmp_path / "scans")
    colors = np.random.default_rng(1).integers(100, 255, (12, 17, 3)).astype(np.uint8)
    Image.fromarray(colors).save(copy / PICTURE)
    write_table(out / "results.csv", [written(out, PICTURE, open_scan(copy / PICTURE), lesions((12, 17)))])
    path = tmp_path / "pictures" / "7.png"
    path.parent.mkdir()
    mask = lesions((12, 17)) * np.uint8(255)
    mask[9, 9:12] = 255
    Image.fromarray(mask).save(path)
    changes = out / "pictures" / "7" / "mask.changes.png"
    changes.write_bytes(b"mine")
    (one,) = import_masks(out, [path], "A", scans=[str(copy)])
    assert "tumorlens did not write this file" in one.problem
    assert changes.read_bytes() == b"mine"
    assert not Store(out).decisions()
    changes.unlink()
    for value in (255, 0):
        mask[0, 3:6] = value
        Image.fromarray(mask).save(path)
        (one,) = import_masks(out, [path], "A", scans=[str(copy)])
        assert one.changed
    shown = np.array(Image.open(changes))[24:]  # below the legend
    assert (shown.max(axis=2) == shown.min(axis=2)).mean() > 0.5
    assert (shown.min(axis=2) > 30).mean() > 0.5


def test_files_of_somebody_else_with_a_list_of_files_stay(out, tmp_path):
    x = tmp_path / "x"
    (x / "P1").mkdir(parents=True)
    (x / "P1" / "t1.nii.gz").write_text("mine")
    (x / "labels.json").write_text(json.dumps({"files": ["P1/t1.nii.gz"], "scans": {}}))
    with pytest.raises(InputError, match="tumorlens did not write this file"):
        export(out, x, "nifti", overwrite=True)
    assert (x / "P1" / "t1.nii.gz").read_text() == "mine"


def test_damaged_json_does_not_stop_the_others(out, tmp_path):
    x = tmp_path / "x"
    export(out, x, "labelme")
    text = (x / "P1" / "t1" / "slice_001.json").read_text()
    (x / "P1" / "t1" / "slice_001.json").write_text(text.replace('"imageWidth": 12', '"imageWidth": 1e999'))
    (x / "pictures" / "7.json").write_text('{"shapes": ["a"], "imageHeight": 12, "imageWidth": 17}')
    (x / "flat" / "slice_000.json").write_text("[" * 100_000 + "]" * 100_000)
    names = ("series/slice_000.png", "")
    images = [{"id": k, "file_name": name, "height": 10**6, "width": 10**6} for k, name in enumerate(names)]
    (x / "all.json").write_text(json.dumps({"images": images, "annotations": []}))
    imported = list(import_masks(out, [x], "A"))
    problems = {one.name: one.problem for one in imported if one.problem}
    assert {one.name for one in imported if not one.problem} == {UNPLACED, NEGATIVE}
    assert "inf" in problems.pop(VOLUME)
    assert "this is not a LabelMe file, or it is damaged" in problems.pop(PICTURE)
    assert "the mask has shape (1000000, 1000000)" in problems.pop(SERIES)
    assert "nested too deep" in problems.pop(str(x / "flat" / "slice_000.json"))
    assert "no scan of" in problems.pop(str(x / "all.json"))
    assert problems == {}
