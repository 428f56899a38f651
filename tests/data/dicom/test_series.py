"""Files -> series -> the one to run."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from tests.scans.dicom import IDENTIFIERS, headers, save_enhanced, save_series
from tumorlens.data.dicom.dicomdir import is_dicomdir, read_dicomdir
from tumorlens.data.dicom.sequence import contrast_of, weighting_of
from tumorlens.data.dicom.series import choose_series, find_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan

STUDY = "1.2.840.1"
VOLUME = np.random.default_rng(2).integers(0, 900, (12, 14, 9)).astype(np.int16)
AFFINE = np.diag([1.0, 1, 5, 1])
T1C = {"SeriesDescription": "t1 se tra +c", "SeriesNumber": 8}
T1 = {"SeriesDescription": "t1 se tra", "SeriesNumber": 3, "ContrastBolusAgent": None}
T2 = {"SeriesDescription": "t2 tse tra", "SeriesNumber": 4, "ContrastBolusAgent": None}
LOCALIZER = {"SeriesDescription": "localizer", "SeriesNumber": 1, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
CT = {"Modality": "CT", "SeriesNumber": 20}


def study(folder, *kinds, volume=VOLUME):
    """All series in one folder, files mixed."""
    for index, kind in enumerate(kinds):
        for path in save_series(folder / "tmp", volume + index, AFFINE, StudyInstanceUID=STUDY, **kind):
            path.rename(folder / f"{index}-{path.name}")
    (folder / "tmp").rmdir()
    return sorted(folder.iterdir())


def test_files_of_a_folder_are_grouped_by_series(tmp_path):
    found = find_series(study(tmp_path, T1, T1C, T2))
    assert not found.problems and not found.others
    assert [(s.number, s.n_images, s.weighting, s.contrast, s.plane) for s in found.series] == [
        (3, 9, "T1", None, "axial"),
        (4, 9, "T2", None, "axial"),
        (8, 9, "T1", True, "axial"),
    ]


@pytest.mark.parametrize(
    ("kinds", "number", "said"),
    [
        ((T2, T1, T1C, LOCALIZER), 8, "series: T1 after contrast agent, by the header"),
        ((T2, T1), 3, "name no T1 after contrast agent"),
        ((T2, LOCALIZER), 4, "(T2)"),
        ((T1C, {**T1C, "SeriesNumber": 9, "ImageType": ["DERIVED", "SECONDARY", "MPR"]}), 8, "series: T1 after"),
        ((LOCALIZER, CT, T1), 3, "#3 was chosen from 3 series"),
        ((T1C,), 8, ""),
    ],
)
def test_the_post_contrast_t1_is_preferred(tmp_path, kinds, number, said):
    chosen, why = choose_series(find_series(study(tmp_path, *kinds)).series)
    assert chosen.number == number
    assert said in why
    assert open_scan(tmp_path).dicom.facts["series_number"] == number


def test_a_study_without_a_usable_series_is_refused_with_all_reasons(tmp_path):
    study(tmp_path, LOCALIZER, CT)
    with pytest.raises(
        InputError, match=r"no series can be run: #1: it is a localizer; #20: its modality is CT, not MR"
    ):
        open_scan(tmp_path)


def test_a_series_is_chosen_by_uid_or_number(tmp_path):
    files = study(tmp_path, T1, T1C, T2)
    by_number = open_scan(tmp_path, series="4")
    uid = next(s.uid for s in find_series(files).series if s.number == 4)
    assert np.array_equal(open_scan(tmp_path, series=uid).voxels, by_number.voxels)
    assert by_number.dicom.facts["series_number"] == 4
    with pytest.raises(InputError, match=r"0 series are called '77'; there are #3 \(.*, #4 \(.*, #8 \("):
        open_scan(tmp_path, series="77")


@pytest.mark.parametrize(
    ("description", "weighting", "contrast"),
    [
        ("T1 MPRAGE +C", "T1", True),
        ("t1_mprage_sag_p2_iso_KM", "T1", True),
        ("Ax T1 POST GAD", "T1", True),
        ("AX T1 SE PRE", "T1", False),
        ("T1W w/o contrast", "T1", False),
        ("T1 without Gd", "T1", False),
        ("t1 non-contrast", "T1", False),
        ("SAG T1 FLAIR", "T1", None),
        ("AX T2 FLAIR", "T2", None),
        ("T2* GRE", "susceptibility", None),
        ("ep2d_diff_b1000_ADC", "diffusion", None),
        ("3D BRAVO C+", "T1", True),
        ("t1 tse tra posterior fossa", "T1", None),
        ("T1 post fossa", "T1", None),
        ("MRA phase contrast", "angiography", None),
        ("AX PD", "PD", None),
        ("SWI mIP", "susceptibility", None),
        ("DSC perfusion", "perfusion", None),
        ("t1_vibe_dce", "perfusion", None),
        ("T1 MRA TWIST +C", "angiography", True),
        ("T1 MAP", "a map", None),
        ("T1 GD SUB", "a map", True),
        ("AX T1 POST GAD PRE-OP", "T1", True),
        ("STEALTH T1 +C PRE OP", "T1", True),
        ("T1 W/WO", "T1", None),
        *(
            (f"AX T1 {said}", "T1", True)
            for said in ("C+", "nach KM", "con contrasto", "met contrast", "mit KM", "T1-GD")
        ),
        *((f"AX T1 {said}", "T1", False) for said in ("C-", "-C", "-GD", "Gd-", "GD(-)", "CE-", "vor KM", "prae KM")),
        *((f"AX T1 {said}", "T1", False) for said in ("SIN CONTRASTE", "SENZA MDC", "zonder contrast", "avant gado")),
        *((f"AX T1 {said}", "T1", False) for said in ("before contrast", "sem contraste", "w/o", "non contrast")),
        *((f"T1 {said}", "T1", None) for said in ("high contrast", "soft tissue contrast", "ax nativ nach KM-Gabe")),
    ],
)
def test_words_of_the_header(description, weighting, contrast):
    header = headers(SeriesDescription=description, ProtocolName="", ContrastBolusAgent=None)
    assert (weighting_of(header), contrast_of(header)) == (weighting, contrast)


@pytest.mark.parametrize(
    ("description", "protocol", "agent", "contrast"),
    [
        ("AX T1 POST", "BRAIN W/WO CONTRAST", "gadobutrol", True),
        ("AX T1 SE PRE", "BRAIN W/WO CONTRAST", "gadobutrol", False),
        ("AX T1", "BRAIN W/WO CONTRAST", None, None),
        ("AX T1", "BRAIN W/WO CONTRAST", "gadobutrol", True),
        ("AX T1", "Brain with and without contrast", None, None),
        ("AX T1", "MRI BRAIN WITH CONTRAST", None, True),
        ("AX T1", "head pre", None, False),
    ],
)
def test_the_series_own_words_go_before_those_of_the_examination(description, protocol, agent, contrast):
    header = headers(SeriesDescription=description, ProtocolName=protocol, ContrastBolusAgent=agent)
    assert contrast_of(header) is contrast


def test_one_volume_goes_before_several(tmp_path):
    """A series of echoes would ask for a frame; the plain one beside it is what is wanted."""
    for echo in ("5", "30"):
        save_series(tmp_path / echo, VOLUME, AFFINE, series="1.5", StudyInstanceUID=STUDY, **T1C, EchoTime=echo)
    save_series(tmp_path / "b", VOLUME, AFFINE, StudyInstanceUID=STUDY, **{**T1C, "SeriesNumber": 12})
    series = find_series(sorted(p for p in tmp_path.rglob("*") if p.is_file())).series
    assert [(s.number, s.n_volumes) for s in series] == [(8, 2), (12, 1)]
    assert choose_series(series)[0].number == 12


@pytest.mark.parametrize(
    ("tags", "weighting"),
    [
        ({"RepetitionTime": "500", "EchoTime": "12"}, "T1"),
        ({"RepetitionTime": "4000", "EchoTime": "100"}, "T2"),
        ({"RepetitionTime": "3000", "EchoTime": "20"}, "PD"),
        ({"RepetitionTime": "2000", "EchoTime": "10", "InversionTime": "900"}, "T1"),
        ({"RepetitionTime": "9", "EchoTime": "4", "ScanningSequence": "GR"}, "T1"),
        ({"RepetitionTime": "700", "EchoTime": "25", "ScanningSequence": "GR"}, "susceptibility"),
        ({"RepetitionTime": None, "EchoTime": None}, None),
    ],
)
def test_times_of_the_header_speak_where_the_words_do_not(tags, weighting):
    assert weighting_of(headers(SeriesDescription="tra", **tags)) == weighting


@pytest.mark.parametrize(("agent", "given"), [("Gadovist", True), ("none", False), ("NO", False), (None, None)])
def test_the_agent_of_the_header(agent, given):
    assert contrast_of(headers(SeriesDescription="t1 tra", ContrastBolusAgent=agent)) is given


def test_colour_and_secondary_captures_are_refused(tmp_path):
    (path,) = save_series(tmp_path, VOLUME[..., :1], AFFINE)
    ds = pydicom.dcmread(path)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, bytes(ds.Rows * ds.Columns * 3)
    ds.save_as(path)
    with pytest.raises(InputError, match="color pictures"):
        open_scan(path)


def test_the_description_comes_without_the_patient(tmp_path):
    files = study(tmp_path, {**T1C, "SeriesDescription": "Doe t1 +c PID-77881 jane"})
    (series,) = find_series(files).series
    assert series.description.startswith("*** t1 +c")
    assert not any(word.lower() in series.description.lower() for word in IDENTIFIERS)


def test_short_names_are_starred_as_words(tmp_path):
    files = study(tmp_path, {**T1C, "PatientName": "Li^Bo", "SeriesDescription": "t1 +c Li_Bo limbo"})
    assert find_series(files).series[0].description == "t1 +c ***_*** limbo"


def test_a_series_without_number_goes_by_its_tag(tmp_path):
    study(tmp_path, {**T1C, "SeriesNumber": None, "series": "1.2.3.12345678"}, T1)
    assert open_scan(tmp_path, series="#12345678").dicom.facts["series_number"] is None
    with pytest.raises(InputError, match="0 series are called 'None'"):
        open_scan(tmp_path, series="None")


def test_an_enhanced_file_lists_its_plane(tmp_path):
    ds = pydicom.dcmread(save_enhanced(tmp_path / "e.dcm", VOLUME, AFFINE, "sagittal"))
    orientation = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = orientation
    ds.save_as(tmp_path / "e.dcm")
    assert find_series([tmp_path / "e.dcm"]).series[0].plane == "sagittal"


def test_unreadable_files_are_told_beside_the_series(tmp_path):
    files = study(tmp_path, T1C)
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[:140])
    assert "1 DICOM file could not be read (cut)" in open_scan(tmp_path).warnings


@pytest.mark.parametrize("name", ["../outside/IM0000", "..\\outside\\IM0000", "/outside/IM0000"])
def test_a_dicomdir_cannot_point_out_of_its_medium(tmp_path, name):
    save_series(tmp_path / "outside", VOLUME[..., :1], AFFINE)
    (file,) = save_series(tmp_path / "in", VOLUME[..., :1], AFFINE)
    directory = FileSet()
    directory.add(file)
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    ds = pydicom.dcmread(path)
    for record in ds.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.add_new(
                "ReferencedFileID",
                "CS",
                name.replace("/outside", str(tmp_path / "outside")) if name.startswith("/") else name.split("\\"),
            )
    pydicom.dcmwrite(path, ds)
    with pytest.raises(InputError, match="lists no file"):
        read_dicomdir(path)


def test_other_objects_are_passed_over_and_cut_off_files_told(tmp_path):
    files = study(tmp_path, T1C)
    report = headers(Modality="SR")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.file_meta = pydicom.dcmread(files[0]).file_meta
    report.save_as(tmp_path / "report", enforce_file_format=True)
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[:140])
    (tmp_path / "late").write_bytes(files[0].read_bytes()[:700])  # after its class, before its size
    found = find_series(sorted(tmp_path.iterdir()))
    assert [s.n_images for s in found.series] == [9]
    assert [(path.name, "cut off before" in told) for path, told in found.problems] == [("cut", True), ("late", True)]
    assert [(path.name, told) for path, told in found.others] == [
        ("report", "it holds no image but a Comprehensive SR")
    ]


@pytest.mark.parametrize("differs", [{"StudyInstanceUID": "1.99"}, {"PatientID": "another"}])
def test_patients_are_not_mixed_whatever_the_uids_say(tmp_path, differs):
    shared = {"series": "1.2.3", "StudyInstanceUID": "1.98"}
    save_series(tmp_path / "a", VOLUME, AFFINE, **shared)
    between = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2.5], [0, 0, 0, 0]])
    save_series(tmp_path / "b", VOLUME, between, **{**shared, **differs})
    found = find_series(p for p in tmp_path.rglob("*") if p.is_file())
    assert [s.n_images for s in found.series] == [9, 9]
    assert len({s.study for s in found.series}) == 2
    with pytest.raises(InputError, match="several studies"):
        open_scan(tmp_path)


def test_series_that_lost_their_uid_are_told_apart(tmp_path):
    study(tmp_path, {**T1, "SeriesInstanceUID": None}, {**T1C, "SeriesInstanceUID": None})
    found = find_series(sorted(tmp_path.iterdir()))
    assert [(s.number, s.n_images) for s in found.series] == [(3, 9), (8, 9)]


def test_the_head_goes_before_the_spine(tmp_path):
    spine = {**T1C, "SeriesNumber": 2, "SeriesDescription": "SAG T1 POST", "BodyPartExamined": "CSPINE"}
    other = {**T1C, "SeriesNumber": 3, "SeriesDescription": "t1 +c C-spine"}
    head = {**T1, "SeriesNumber": 7}
    assert choose_series(find_series(study(tmp_path, spine, other, head)).series)[0].number == 7


def test_a_file_without_modality_is_judged_by_its_class(tmp_path):
    paths = save_series(tmp_path, VOLUME, AFFINE, Modality=None)
    assert open_scan(tmp_path).n_slices == 9
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.save_as(path)
    with pytest.raises(InputError, match="it is a CT Image, not MR"):
        open_scan(tmp_path)


def test_several_studies_are_not_mixed(tmp_path):
    save_series(tmp_path / "a", VOLUME, AFFINE)
    save_series(tmp_path / "b", VOLUME, AFFINE)
    with pytest.raises(InputError, match="several studies"):
        open_scan(tmp_path)


def test_a_dicomdir_leads_to_its_files(tmp_path):
    files = save_series(tmp_path / "in", VOLUME, AFFINE)
    directory = FileSet()
    for file in files:
        directory.add(file)
    directory.write(tmp_path / "disk")
    path = tmp_path / "disk" / "DICOMDIR"
    assert is_dicomdir(path) and not is_dicomdir(files[0])
    listed, missing = read_dicomdir(path)
    assert (len(listed), missing) == (9, 0)
    assert np.array_equal(open_scan(path).voxels, open_scan(tmp_path / "in").voxels)
    listed[3].rename(listed[3].with_name(listed[3].name.lower()))
    listed[4].rename(listed[4].with_name(f"{listed[4].name}.dcm"))
    assert len(read_dicomdir(path)[0]) == 9
    listed[5].unlink()
    assert [len(read_dicomdir(path)[0]), read_dicomdir(path)[1]] == [8, 1]
    assert "1 of the 9 files that the DICOMDIR lists are missing" in open_scan(path).warnings
    for file in read_dicomdir(path)[0]:
        file.unlink()
    with pytest.raises(InputError, match="all of the 9 files that it lists are missing"):
        open_scan(path)
