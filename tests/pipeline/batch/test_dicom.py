"""`tumorlens run` on DICOM files as a PACS or a scanner exports them, and on their flaws."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)
from pydicom.fileset import FileSet

from tests.scans.dicom import PATIENT, edit
from tests.scans.pictures import table
from tests.scans.studies import SICK, series
from tumorlens.data.dicom.dicomdir import read_dicomdir
from tumorlens.data.formats.open import open_scan
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions


def test_the_post_contrast_t1_of_a_study_is_run(tumorlens, hospital, tmp_path):
    result = tumorlens("run", hospital, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "study/IMAGES#5: #5 was chosen from 4 series: T1 after contrast agent, by the header" in result.stderr
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#5" and row["label"] != "no_tumor"
    folder = tmp_path / "out" / "study" / "IMAGES#5"
    files = {
        "overlay.png",
        "montage.png",
        "mask.nii.gz",
        "lesions.nii.gz",
        "mask.dcm",
        "measurements.dcm",
        "result.json",
    }
    assert {p.name for p in folder.iterdir()} == files
    content = json.loads((folder / "result.json").read_text())
    assert content["scan"]["dicom"]["series_number"] == 5
    assert content["scan"]["notes"] == [
        "#5 was chosen from 4 series: T1 after contrast agent, by the header; not run: #1, #3, #9"
    ]
    assert set(content["files"]) == files - {"result.json"}


def check_mask(pipeline, tmp_path):
    series(tmp_path / "in", plane="coronal")
    jobs = collect([str(tmp_path / "in")], tmp_path / "out", tmp_path / "scratch").jobs
    assert run_batch(pipeline, jobs, tmp_path / "out", options=RunOptions(plane="axial")).failed == 0
    folder = tmp_path / "out" / "in"
    mask = nib.load(folder / "mask.nii.gz")
    scan = open_scan(tmp_path / "in")
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    in_ras = np.asarray(nib.as_closest_canonical(mask).dataobj)
    overlap = 2 * (in_ras * SICK.mask).sum() / (in_ras.sum() + SICK.mask.sum())
    assert overlap > 0.8
    (lesion, *_) = json.loads((folder / "result.json").read_text())["lesions"]
    truth = SICK.affine @ [*np.argwhere(SICK.mask).mean(axis=0), 1]
    assert np.linalg.norm(np.array(lesion["centroid_ras_mm"]) - truth[:3]) < 4
    assert lesion["side"] == ("right" if truth[0] > 10 else "left" if truth[0] < -10 else "midline")
    assert lesion["volume_ml"] == pytest.approx(SICK.mask.sum() * 28 / 1000, rel=0.3)


def test_masks_lie_on_the_lesion(pipeline, tmp_path):
    check_mask(pipeline, tmp_path)


@pytest.mark.slow
def test_masks_of_the_shipped_networks_lie_on_the_lesion(shipped, tmp_path):
    check_mask(shipped, tmp_path)


def test_all_series_that_are_scans_are_run(tumorlens, hospital, tmp_path):
    assert tumorlens("run", hospital, "-o", tmp_path / "out", "--series", "all").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["study/IMAGES#3", "study/IMAGES#5"]


def test_a_file_that_is_left_out_may_have_a_name_that_is_not_unicode(tumorlens, tmp_path):
    paths = series(tmp_path / "in")
    edit(paths[-1:], PhotometricInterpretation="PALETTE COLOR")
    try:
        paths[-1].rename(Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/M\xfcller")))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    done = tumorlens("run", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (row,) = table(tmp_path / "out")
    assert "1 of 16 files were left out (M\\udcfcller: it holds color" in row["review"]


def test_a_series_is_looked_for_in_all_inputs(tumorlens, hospital, tmp_path):
    series(tmp_path / "other", StudyInstanceUID="1.4", SeriesNumber=2)
    result = tumorlens("run", hospital, tmp_path / "other", "-o", tmp_path / "out", "--series", "5")
    assert result.exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["study/IMAGES#5"]


def test_a_report_that_is_given_alone_is_named_in_the_error(tumorlens, tmp_path):
    assert tumorlens("run", *series(tmp_path / "in")[:1], "-o", tmp_path / "out").exit_code == 0
    report = pydicom.dcmread(tmp_path / "in" / "IM0000")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.save_as(tmp_path / "sr.dcm")
    result = tumorlens("run", tmp_path / "sr.dcm", "-o", tmp_path / "out2")
    assert result.exit_code == 1 and "it holds no image but a Comprehensive SR" in result.stderr


@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr"])
def test_continue_sees_a_change_behind_a_header(tumorlens, tmp_path, suffix):
    place = tmp_path / "in" / f"v.{suffix}"
    place.parent.mkdir()
    if suffix == "hdr":
        nib.save(nib.Nifti1Pair(SICK.image, SICK.affine), place)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(SICK.image.T), str(place))
    (voxels,) = [p for p in place.parent.iterdir() if p != place]
    run = ("run", place, "-o", tmp_path / "out")
    assert tumorlens(*run).exit_code == 0
    assert "1 kept" in tumorlens(*run, "--continue").stdout
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert "kept" not in tumorlens(*run, "--continue").stdout


def test_a_series_that_is_not_there_or_cannot_be_run(tumorlens, hospital, tmp_path):
    result = tumorlens("run", hospital, "-o", tmp_path / "out", "--series", "77")
    assert result.exit_code == 2 and "no series is called '77'; there is #1, #3, #5, #9" in result.stderr
    result = tumorlens("run", hospital, "-o", tmp_path / "out", "--series", "9")
    assert result.exit_code == 1 and "series #9 cannot be run: its modality is CT, not MR" in result.stderr
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#9" and row["error"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_volume_in_pieces_is_run_as_one(tumorlens, tmp_path, alone):
    """Each slice, or only every third one, has a Series Instance UID of its own."""
    paths = series(tmp_path / "in")
    (whole,) = [p for p in [tmp_path / "whole"] if tumorlens("run", tmp_path / "in", "-o", p).exit_code == 0]
    edit(paths, SeriesInstanceUID=lambda k: f"1.2.77.{9 + k if alone or k % 3 == 0 else 1}")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    (row,), (expected,) = table(tmp_path / "out"), table(whole)
    assert row == expected and not row["review"]
    content = json.loads((tmp_path / "out" / "in" / "result.json").read_text())
    assert content["scan"]["dicom"]["series_instance_uid"] == "1.2.77.9"
    (note,) = content["scan"]["notes"]
    assert ("16 series, one for each slice, were joined" if alone else "7 series, of ") in note
    mask, report = (pydicom.dcmread(tmp_path / "out" / "in" / name) for name in ("mask.dcm", "measurements.dcm"))
    of_mask = {(s.SeriesInstanceUID, len(s.ReferencedInstanceSequence)) for s in mask.ReferencedSeriesSequence}
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    of_report = {(s.SeriesInstanceUID, len(s.ReferencedSOPSequence)) for s in study.ReferencedSeriesSequence}
    expected_groups = {(f"1.2.77.{9 + k}", 1) for k in range(16) if alone or k % 3 == 0} | (
        {("1.2.77.1", 10)} - {("1.2.77.1", 10 * alone)}
    )
    assert of_mask == expected_groups
    assert of_report == expected_groups | {(mask.SeriesInstanceUID, 1)}
    by_one_uid = tumorlens("run", tmp_path / "in", "--list", "--series", "1.2.77.12")
    assert by_one_uid.stdout.splitlines()[-1] == "1 scan would be run (*)"


def test_pieces_that_make_no_volume_are_refused(tumorlens, tmp_path):
    paths = series(tmp_path / "in")
    edit(paths, SeriesInstanceUID=lambda k: f"1.2.77.{k}", FrameOfReferenceUID=lambda k: f"1.2.78.{k}")
    result = tumorlens("run", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    (row,) = table(tmp_path / "out")
    assert row["error"].count("one of 16 single slices") == 1 and "Frame of Reference UIDs differ" in row["error"]
    assert tumorlens("run", paths[7], "-o", tmp_path / "one").exit_code == 0  # which you name yourself


def test_files_that_a_dicomdir_lists_and_that_are_missing_are_named(tumorlens, tmp_path):
    directory = FileSet()
    for path in series(tmp_path / "in"):
        directory.add(path)
    directory.write(tmp_path / "disk" / "export")
    files, _ = read_dicomdir(tmp_path / "disk" / "export" / "DICOMDIR")
    assert tumorlens("run", tmp_path / "disk", "-o", tmp_path / "whole").exit_code == 0
    for file in files[2:4]:
        file.unlink()
    gone = files[2].relative_to(tmp_path / "disk" / "export").as_posix()
    note = f"2 of the 16 files that the DICOMDIR lists are missing (first: {gone})"
    done = tumorlens("run", tmp_path / "disk", "-o", tmp_path / "out")
    assert done.exit_code == 0 and done.stderr.count(note) == 1
    (result,) = (tmp_path / "out").rglob("result.json")
    assert note in json.loads(result.read_text())["scan"]["notes"]
    (whole,) = (tmp_path / "whole").rglob("result.json")
    assert json.loads(whole.read_text())["scan"]["notes"] == []


def test_a_mosaic_is_refused_with_what_to_do(tumorlens, tmp_path):
    series(tmp_path / "in", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 1
    (row,) = table(tmp_path / "out")
    assert "Siemens mosaic" in row["error"] and "convert it with dcm2niix and run the NIfTI" in row["error"]


def test_a_zipped_series_gives_the_same_as_its_folder(tumorlens, tmp_path):
    paths = series(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    for place in (tmp_path / "in", tmp_path / "z.zip"):  # together, they are one scan
        assert tumorlens("run", place, "-o", tmp_path / "out", "--continue").exit_code == 0
    folder, zipped = table(tmp_path / "out")
    assert (folder.pop("scan"), zipped.pop("scan")) == ("in", "z.zip")
    assert folder == zipped
    made = [json.loads((tmp_path / "out" / n / "result.json").read_text())["made_of"] for n in ("in", "z")]
    assert made[0] == made[1]


def test_continue_keeps_a_series_and_sees_a_change(tumorlens, tmp_path):
    paths = series(tmp_path / "in")
    run = ("run", tmp_path / "in", "-o", tmp_path / "out")
    assert tumorlens(*run).exit_code == 0
    assert "1 kept" in tumorlens(*run, "--continue").stdout
    assert "kept" not in tumorlens(*run, "--continue", "--secondary-capture").stdout
    assert (tmp_path / "out" / "in" / "overlay.dcm").is_file()
    ds = pydicom.dcmread(paths[0])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(paths[0])
    assert "kept" not in tumorlens(*run, "--continue", "--secondary-capture").stdout


def test_identifiers_are_kept_on_demand(tumorlens, tmp_path):
    series(tmp_path / "in")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--keep-identifiers").exit_code == 0
    content = json.loads((tmp_path / "out" / "in" / "result.json").read_text())
    assert content["scan"]["identifiers"]["PatientID"] == PATIENT["PatientID"]


def test_every_flaw_has_its_row_and_the_rest_is_done(tumorlens, tmp_path):
    folder = tmp_path / "in"
    series(folder / "good", StudyInstanceUID="1.1")
    gap = series(folder / "gap", StudyInstanceUID="1.2")
    gap[8].unlink()
    cut = series(folder / "cut", StudyInstanceUID="1.3")
    cut[5].write_bytes(cut[5].read_bytes()[:-9000])
    series(folder / "ct", StudyInstanceUID="1.4", Modality="CT")
    series(folder / "nowhere", StudyInstanceUID="1.5", ImagePositionPatient=None)
    for path in series(folder / "private", StudyInstanceUID="1.6"):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = "1.2.3.4.5.6"
        ds.save_as(path, implicit_vr=False, little_endian=True)
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("../evil.dcm", b"x")
    (folder / "damaged.zip").write_bytes(b"PK\x03\x04 this is not an archive")
    series(folder / "volumes", StudyInstanceUID="1.7", series="1.7.1", EchoTime="10")
    series(folder / "volumes" / "b", StudyInstanceUID="1.7", series="1.7.1", EchoTime="80")
    result = tumorlens("run", folder, "-o", tmp_path / "out")
    assert result.exit_code == 1
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert "Traceback" not in result.output
    assert rows["good"]["label"] and not rows["good"]["review"]
    assert "1 of 16 slices missing" in rows["gap"]["review"] and rows["gap"]["label"]
    for name, message in {
        "cut": f"{cut[5].name}: the pixel data are damaged or cut off; delete or replace this file",
        "ct": "no series can be run: #5: its modality is CT, not MR",
        "nowhere": "none of the 16 images says where it lies",
        "private": "transfer syntax 1.2.3.4.5.6 cannot be decoded",
        "volumes": "holds 2 volumes at the same place",
    }.items():
        assert message in rows[name]["error"], name
        assert str(folder / name) in rows[name]["error"]
        assert not (tmp_path / "out" / name).exists() or not any((tmp_path / "out" / name).iterdir())
    assert "leads out of it" in rows["evil.zip"]["error"]
    assert "damaged" in rows["damaged.zip"]["error"]
    assert not (tmp_path / "evil.dcm").exists()
    assert not list((tmp_path / "out").rglob(".part*"))


def check_plane(pipeline, tmp_path, plane):
    """Run thick slices in a plane: the tumor is found in the acquired slices."""
    spacing = {"axial": (2.0, 2.0, 6.0), "coronal": (2.0, 6.0, 2.0), "sagittal": (6.0, 2.0, 2.0)}[plane]
    shape = tuple(round(n / s) for n, s in zip((192, 224, 200), spacing, strict=True))
    phantom = phantom_volume(7, "meningioma", shape, spacing)
    series(tmp_path / "in", phantom, plane)
    jobs = collect([str(tmp_path / "in")], tmp_path / "out", tmp_path / "scratch").jobs
    assert run_batch(pipeline, jobs, tmp_path / "out").failed == 0
    content = json.loads((tmp_path / "out" / "in" / "result.json").read_text())
    assert content["scan"]["plane"] == plane
    assert content["lesions"]
    mask = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "out" / "in" / "mask.nii.gz")).dataobj)
    assert 2 * (mask * phantom.mask).sum() / (mask.sum() + phantom.mask.sum()) > 0.7


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_of_acquisition_are_cut_as_they_were_acquired(pipeline, tmp_path, plane):
    check_plane(pipeline, tmp_path, plane)


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_of_acquisition_go_to_the_shipped_networks_at_true_aspect(shipped, tmp_path, plane):
    check_plane(shipped, tmp_path, plane)


def test_a_picture_has_one_plane_and_a_volume_of_unknown_orientation_none_by_name(tumorlens, tmp_path):
    write_png(tmp_path / "in" / "a.png", SICK.image[:, :, 7].astype(np.uint8))
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 96 112 16\nElementSpacing = 2 2 7\nElementType = MET_SHORT\n"
    raw = header + b"ElementDataFile = LOCAL\n" + SICK.image.astype("<i2").tobytes(order="F")
    (tmp_path / "in" / "b.mha").write_bytes(raw)
    result = tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--plane", "coronal")
    assert result.exit_code == 1
    picture, volume = table(tmp_path / "out")
    assert picture["label"] and "orientation is not known, so it has no coronal slices" in volume["error"]


def test_a_scan_that_cannot_be_run_has_its_row_even_alone(tumorlens, tmp_path):
    (path,) = series(tmp_path / "ct", phantom_volume(1, shape=(96, 112, 1)), Modality="CT")
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04 this is not an archive")
    for place, message in ((tmp_path / "ct", "CT, not MR"), (path, "CT, not MR"), (tmp_path / "z.zip", "damaged")):
        result = tumorlens("run", place, "-o", tmp_path / "out", "--overwrite")
        assert result.exit_code == 1 and message in result.stderr
        (row,) = table(tmp_path / "out")
        assert message in row["error"] and str(place) in row["error"]


def test_a_folder_without_an_output_is_wrong_use(tumorlens, tmp_path):
    series(tmp_path / "in")
    result = tumorlens("run", tmp_path / "in")
    assert result.exit_code == 2 and "-o OUT is missing" in result.output
