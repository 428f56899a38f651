"""DICOM files grouped into series, and the series of a study that is chosen."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from tests.scans.dicom import IDENTIFIERS, edit, headers, save_enhanced, save_series
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
    files = save_study(tmp_path, {**T1C, "SeriesDescription": "Doe t1 +c PID-77881Q jane"})
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


def stack(folder, n_slices, first_mm=0.0, uid="1.2.3", **tags):
    """A stack of slices 5 mm apart. A function of a slice's index is set in each file."""
    volume = np.random.default_rng(n_slices).integers(0, 900, (12, 14, n_slices)).astype(np.int16)
    affine = AFFINE.copy()
    affine[2, 3] = first_mm
    shared = {"StudyInstanceUID": SMALL_STUDY, "FrameOfReferenceUID": "1.2.9", **T1C}
    constant = {name: tag for name, tag in tags.items() if not callable(tag)}
    paths = save_series(folder, volume, affine, series=uid, **{**shared, **constant})
    edit(paths, **{name: tag for name, tag in tags.items() if callable(tag)})
    return paths


def found(folder):
    listing = find_series(sorted(p for p in folder.rglob("*") if p.is_file()))
    assert not listing.problems
    return listing.series


def own_uid(k):
    return f"1.2.4.{k}"


@pytest.mark.parametrize("n_slices", [3, 7, 24, 31])
@pytest.mark.parametrize("plane_tags", [{}, {"SeriesNumber": None, "SeriesDescription": None}])
def test_slices_with_a_series_uid_each_are_one_series(tmp_path, n_slices, plane_tags):
    paths = stack(tmp_path, n_slices, **plane_tags)
    before = open_scan(tmp_path)
    edit(paths, SeriesInstanceUID=own_uid, AcquisitionTime=lambda k: f"1015{k:02}", SeriesTime=lambda k: f"10{k:02}00")
    (series,) = found(tmp_path)
    assert series.n_images == n_slices and series.uid == "1.2.4.0"
    assert sorted(series.piece_uids) == sorted(own_uid(k) for k in range(n_slices))
    scan = open_scan(tmp_path)
    assert np.array_equal(scan.voxels, before.voxels) and np.array_equal(scan.affine, before.affine)
    assert scan.notes == (series.note,) and f"{n_slices} series, one for each slice, were joined" in series.note
    assert scan.dicom.facts["series_instance_uid"] == series.uid
    assert np.array_equal(open_scan(tmp_path, series=own_uid(2)).voxels, before.voxels)


def test_missing_slices_of_a_volume_in_pieces_are_reported(tmp_path):
    for path in stack(tmp_path, 24, SeriesInstanceUID=own_uid)[7:9]:
        path.unlink()
    assert len(found(tmp_path)) == 1
    assert "2 of 24 slices missing" in open_scan(tmp_path).warnings[0]


@pytest.mark.parametrize(
    "uid", [lambda k: f"1.2.{k % 2}", lambda k: f"1.2.{k // 8}", lambda k: f"1.2.{k * (k % 4 == 0)}"]
)
@pytest.mark.parametrize("between", ["5", None])
def test_parts_of_one_stack_are_joined(tmp_path, uid, between):
    stack(tmp_path, 24, SeriesInstanceUID=uid, SpacingBetweenSlices=between)
    (series,) = found(tmp_path)
    assert series.n_images == 24 and " images, were joined" in series.note


def test_folders_with_a_uid_each_are_joined(tmp_path):
    stack(tmp_path / "a" / "0", 10, uid="1.2.4")
    stack(tmp_path / "a" / "1", 13, first_mm=50, uid="1.2.5", StudyInstanceUID=SMALL_STUDY)
    assert [s.n_images for s in found(tmp_path)] == [23]


@pytest.mark.parametrize(
    "other",
    [
        {},  # before and after contrast agent, at the same places
        {"first_mm": 2.5},  # the same, moved by half a slice
        {"first_mm": 2.5, "SpacingBetweenSlices": "5"},
        {"first_mm": 50, "EchoTime": "90"},
        {"first_mm": 50, "FlipAngle": "9"},
        {"first_mm": 50, "SeriesTime": "120000"},
        {"first_mm": 50, "SeriesDescription": "t1 se tra"},
        {"first_mm": 50, "SeriesNumber": 9},
        {"first_mm": 50, "FrameOfReferenceUID": "1.2.10"},
        {"first_mm": 50, "ContrastBolusAgent": None},
        {"first_mm": 95},  # far away
        {"first_mm": 70},
        {"first_mm": 51},  # not on the grid
        {"first_mm": 50, "PatientID": "another"},
    ],
)
def test_two_real_series_stay_two(tmp_path, other):
    stack(tmp_path / "a", 10, uid="1.2.4")
    stack(tmp_path / "b", 10, uid="1.2.5", **other)
    assert [(s.n_images, s.note) for s in found(tmp_path)] == [(10, ""), (10, "")]


