"""DICOM files grouped into series, and the series of a study that is chosen."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from tests.scans.dicom import IDENTIFIERS, headers, save_enhanced, save_series
from tests.scans.studies import AFFINE, CT, LOCALIZER, SMALL_STUDY, T1, T1C, T2, VOLUME, save_study
from tumorlens.data.dicom.series import choose_series, find_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


def test_files_of_a_folder_are_grouped_by_series(tmp_path):
    listing = find_series(save_study(tmp_path, T1, T1C, T2))
    assert not listing.problems and not listing.others
    assert [(s.number, s.n_images, s.weighting, s.contrast, s.plane) for s in listing.series] == [
        (3, 9, "T1", None, "axial"),
        (4, 9, "T2", None, "axial"),
        (8, 9, "T1", True, "axial"),
    ]


@pytest.mark.parametrize(
    ("kinds", "number", "reason"),
    [
        ((T2, T1, T1C, LOCALIZER), 8, "series: T1 after contrast agent, by the header"),
        ((T2, T1), 3, "name no T1 after contrast agent"),
        ((T2, LOCALIZER), 4, "(T2)"),
        ((T1C, {**T1C, "SeriesNumber": 9, "ImageType": ["DERIVED", "SECONDARY", "MPR"]}), 8, "series: T1 after"),
        ((LOCALIZER, CT, T1), 3, "#3 was chosen from 3 series"),
        ((T1C,), 8, ""),
    ],
)
def test_the_post_contrast_t1_is_preferred(tmp_path, kinds, number, reason):
    chosen, why = choose_series(find_series(save_study(tmp_path, *kinds)).series)
    assert chosen.number == number
    assert reason in why
    assert open_scan(tmp_path).dicom.facts["series_number"] == number


def test_one_volume_is_better_than_several(tmp_path):
    """A series of echoes needs a frame; the plain series beside it does not."""
    for echo in ("5", "30"):
        save_series(tmp_path / echo, VOLUME, AFFINE, series="1.5", StudyInstanceUID=SMALL_STUDY, **T1C, EchoTime=echo)
    save_series(tmp_path / "b", VOLUME, AFFINE, StudyInstanceUID=SMALL_STUDY, **{**T1C, "SeriesNumber": 12})
    series = find_series(sorted(p for p in tmp_path.rglob("*") if p.is_file())).series
    assert [(s.number, s.n_volumes) for s in series] == [(8, 2), (12, 1)]
    assert choose_series(series)[0].number == 12


def test_the_description_does_not_name_the_patient(tmp_path):
    files = save_study(tmp_path, {**T1C, "SeriesDescription": "Doe t1 +c PID-77881 jane"})
    (series,) = find_series(files).series
    assert series.description.startswith("*** t1 +c")
    assert not any(word.lower() in series.description.lower() for word in IDENTIFIERS)


def test_short_names_are_starred_as_words(tmp_path):
    files = save_study(tmp_path, {**T1C, "PatientName": "Li^Bo", "SeriesDescription": "t1 +c Li_Bo limbo"})
    assert find_series(files).series[0].description == "t1 +c ***_*** limbo"


def test_an_enhanced_file_lists_its_plane(tmp_path):
    ds = pydicom.dcmread(save_enhanced(tmp_path / "e.dcm", VOLUME, AFFINE, "sagittal"))
    orientation = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = orientation
    ds.save_as(tmp_path / "e.dcm")
    assert find_series([tmp_path / "e.dcm"]).series[0].plane == "sagittal"


def test_other_objects_and_cut_off_files_are_listed_apart(tmp_path):
    files = save_study(tmp_path, T1C)
    report = headers(Modality="SR")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.file_meta = pydicom.dcmread(files[0]).file_meta
    report.save_as(tmp_path / "report", enforce_file_format=True)
    (tmp_path / "cut").write_bytes(files[0].read_bytes()[:140])
    (tmp_path / "late").write_bytes(files[0].read_bytes()[:700])  # after its class, before its size
    listing = find_series(sorted(tmp_path.iterdir()))
    assert [s.n_images for s in listing.series] == [9]
    assert [(path.name, "cut off before" in problem) for path, problem in listing.problems] == [
        ("cut", True),
        ("late", True),
    ]
    assert [(path.name, content) for path, content in listing.others] == [
        ("report", "it holds no image but a Comprehensive SR")
    ]


@pytest.mark.parametrize("differs", [{"StudyInstanceUID": "1.99"}, {"PatientID": "another"}])
def test_patients_are_not_mixed_even_if_uids_are_equal(tmp_path, differs):
    shared = {"series": "1.2.3", "StudyInstanceUID": "1.98"}
    save_series(tmp_path / "a", VOLUME, AFFINE, **shared)
    between = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2.5], [0, 0, 0, 0]])
    save_series(tmp_path / "b", VOLUME, between, **{**shared, **differs})
    listing = find_series(p for p in tmp_path.rglob("*") if p.is_file())
    assert [s.n_images for s in listing.series] == [9, 9]
    assert len({s.study for s in listing.series}) == 2
    with pytest.raises(InputError, match="several studies"):
        open_scan(tmp_path)


def test_series_that_lost_their_uid_are_separated(tmp_path):
    save_study(tmp_path, {**T1, "SeriesInstanceUID": None}, {**T1C, "SeriesInstanceUID": None})
    listing = find_series(sorted(tmp_path.iterdir()))
    assert [(s.number, s.n_images) for s in listing.series] == [(3, 9), (8, 9)]


def test_the_head_is_better_than_the_spine(tmp_path):
    spine = {**T1C, "SeriesNumber": 2, "SeriesDescription": "SAG T1 POST", "BodyPartExamined": "CSPINE"}
    other = {**T1C, "SeriesNumber": 3, "SeriesDescription": "t1 +c C-spine"}
    head = {**T1, "SeriesNumber": 7}
    assert choose_series(find_series(save_study(tmp_path, spine, other, head)).series)[0].number == 7
