"""Numbers, areas, volumes, diameters and places of shapes with known measures."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.data.test_scan import all_orientations, reoriented
from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions


def measured(mask, scan):
    return measure_lesions(number_lesions(mask, scan), scan)


def ellipsoid(half_axes_mm, spacing_mm, turn_deg=0.0, shape_mm=(100, 110, 90)):
    """A mask in RAS order with an ellipsoid in its middle, turned about the foot-head axis; and its scan."""
    shape = [round(mm / s) for mm, s in zip(shape_mm, spacing_mm, strict=True)]
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    a, b, h = half_axes_mm
    mask = (((c * x + s * y) / a) ** 2 + ((c * y - s * x) / b) ** 2 + (z / h) ** 2 <= 1).astype(np.uint8)
    return mask, Scan.from_array(mask, np.diag([*spacing_mm, 1.0]))


def test_a_disk_in_a_picture():
    y, x = np.mgrid[:100, :120]
    mask = ((y - 40) ** 2 + (x - 70) ** 2 <= 15**2).astype(np.uint8)
    mask[90:93, 5:8] = 1
    large, small = measured(mask, Scan.from_array(mask))
    assert (large.area_px, small.area_px) == (int(mask.sum()) - 9, 9)
    assert large.longest_diameter_px == pytest.approx(31, abs=0.1)
    assert (large.bbox_min, large.bbox_max) == ((25, 55), (56, 86))
    assert large.area_mm2 is large.longest_diameter_mm is large.volume_mm3 is None


def test_a_picture_with_known_spacing():
    mask = np.zeros((20, 20), np.uint8)
    mask[4:8, 3:13] = 1
    (lesion,) = measured(mask, Scan.from_array(mask, spacing_mm=(2.0, 0.5)))
    assert lesion.area_mm2 == 40
    # 3 steps of 2 mm and 9 of 0.5 mm between centers, and the mean width of one pixel
    assert lesion.longest_diameter_mm == pytest.approx(np.hypot(6, 4.5) + 1.25, abs=0.01)


def test_a_ball_in_a_volume():
    spacing = np.array([1.0, 0.8, 4.0])
    shape = (80, 90, 20)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing
    mask = (np.linalg.norm(grid - np.array([40, 35, 40.0]), axis=-1) <= 14).astype(np.uint8)
    scan = Scan.from_array(mask, np.diag([*spacing, 1.0]))
    (lesion,) = measured(mask, scan)
    assert lesion.volume_mm3 == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.03)
    assert lesion.longest_diameter_mm == pytest.approx(28, abs=1)
    assert lesion.slice_index == 10
    assert lesion.area_mm2 == pytest.approx(np.pi * 14**2, rel=0.02)


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1] = mask[2, 2] = 1
    assert len(measured(mask, Scan.from_array(mask))) == 1


def test_an_empty_mask_has_no_lesion():
    mask = np.zeros((6, 6), np.uint8)
    assert measured(mask, Scan.from_array(mask)) == []


# ---- numbering ----


def test_lesions_are_numbered_by_size():
    mask = np.zeros((20, 20, 8), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    mask[10:14, 10:14, 3:6] = 1
    mask[18, 2, 7] = 1
    numbers = number_lesions(mask, Scan.from_array(mask))
    assert numbers.dtype == np.uint16
    assert (numbers[11, 11, 4], numbers[1, 1, 1], numbers[18, 2, 7]) == (1, 2, 3)
    np.testing.assert_array_equal(numbers > 0, mask)
    assert [lesion.voxels for lesion in measured(mask, Scan.from_array(mask))] == [48, 8, 1]
    assert [lesion.number for lesion in measured(mask, Scan.from_array(mask))] == [1, 2, 3]


def test_of_equal_lesions_the_first_in_the_array_comes_first():
    mask = np.zeros((9, 9, 9), np.uint8)
    for corner in ((6, 0, 0), (0, 6, 3), (0, 3, 6), (3, 0, 0)):
        mask[tuple(slice(c, c + 2) for c in corner)] = 1
    numbers = number_lesions(np.asfortranarray(mask), Scan.from_array(mask))
    assert [int(numbers[corner]) for corner in ((0, 3, 6), (0, 6, 3), (3, 0, 0), (6, 0, 0))] == [1, 2, 3, 4]


def test_corners_of_voxels_in_neighboring_slices_are_contact():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = 1
    assert number_lesions(mask, Scan.from_array(mask)).max() == 1


def test_small_lesions_are_left_out_by_their_volume():
    mask = np.zeros((20, 20, 10), np.uint8)
    mask[2:5, 2:4, 2] = 1  # 6 voxels of 0.7 x 0.7 x 3 mm: 8.82 mm3
    mask[10:12, 10, 5] = 1  # 2.94 mm3
    mask[15:19, 15:19, 7] = 1
    scan = Scan.from_array(mask, np.diag([0.7, 0.7, 3.0, 1.0]))
    for limit, count in ((0, 3), (2.9, 3), (2.94, 3), (3.0, 2), (8.82, 2), (9, 1), (100, 0)):
        numbers = number_lesions(mask, scan, limit)
        assert len(np.unique(numbers)) - 1 == numbers.max() == count
    assert number_lesions(mask, scan, 9)[16, 16, 7] == 1


def test_without_mm_nothing_is_left_out():
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[2, 2, 2] = 1
    assert number_lesions(mask, Scan.from_array(mask), 1e9).max() == 1
    picture = mask[:, :, 2]
    assert number_lesions(picture, Scan.from_array(picture, spacing_mm=(1.0, 1.0)), 1e9).max() == 1


def test_more_pieces_than_there_are_numbers():
    mask = np.zeros((134, 128, 34), np.uint8)
    mask[:128:2, ::2, ::2] = 1  # 69632 voxels that do not touch
    mask[130:, :, :] = 1
    scan = Scan.from_array(mask, np.diag([1.0, 1.0, 5.0, 1.0]))
    with pytest.raises(InputError, match="69633 pieces"):
        number_lesions(mask, scan)
    assert number_lesions(mask, scan, 6.0).max() == 1  # lesions that are left out need no number


def test_a_small_lesion_in_a_large_volume_costs_little_memory():
    mask = np.zeros((512, 512, 200), np.uint8)
    mask[100:140, 200:230, 50:60] = 1
    scan = Scan(np.zeros((512, 512, 200), np.int16), np.diag([0.5, 0.5, 1, 1]), (0.5, 0.5, 1.0), volume=True)
    tracemalloc.start()
    numbers = number_lesions(mask, scan)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < numbers.nbytes + 10e6
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    (lesion,) = measure_lesions(numbers, scan)
    assert tracemalloc.get_traced_memory()[1] - before < 20e6
    tracemalloc.stop()
    assert (lesion.bbox_min, lesion.voxels) == ((100, 200, 50), 12000)


# ---- diameters ----


@pytest.mark.parametrize("degrees", [0, 17, 30, 45, 62, 90, 121, 155])
def test_a_turned_ellipse(degrees):
    y, x = np.mgrid[:120, :120] * 0.5 - 29.75
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    mask = (((c * x + s * y) / 24) ** 2 + ((c * y - s * x) / 10) ** 2 <= 1).astype(np.uint8)
    (lesion,) = measured(mask, Scan.from_array(mask, spacing_mm=(0.5, 0.5)))
    assert lesion.longest_diameter_mm == pytest.approx(48, abs=0.5)
    assert lesion.perpendicular_diameter_mm == pytest.approx(20, abs=0.5)
    assert lesion.perpendicular_diameter_px == pytest.approx(40, abs=1)


# Acquired in axial, coronal and sagittal slices of 5 mm, and in pixels that are not square.
SPACINGS = [(0.9, 0.9, 5.0), (0.8, 5.0, 0.8), (5.0, 1.0, 1.0), (1.0, 1.2, 0.7), (0.6, 4.0, 1.1)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_ellipsoid_in_every_plane_of_acquisition(spacing):
    mask, scan = ellipsoid((16, 24, 19), spacing)
    (lesion,) = measured(mask, scan)
    assert lesion.volume_mm3 == pytest.approx(4 / 3 * np.pi * 16 * 24 * 19, rel=0.04)
    assert lesion.volume_ml == pytest.approx(lesion.volume_mm3 / 1000, abs=1e-5)
    assert lesion.axial_longest_mm == pytest.approx(48, abs=spacing[1])
    assert lesion.axial_perpendicular_mm == pytest.approx(32, abs=max(spacing[0], 1))
    assert abs(lesion.axial_index - (mask.shape[2] - 1) / 2) * spacing[2] <= max(spacing[2], 3)
    # the slice of acquisition shows the other two axes
    truth = {0: (48, 38), 1: (38, 32), 2: (48, 32)}[scan.slice_axis]
    tolerance = max(s for a, s in enumerate(spacing) if a != scan.slice_axis)
    assert lesion.longest_diameter_mm == pytest.approx(truth[0], abs=tolerance)
    assert lesion.perpendicular_diameter_mm == pytest.approx(truth[1], abs=tolerance)


@pytest.mark.parametrize("turn", [20, 45, 110])
@pytest.mark.parametrize("spacing", SPACINGS[:3])
def test_a_turned_ellipsoid(turn, spacing):
    mask, scan = ellipsoid((14, 26, 20), spacing, turn)
    (lesion,) = measured(mask, scan)
    # outlines in steps of 5 mm: in the two reformatted planes the truth is known only up to a thick voxel
    tolerance = max(spacing[:2])
    assert lesion.axial_longest_mm == pytest.approx(52, abs=tolerance)
    assert lesion.axial_perpendicular_mm == pytest.approx(28, abs=tolerance)


@pytest.mark.parametrize("code", all_orientations())
def test_measures_are_the_same_in_every_orientation(code):
    mask, scan = ellipsoid((11, 16, 13), (1.0, 1.5, 4.0), 30, shape_mm=(40, 50, 48))
    mask[3, 4, 2] = 1
    (reference, _) = measured(mask, scan)
    voxels, affine = reoriented(mask, scan.affine, code)
    (lesion, _) = measured(voxels, Scan.from_array(voxels, affine))
    for name in ("axial_longest_mm", "axial_perpendicular_mm", "perpendicular_diameter_mm", "volume_ml"):
        assert getattr(lesion, name) == pytest.approx(getattr(reference, name), abs=0.02)
    assert lesion.centroid_ras_mm == pytest.approx(reference.centroid_ras_mm, abs=0.02)


def test_axial_measures_need_axial_planes():
    mask, scan = ellipsoid((11, 16, 13), (1.0, 1.0, 1.0), shape_mm=(40, 50, 48))
    for sick in (
        Scan.from_array(mask),
        Scan.from_array(mask, spacing_mm=(1.0, 1.0, 1.0)),
        Scan(mask, scan.affine, None, volume=True),  # a header without spacing
    ):
        (lesion,) = measured(mask, sick)
        assert lesion.axial_longest_mm is lesion.axial_perpendicular_mm is lesion.axial_index is None
        assert lesion.centroid_ras_mm is lesion.side is None
        assert lesion.centroid_index == pytest.approx((19.5, 24.5, 23.5))
    sagittal, axial = mask[20:21], mask[:, :, 24:25]
    assert measured(sagittal, Scan.from_array(sagittal, scan.affine))[0].axial_longest_mm is None
    assert measured(axial, Scan.from_array(axial, scan.affine))[0].axial_longest_mm == pytest.approx(32, abs=1)


def test_the_centroid_is_in_the_body():
    mask = np.zeros((30, 40, 20), np.uint8)
    mask[4:8, 10:12, 3] = 1
    affine = np.array([[0, -2.0, 0, 90], [1.0, 0, 0, -60], [0, 0, 3.0, -30], [0, 0, 0, 1]])
    (lesion,) = measured(mask, Scan.from_array(mask, affine))
    assert lesion.centroid_index == (5.5, 10.5, 3.0)
    assert lesion.centroid_ras_mm == (69.0, -54.5, -21.0)


def test_the_largest_slice_follows_the_plane():
    mask, scan = ellipsoid((11, 16, 13), (1.0, 1.0, 1.0), shape_mm=(41, 50, 48))
    (lesion,) = measured(mask, scan.with_plane("sagittal"))
    assert lesion.slice_index in (19, 20, 21)
    assert lesion.area_mm2 == pytest.approx(np.pi * 16 * 13, rel=0.05)
