"""`tumorlens run` on what a PACS or a scanner gives: studies, zips, DICOMDIRs, and all that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)
from pydicom.fileset import FileSet

from data.phantom import phantom_volume
from data.readers import open_scan
from tests.dicom_files import IDENTIFIERS, PATIENT, save_series
from tests.files import table

STUDY = "1.2.840.77"
SICK = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))
HEALTHY = phantom_volume(1, "no_tumor", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))


def series(folder, phantom=SICK, plane="axial", **tags):
    return save_series(folder, phantom.image, phantom.affine, plane, **{"StudyInstanceUID": STUDY, **tags})


@pytest.fixture
def hospital(tmp_path):
    """A study of four series in one folder, as a PACS exports it."""
    folder = tmp_path / "hospital" / "study"
    for number, tags in (
        (1, {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (3, {"SeriesDescription": "t1 tra", "ContrastBolusAgent": None}),
        (5, {"SeriesDescription": "t1 tra km"}),
        (9, {"SeriesDescription": "dose report", "Modality": "CT"}),
    ):
        for path in series(tmp_path / "tmp", SICK if number == 5 else HEALTHY, SeriesNumber=number, **tags):
            (folder / "IMAGES").mkdir(parents=True, exist_ok=True)
            path.rename(folder / "IMAGES" / f"{number}_{path.name}")
    return tmp_path / "hospital"


def test_a_study_is_listed(tumorlens, hospital):
    result = tumorlens("run", hospital, "--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (taken,) = [line for line in lines if line.startswith("*")]
    assert "#5" in taken and "T1 after contrast agent" in taken and "t1 tra km" in taken
    assert "it is a localizer" in result.stdout and "its modality is CT, not MR" in result.stdout
    assert lines[-1] == "1 scan would be run (*)"
    listed = json.loads(tumorlens("run", hospital, "--list", "--json").stdout)
    assert [(s["number"], s["taken"]) for s in listed["series"]] == [(1, False), (3, False), (5, True), (9, False)]
    assert "description" not in listed["series"][0]
    assert not list(hospital.parent.glob("out*"))


def test_the_post_contrast_t1_of_a_study_is_run(tumorlens, hospital, tmp_path):
    result = tumorlens("run", hospital, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "study/IMAGES#5: #5 was taken of 4 series: T1 after contrast agent, by the header" in result.stderr
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#5" and row["label"] != "no_tumor"
    folder = tmp_path / "out" / "study" / "IMAGES#5"
    files = {"overlay.png", "montage.png", "mask.nii.gz", "mask.dcm", "measurements.dcm", "result.json"}
    assert {p.name for p in folder.iterdir()} == files
    content = json.loads((folder / "result.json").read_text())
    assert content["scan"]["dicom"]["series_number"] == 5
    assert content["scan"]["notes"] == ["#5 was taken of 4 series: T1 after contrast agent, by the header"]
    assert set(content["files"]) == files - {"result.json"}


def test_masks_lie_on_the_lesion(tumorlens, tmp_path):
    series(tmp_path / "in", plane="coronal")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--plane", "axial").exit_code == 0
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


@pytest.mark.parametrize("wanted", ["3", "#3", "uid"])
def test_a_series_is_chosen(tumorlens, hospital, tmp_path, wanted):
    if wanted == "uid":
        listed = json.loads(tumorlens("run", hospital, "--list", "--json").stdout)
        wanted = next(s["uid"] for s in listed["series"] if s["number"] == 3)
    assert tumorlens("run", hospital, "-o", tmp_path / "out", "--series", wanted).exit_code == 0
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#3"
    assert "names no contrast agent" in row["review"]


def test_all_series_that_are_scans_are_run(tumorlens, hospital, tmp_path):
    assert tumorlens("run", hospital, "-o", tmp_path / "out", "--series", "all").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["study/IMAGES#3", "study/IMAGES#5"]


def test_a_series_is_looked_for_in_all_inputs(tumorlens, hospital, tmp_path):
    series(tmp_path / "other", StudyInstanceUID="1.4", SeriesNumber=2)
    result = tumorlens("run", hospital, tmp_path / "other", "-o", tmp_path / "out", "--series", "5")
    assert result.exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["study/IMAGES#5"]


def test_the_list_has_the_names_of_the_table(tumorlens, tmp_path):
    for patient in ("p1", "p2"):
        series(tmp_path / patient / "s", StudyInstanceUID=f"1.{patient[1]}")
    inputs = (tmp_path / "p1", tmp_path / "p2")
    listed = json.loads(tumorlens("run", *inputs, "--list", "--json").stdout)
    text = tumorlens("run", *inputs, "--list").stdout
    assert [s["name"] for s in listed["series"]] == [s["name"] for s in listed["scans"]] == ["p1/s", "p2/s"]
    assert text.count("p1/s") == 1 and text.splitlines()[-1] == "2 scans would be run (*)"
    assert tumorlens("run", *inputs, "-o", tmp_path / "out", "--jobs", 2, "-v").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["p1/s", "p2/s"]


def test_no_two_scans_share_a_name_or_a_folder(tumorlens, tmp_path, monkeypatch):
    for part in ("a", "b", "c"):
        series(tmp_path / "dup" / part, SICK if part == "a" else HEALTHY, StudyInstanceUID="1.4", series="1.4.1")
    places = [tmp_path / "dup", *(tmp_path / "dup" / part for part in ("a", "b", "c"))]
    listed = json.loads(tumorlens("run", *places, "--list", "--json", "--frame", 0).stdout)["scans"]
    assert len({scan["name"] for scan in listed}) == len(listed) == 1  # one has all files of the others
    series(tmp_path / "two", StudyInstanceUID="1.5", SeriesNumber=1)
    for path in series(tmp_path / "tmp", StudyInstanceUID="1.6", SeriesNumber=1):
        path.rename(tmp_path / "two" / f"x{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "two", "--list", "--json").stdout)["scans"]
    assert sorted(scan["name"] for scan in listed) == ["two#1.1", "two#1.2"]
    monkeypatch.chdir(tmp_path)
    mixed = [tmp_path / "dup" / "a" / "IM0000", "dup/a/IM0001"]
    assert tumorlens("run", *mixed, "--list").exit_code == 0


def test_results_beside_their_source_hide_nothing(tumorlens, tmp_path):
    series(tmp_path / "study" / "s")
    assert tumorlens("run", tmp_path / "study", "-o", tmp_path / "study").exit_code == 0
    assert (tmp_path / "study" / "s" / "mask.dcm").is_file()
    listed = json.loads(tumorlens("run", tmp_path / "study", "--list", "--json").stdout)
    assert [(s["modality"], s["n_images"], s["taken"]) for s in listed["series"]] == [("MR", 16, True)]
    assert [scan["name"] for scan in listed["scans"]] == ["s"]


def test_the_list_says_what_the_headers_rule_out(tumorlens, tmp_path):
    series(tmp_path / "in" / "good", StudyInstanceUID="1.1")
    series(tmp_path / "in" / "nowhere", StudyInstanceUID="1.2", ImagePositionPatient=None)
    for echo in ("10", "80"):
        series(tmp_path / "in" / "echoes" / echo, series="1.3.1", StudyInstanceUID="1.3", EchoTime=echo)
    result = tumorlens("run", tmp_path / "in", "--list")
    assert result.exit_code == 1
    marks = {line.split()[0]: line for line in result.stdout.splitlines()[1:] if line[0] in "*!"}
    assert set(marks) == {"*", "!"} and result.stdout.splitlines()[-1] == "1 scan would be run (*)"
    assert "no Image Position), so they make no volume" in result.stdout
    assert "--frame 0 to 1 (0: echo time 10; 1: echo time 80)" in result.stdout
    assert tumorlens("run", tmp_path / "in" / "echoes", "--list", "--frame", 1).exit_code == 0


def test_files_of_several_studies_in_one_folder_keep_their_names(tumorlens, tmp_path):
    for name in ("one", "two"):
        (path,) = series(
            tmp_path / "tmp", phantom_volume(1, shape=(96, 112, 1)), StudyInstanceUID="1.1" if name == "one" else "1.2"
        )
        path.rename(tmp_path / f"{name}.dcm")
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.dcm").rename(tmp_path / "in" / f"{name}.dcm")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["one.dcm", "two.dcm"]


def test_equally_fitting_series_are_told(tumorlens, tmp_path):
    for number in (5, 6):
        series(tmp_path / "in" / str(number), SeriesNumber=number)
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [s["why"] for s in listed["series"] if s["taken"]] == [
        "#5 was taken of 2 series: T1 after contrast agent, by the header (#6 fit as well)"
    ]


def test_a_zip_that_is_reached_twice_is_run_once_and_inside_the_output(tumorlens, tmp_path):
    for number in (1, 2):
        for path in series(tmp_path / "tmp", SeriesNumber=1, StudyInstanceUID=f"1.{number}"):
            with zipfile.ZipFile(tmp_path / "two.zip", "a") as archive:
                archive.write(path, f"{number}/{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "two.zip", tmp_path / "two.zip", "--list", "--json").stdout)
    assert sorted(scan["name"] for scan in listed["scans"]) == ["two.zip#1.1", "two.zip#1.2"]
    from pipeline.inputs import collect

    for name in ("p", "q"):
        series(tmp_path / name / "same" / "s", StudyInstanceUID=f"2.{ord(name)}")
    inputs = [str(tmp_path / "p" / "same"), str(tmp_path / "q" / "same"), str(tmp_path / "two.zip")]
    jobs = collect(inputs, tmp_path / "out", tmp_path / "scratch").jobs
    assert len({job.folder for job in jobs}) == 4
    assert not any(PurePosixPath(job.folder).is_absolute() for job in jobs)


def test_what_may_not_be_read_is_told(tumorlens, tmp_path, monkeypatch):
    paths = series(tmp_path / "in" / "a")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != paths[3] and real(p, mode))
    listed = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert listed.exit_code == 1
    (error,) = json.loads(listed.stdout)["errors"]
    assert error["name"] == f"a/{paths[3].name}" and "Permission denied" in error["error"]


def test_linked_folders_are_searched_but_not_in_circles(tumorlens, tmp_path):
    series(tmp_path / "real")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [(s["name"], s["n_images"]) for s in listed["series"]] == [("link", 16)]


def test_a_report_named_by_itself_says_what_it_is(tumorlens, tmp_path):
    assert tumorlens("run", *series(tmp_path / "in")[:1], "-o", tmp_path / "out").exit_code == 0
    report = pydicom.dcmread(tmp_path / "in" / "IM0000")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.save_as(tmp_path / "sr.dcm")
    result = tumorlens("run", tmp_path / "sr.dcm", "-o", tmp_path / "out2")
    assert result.exit_code == 1 and "it holds no image but a Comprehensive SR" in result.stderr


def test_a_broken_gzip_in_a_folder_is_no_scan(tumorlens, tmp_path):
    series(tmp_path / "in")
    (tmp_path / "in" / "backup.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(30) + b"\xff" * 50)
    listed = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert listed.exit_code == 0 and len(json.loads(listed.stdout)["scans"]) == 1


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


def test_series_are_named_by_their_folders_and_zips(tumorlens, tmp_path):
    series(tmp_path / "in" / "a", SeriesNumber=2, StudyInstanceUID="1.1")
    series(tmp_path / "in" / "b" / "c", SeriesNumber=2, StudyInstanceUID="1.2")
    for path in series(tmp_path / "tmp", SeriesNumber=4, StudyInstanceUID="1.3"):
        with zipfile.ZipFile(tmp_path / "in" / "z.zip", "a") as archive:
            archive.write(path, f"x/y/{path.name}")
    names = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)["scans"]
    assert [scan["name"] for scan in names] == ["a", "b/c", "z.zip"]
    names = json.loads(tumorlens("run", tmp_path / "in" / "a", "--list", "--json").stdout)["scans"]
    assert [scan["name"] for scan in names] == ["a"]


def test_files_named_one_by_one_are_one_series(tumorlens, tmp_path):
    paths = series(tmp_path / "ser")
    listed = json.loads(tumorlens("run", *paths, "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["ser"]
    listed = json.loads(tumorlens("run", paths[3], "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == [paths[3].name]


def test_two_series_of_one_number_have_names_of_their_own(tumorlens, tmp_path):
    series(tmp_path / "in", series="1.9.1", SeriesNumber=4)
    for path in series(tmp_path / "tmp", series="1.9.2", SeriesNumber=4):
        path.rename(tmp_path / "in" / f"x{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json", "--series", "all").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["in#4.1", "in#4.2"]


def test_a_dicomdir_is_run(tumorlens, tmp_path):
    directory = FileSet()
    for path in series(tmp_path / "in"):
        directory.add(path)
    directory.write(tmp_path / "disk")
    for place in (tmp_path / "disk" / "DICOMDIR", tmp_path / "disk"):
        listed = json.loads(tumorlens("run", place, "--list", "--json").stdout)
        assert [s["n_images"] for s in listed["series"]] == [16]


def test_a_zipped_series_gives_the_same_as_its_folder(tumorlens, tmp_path):
    paths = series(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    assert tumorlens("run", tmp_path / "in", tmp_path / "z.zip", "-o", tmp_path / "out").exit_code == 0
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


def test_no_identifier_leaves_the_dicom_files(tumorlens, tmp_path):
    series(tmp_path / "in", SeriesDescription="t1 +c of Doe Jane", BodyPartExamined="KNEE")
    (tmp_path / "in" / "broken.dcm").write_bytes((tmp_path / "in" / "IM0000").read_bytes()[:900])
    out = tmp_path / "out"
    listed = tumorlens("run", tmp_path / "in", "--list")
    result = tumorlens("run", tmp_path / "in", "-o", out, "-v", "--secondary-capture")
    told = [listed.output, result.output, " ".join(p.name for p in out.rglob("*"))]
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            told.append(raw.decode("latin-1"))
    assert len(told) >= 7
    for word in IDENTIFIERS:
        assert not any(word in text for text in told), word
    for name in ("mask.dcm", "measurements.dcm", "overlay.dcm"):
        made = pydicom.dcmread(out / "in" / name)
        assert made.PatientID == PATIENT["PatientID"] and str(made.PatientName) == PATIENT["PatientName"]
        assert made.StudyInstanceUID == STUDY
        assert "PatientComments" not in made and "ImageComments" not in made


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
    (folder / "damaged.zip").write_bytes(b"PK\x03\x04 this is no archive")
    series(folder / "volumes", StudyInstanceUID="1.7", series="1.7.1", EchoTime="10")
    series(folder / "volumes" / "b", StudyInstanceUID="1.7", series="1.7.1", EchoTime="80")
    result = tumorlens("run", folder, "-o", tmp_path / "out")
    assert result.exit_code == 1
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert "Traceback" not in result.output
    assert rows["good"]["label"] and not rows["good"]["review"]
    assert "1 of 16 slices missing" in rows["gap"]["review"] and rows["gap"]["label"]
    for name, told in {
        "cut": f"{cut[5].name}: the pixel data are damaged or cut off",
        "ct": "no series can be run: #5: its modality is CT, not MR",
        "nowhere": "none of the 16 images says where it lies",
        "private": "transfer syntax 1.2.3.4.5.6 cannot be decoded",
        "volumes": "holds 2 volumes at the same place",
    }.items():
        assert told in rows[name]["error"], name
        assert str(folder / name) in rows[name]["error"]
        assert not (tmp_path / "out" / name).exists() or not any((tmp_path / "out" / name).iterdir())
    assert "leads out of it" in rows["evil.zip"]["error"]
    assert "damaged" in rows["damaged.zip"]["error"]
    assert not (tmp_path / "evil.dcm").exists()
    assert not list((tmp_path / "out").rglob(".part*"))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_of_acquisition_go_to_the_networks_at_true_aspect(tumorlens, tmp_path, plane):
    """Thick slices in each plane: the overlay shows the acquired slice, and the tumor is found in it."""
    spacing = {"axial": (2.0, 2.0, 6.0), "coronal": (2.0, 6.0, 2.0), "sagittal": (6.0, 2.0, 2.0)}[plane]
    shape = tuple(round(n / s) for n, s in zip((192, 224, 200), spacing, strict=True))
    phantom = phantom_volume(7, "meningioma", shape, spacing)
    series(tmp_path / "in", phantom, plane)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    content = json.loads((tmp_path / "out" / "in" / "result.json").read_text())
    assert content["scan"]["plane"] == plane
    assert content["lesions"]
    mask = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "out" / "in" / "mask.nii.gz")).dataobj)
    assert 2 * (mask * phantom.mask).sum() / (mask.sum() + phantom.mask.sum()) > 0.7


def test_a_picture_has_one_plane_and_a_volume_of_unknown_orientation_none_by_name(tumorlens, tmp_path):
    from data.writers import write_png

    write_png(tmp_path / "in" / "a.png", phantom_volume(7).image[:, :, 10].astype(np.uint8))
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 96 112 16\nElementSpacing = 2 2 7\nElementType = MET_SHORT\n"
    raw = header + b"ElementDataFile = LOCAL\n" + SICK.image.astype("<i2").tobytes(order="F")
    (tmp_path / "in" / "b.mha").write_bytes(raw)
    result = tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--plane", "coronal")
    assert result.exit_code == 1
    picture, volume = table(tmp_path / "out")
    assert picture["label"] and "orientation is not known, so it has no coronal slices" in volume["error"]


def test_results_among_the_inputs_are_left_out(tumorlens, tmp_path):
    series(tmp_path / "in")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "out").exit_code == 0
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [s["modality"] for s in listed["series"]] == ["MR"]


def test_a_scan_that_cannot_be_run_has_its_row_even_alone(tumorlens, tmp_path):
    (path,) = series(tmp_path / "ct", phantom_volume(1, shape=(96, 112, 1)), Modality="CT")
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04 this is no archive")
    for place, told in ((tmp_path / "ct", "CT, not MR"), (path, "CT, not MR"), (tmp_path / "z.zip", "damaged")):
        result = tumorlens("run", place, "-o", tmp_path / "out", "--overwrite")
        assert result.exit_code == 1 and told in result.stderr
        (row,) = table(tmp_path / "out")
        assert told in row["error"] and str(place) in row["error"]


def test_a_folder_without_an_output_is_wrong_use(tumorlens, tmp_path):
    series(tmp_path / "in")
    result = tumorlens("run", tmp_path / "in")
    assert result.exit_code == 2 and "-o OUT is missing" in result.output