def test_single_slices_at_one_place_stay_apart(tmp_path):
    for n in range(2):
        stack(tmp_path / str(n), 1, uid=f"1.2.{n}")
    assert [(s.n_images, s.unfitness) for s in found(tmp_path)] == [(1, None), (1, None)]


def test_scouts_of_three_planes_stay_apart(tmp_path):
    for plane in ("axial", "coronal", "sagittal"):
        save_series(
            tmp_path / plane,
            VOLUME,
            AFFINE,
            plane,
            StudyInstanceUID=SMALL_STUDY,
            FrameOfReferenceUID="1.2.9",
            **LOCALIZER,
        )
    assert sorted(s.plane for s in found(tmp_path)) == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"FrameOfReferenceUID": lambda k: f"1.2.9.{k}"}, "their Frame of Reference UIDs differ"),
        ({"ImagePositionPatient": None}, "they do not say where they lie"),
        ({"ImagePositionPatient": lambda k: [0, 0, 5 * (k // 2)]}, "several lie at one place"),
        ({"ImagePositionPatient": lambda k: [0, 0, 40 * k]}, "they are 40 mm apart and do not adjoin"),
        ({"ImagePositionPatient": lambda k: [0, 0, 5 * k + 1.5 * (k == 3)]}, "they are not evenly spaced"),
        ({"ImagePositionPatient": lambda k: [0, 0, 2 * k**2]}, "they leave gaps and do not adjoin"),
        ({"ImagePositionPatient": lambda k: [3 * (k == 2), 0, 5 * k]}, "they are not evenly spaced"),
    ],
)
def test_pieces_that_make_no_volume_are_not_judged_one_by_one(tmp_path, tags, reason):
    stack(tmp_path, 7, SeriesInstanceUID=own_uid, **tags)
    series = found(tmp_path)
    assert len(series) == 7
    assert all("it is one of 7 single slices" in s.unfitness and reason in s.unfitness for s in series)
    with pytest.raises(InputError, match=f"no series can be run: #8: it is one of 7 single slices .*{reason}"):
        open_scan(tmp_path)
    assert open_scan(tmp_path, series=own_uid(3)).n_slices == 1  # which you name yourself


def test_two_echoes_with_a_series_uid_each_slice_are_two_series(tmp_path):
    for echo in (0, 1):
        stack(tmp_path / str(echo), 7, EchoTime=str(9 + 70 * echo), SeriesInstanceUID=lambda k, e=echo: f"1.2.{e}.{k}")
    assert [(s.n_images, s.n_volumes) for s in found(tmp_path)] == [(7, 1), (7, 1)]


@pytest.mark.parametrize("first_mm", [0, 2.5])
@pytest.mark.parametrize(
    "tags",
    [
        {"AcquisitionNumber": lambda v, k: v + 1},
        {"AcquisitionTime": lambda v, k: f"10{15 + v}{k:02}"},
        {"InstanceNumber": lambda v, k: 1 + k + 7 * v},
    ],
)
def test_two_volumes_with_a_series_uid_each_slice_are_parted(tmp_path, first_mm, tags):
    """At the same places, or between each other."""
    for v in range(2):
        edits = {name: (lambda k, tag=tag, v=v: tag(v, k)) for name, tag in tags.items()}
        stack(
            tmp_path / str(v), 7, v * first_mm, SeriesInstanceUID=lambda k, v=v: f"1.2.{v}.{k}",
            **{"InstanceNumber": lambda k: 1, **edits},
        )  # fmt: skip
    (series,) = found(tmp_path)
    assert series.n_images == 14 and "14 series, one for each slice, were joined" in series.note
    assert "their slices make 2 even stacks" in series.note
    with pytest.raises(InputError, match=r"holds 2 volumes .*--frame 0 to 1"):
        open_scan(tmp_path)
    for v in range(2):
        scan = open_scan(tmp_path, frame=v)
        uids = {str(header.SeriesInstanceUID) for header in scan.dicom.datasets}
        assert uids == {f"1.2.{v}.{k}" for k in range(7)}


@pytest.mark.parametrize(("kind", "n_series"), [("2D", 14), ("3D", 1)])
def test_single_slices_that_overlap_are_one_volume_only_if_interpolated(tmp_path, kind, n_series):
    stack(tmp_path, 14, SeriesInstanceUID=own_uid, SliceThickness="10", MRAcquisitionType=kind)
    series = found(tmp_path)
    assert len(series) == n_series
    assert all("their slices would overlap" in (s.unfitness or "") for s in series) == (kind == "2D")


def test_series_that_are_not_run_are_named(tmp_path):
    chosen, why = choose_series(
        find_series(save_study(tmp_path, T1, T1C, T2, LOCALIZER, {**T1C, "SeriesNumber": 11})).series
    )
    assert chosen.number == 8
    assert why.endswith("by the header (#11 fit as well); not run: #1, #3, #4")
