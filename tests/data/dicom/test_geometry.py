"""Flawed series and how they are reported, and series that hold several volumes at one place."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from tests.scans.dicom import edit, save_enhanced, save_series, small_volume
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions, voxel_volume_mm3

SHAPE = (16, 18, 10)
AFFINE = np.array([[1.0, 0, 0, -8], [0, 1, 0, -9], [0, 0, 5, 0], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    return np.random.default_rng(1).integers(0, 900, SHAPE).astype(np.int16)


def move(path, shift):
    """Shift an image by LPS mm."""
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = [f"{float(p) + s:.6f}" for p, s in zip(ds.ImagePositionPatient, shift, strict=True)]
    ds.save_as(path)


def warnings_of(folder):
    return " | ".join(open_scan(folder).warnings)


def test_a_complete_series_has_no_warning(tmp_path, volume):
    save_series(tmp_path, volume, AFFINE)
    scan = open_scan(tmp_path)
    assert scan.warnings == () and scan.notes == ()
    assert scan.spacing_mm == pytest.approx((1, 1, 5))


def test_missing_slices_stay_empty_and_the_rest_keeps_its_place(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    whole = open_scan(tmp_path)
    for k in (4, 5):
        paths[k].unlink()
    scan = open_scan(tmp_path)
    assert "2 of 10 slices missing (up to 2 in a row)" in scan.warnings[0]
    np.testing.assert_allclose(scan.affine, whole.affine)
    present = [k for k in range(10) if k not in (4, 5)]
    assert np.array_equal(scan.voxels[..., present], whole.voxels[..., present])
    assert np.unique(scan.voxels[..., 4:6]).tolist() == [scan.voxels.min()]
    assert scan.dicom.places[4] is None and len(scan.dicom.datasets) == 8


def test_a_series_with_more_gaps_than_images_is_refused(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    for path in paths[2:8]:
        path.unlink()
    with pytest.raises(InputError, match=r"gaps for 6 more: 4 images of 10 make no volume"):
        open_scan(tmp_path)


def test_copies_and_doubles_are_distinguished(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    plain = open_scan(tmp_path)
    (tmp_path / "copy").write_bytes(paths[3].read_bytes())
    assert "1 file is a copy of others and left out" in warnings_of(tmp_path)
    double = pydicom.dcmread(paths[3])
    double.SOPInstanceUID = "1.2.3.4"
    double.InstanceNumber = 99
    double.PixelData = bytes(len(double.PixelData))
    double.save_as(tmp_path / "double")
    scan = open_scan(tmp_path)
    assert "1 image at a place where another one lies already: the first of each was used" in " ".join(scan.warnings)
    assert np.array_equal(scan.voxels, plain.voxels)


def test_uneven_slices_are_reported_with_the_error(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    move(paths[4], (0, 0, 1.5))
    scan = open_scan(tmp_path)
    assert "slice distances run from 3.5 to 6.5 mm: the mean of 5 mm was used" in scan.warnings[0]
    assert "up to 1.5 mm off" in scan.warnings[0]
    assert scan.spacing_mm[2] == pytest.approx(5)


def test_slices_too_uneven_for_a_grid_are_refused(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    for k, path in enumerate(paths):
        move(path, (0, 0, 0.35 * k**2))
    with pytest.raises(InputError, match="too uneven for one volume"):
        open_scan(tmp_path)


def test_gantry_tilt_goes_into_the_affine(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    for k, path in enumerate(paths):
        move(path, (0, k * 5 * np.tan(np.radians(20)), 0))
    scan = open_scan(tmp_path)
    assert "sheared by 20.0 degrees (gantry tilt)" in scan.warnings[0]
    moved = scan.affine @ [0, 0, 9, 1] - scan.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(moved[:3], (0, -45 * np.tan(np.radians(20)), 45), atol=1e-3)
    assert abs(np.linalg.det(scan.affine[:3, :3])) == pytest.approx(5)  # a shear keeps the volume


def test_other_orientations_are_left_out(tmp_path, volume):
    save_series(tmp_path / "axial", volume, AFFINE, series="1.2.9")
    save_series(tmp_path / "sagittal", volume[:6], AFFINE, "sagittal", series="1.2.9")
    scan = open_scan(tmp_path)
    assert "mixes 2 orientations or sizes: the largest group of 10 images was used, 6 were left out" in scan.warnings[0]
    assert scan.plane == "axial" and scan.n_slices == 10


def test_rounded_direction_cosines_are_one_orientation(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    ds = pydicom.dcmread(paths[2])
    ds.ImageOrientationPatient = ["0.9999999", "0.0004", "0", "-0.0004", "0.9999999", "0"]
    ds.save_as(paths[2])
    assert open_scan(tmp_path).n_slices == 10


def test_images_without_place_are_left_out(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    ds = pydicom.dcmread(paths[9])
    del ds.ImagePositionPatient
    ds.save_as(paths[9])
    assert "1 of 10 images have no place in space" in warnings_of(tmp_path)


@pytest.mark.parametrize("lost", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_series_without_geometry_is_refused(tmp_path, volume, lost):
    save_series(tmp_path, volume, AFFINE, **{lost: None})
    with pytest.raises(InputError, match="none of the 10 images says where it lies"):
        open_scan(tmp_path)


@pytest.mark.parametrize(
    ("tags", "warning"),
    [
        ({"BodyPartExamined": "KNEE"}, "body part is KNEE, not the head"),
        ({"BurnedInAnnotation": "YES"}, "burned into the pixels"),
        ({"BodyPartExamined": "KNEE of Doe"}, "body part is another, not the head"),
        ({"ImagesInAcquisition": "24"}, "announces 24 images and 10 are here"),
    ],
)
def test_doubts_of_the_header_are_reported(tmp_path, volume, tags, warning):
    save_series(tmp_path, volume, AFFINE, **tags)
    assert warning in warnings_of(tmp_path)


def test_skewed_orientation_is_refused(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.ImageOrientationPatient = ["1", "0", "0", "0.5", "0.8", "0"]
        ds.save_as(path)
    with pytest.raises(InputError, match="not a pair of perpendicular directions"):
        open_scan(tmp_path)


def test_a_single_slice_has_the_thickness_as_third_spacing(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    scan = open_scan(paths[4])
    assert scan.voxels.shape == (16, 18, 1) and scan.n_slices == 1
    assert scan.spacing_mm == pytest.approx((1, 1, 5))


def test_a_single_slice_of_unknown_thickness_has_no_volume(tmp_path, volume):
    (path,) = save_series(tmp_path, volume[..., :1], AFFINE, SliceThickness=None)
    scan = open_scan(path)
    assert "slice thickness is not known" in " ".join(scan.warnings)
    assert voxel_volume_mm3(scan) is None
    mask = np.ones(scan.voxels.shape, np.uint8)
    (lesion,) = measure_lesions(number_lesions(mask, scan, 100.0), scan)
    assert lesion.volume_mm3 is None and lesion.area_mm2 == pytest.approx(16 * 18)


def test_files_that_are_not_scans_are_left_out(tmp_path, volume):
    save_series(tmp_path, volume, AFFINE, series="1.2.9")
    (capture,) = save_series(tmp_path / "c", volume[..., :1], AFFINE, series="1.2.9")
    ds = pydicom.dcmread(capture)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, bytes(ds.Rows * ds.Columns * 3)
    ds.save_as(capture)
    scan = open_scan(tmp_path)
    assert scan.n_slices == 10
    assert f"1 of 11 files were left out ({capture.name}: it holds color pictures" in scan.warnings[0]


def test_a_gap_that_only_the_header_shows_is_reported(tmp_path, volume):
    paths = save_series(tmp_path, volume, AFFINE)
    for k, path in enumerate(paths):
        if k not in (1, 6):
            path.unlink()
    assert "25 mm apart, much more than the header says" in warnings_of(tmp_path)


def test_a_frame_is_needed_only_if_there_are_several(tmp_path):
    volume, affine = small_volume()
    save_series(tmp_path, volume, affine, series="1.2.3", EchoTime="10")
    assert open_scan(tmp_path, frame=3).frame is None
    save_series(tmp_path / "second", volume + 1, affine, series="1.2.3", EchoTime="90")
    with pytest.raises(InputError, match=r"holds 2 volumes at the same place.*--frame 0 to 1"):
        open_scan(tmp_path)
    assert np.array_equal(open_scan(tmp_path, frame=0).voxels + 1, open_scan(tmp_path, frame=1).voxels)
    with pytest.raises(InputError, match="frame 2 does not exist"):
        open_scan(tmp_path, frame=2)


def test_an_incomplete_echo_is_not_filled_up_from_another(tmp_path):
    volume, affine = small_volume()
    first = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    whole = open_scan(tmp_path, frame=0)
    first[4].unlink()
    with pytest.raises(InputError, match="holds 2 volumes"):
        open_scan(tmp_path)
    scan = open_scan(tmp_path, frame=0)
    assert scan.voxels.max() < 5000 and open_scan(tmp_path, frame=1).voxels.min() >= 4800
    present = [k for k in range(9) if k != 4]
    assert np.array_equal(scan.voxels[..., present], whole.voxels[..., present])
    assert scan.dicom.places[4] is None
    assert any("frame 0 lacks 1 of the 9 places" in w for w in scan.warnings)


@pytest.mark.parametrize("name", ["AcquisitionTime", "TriggerTime"])
def test_time_points_are_separated_by_their_times(tmp_path, name):
    volume, affine = small_volume()
    for step in range(3):  # the later, the lower the instance numbers: they say nothing
        paths = save_series(tmp_path / str(step), volume % 1000 + 5000 * step, affine, series="1.2.3", shuffle=9 - step)
        edit(paths, **{name: ("1013%02d" if name == "AcquisitionTime" else "%d") % (10 * (step + 1))})
    for step in range(3):
        voxels = open_scan(tmp_path, frame=step).voxels
        assert 5000 * step <= voxels.min() and voxels.max() < 5000 * step + 1000
    with pytest.raises(InputError, match=r"--frame 0 to 2 \(0: .*; 1: .*; 2: "):
        open_scan(tmp_path)


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    paths += save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    edit(paths, AcquisitionNumber=lambda index: index)
    assert open_scan(tmp_path, frame=0).voxels.max() < 5000


@pytest.mark.parametrize("separated_by", ["EffectiveEchoTime", "TemporalPositionIndex", "DimensionIndexValues"])
def test_echoes_of_an_enhanced_file_are_separated_in_any_order(tmp_path, separated_by):
    volume, affine = small_volume()
    path = save_enhanced(tmp_path / "e.dcm", np.concatenate([volume, volume], axis=2), affine)
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array.copy()
    positions = [np.array(g.PlanePositionSequence[0].ImagePositionPatient) for g in ds.PerFrameFunctionalGroupsSequence]
    for f, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        k = round((positions[f][2] - 10) / 4.5)
        echo, place = divmod(k, 9)
        if place % 2:  # which echo comes first alternates, as in interleaved acquisitions
            echo = 1 - echo
        frames[f] = 1000 * (echo + 1) + place
        group.PlanePositionSequence[0].ImagePositionPatient = [*positions[f][:2], 10 + 4.5 * place]
        item = pydicom.Dataset()
        if separated_by == "EffectiveEchoTime":
            item.EffectiveEchoTime = 10.0 + 80 * echo
            group.MREchoSequence = [item]
        elif separated_by == "TemporalPositionIndex":
            group.FrameContentSequence[0].TemporalPositionIndex = echo + 1
        else:
            group.FrameContentSequence[0].DimensionIndexValues = [1, place + 1, echo + 1]
    ds.PixelData = frames.tobytes()
    ds.save_as(path)
    for frame in (0, 1):
        voxels = read_series([path], frame).voxels[0, 0]  # `open_scan` takes constant slices for padding
        assert voxels.tolist() == [1000 * (frame + 1) + place for place in range(9)]


def test_a_header_without_rows_is_named(tmp_path):
    paths = save_series(tmp_path, *small_volume())
    ds = pydicom.dcmread(paths[2])
    ds.Rows = 0
    ds.save_as(paths[2])
    with pytest.raises(InputError, match=f"{paths[2].name}: the header gives an impossible size"):
        open_scan(tmp_path)


def test_a_localizer_among_the_slices_does_not_make_the_series_one(tmp_path):
    paths = save_series(tmp_path, *small_volume())
    ds = pydicom.dcmread(paths[0])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ds.save_as(paths[0])
    assert open_scan(tmp_path).n_slices >= len(paths) - 1
