"""The head's mid-sagittal plane and the side of a lesion: off center, turned, cut off, in every orientation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.test_scan import all_orientations, reoriented
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions
from tumorlens.pipeline.measurements.midline import Midline, find_midline

SPACING = (2.0, 2.0, 6.0)
SHAPE = (96, 112, 22)


@pytest.fixture(scope="module")
def head():
    """A healthy head in RAS order whose middle is index 47.5 of the first axis."""
    return phantom_volume(3, "no_tumor", shape=SHAPE, spacing_mm=SPACING)


def box(shape, center, half=(3, 4, 1)):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(round(c) - h, round(c) + h + 1) for c, h in zip(center, half, strict=True))] = 1
    return mask


def side(mask, scan):
    (lesion,) = measure_lesions(number_lesions(mask, scan), scan)
    return lesion.side


def distance_mm(midline, indices):
    """How far voxels lie to the right of the plane."""
    return np.asarray(indices) @ midline.steps + midline.offset


def turned(head, degrees, axis=2, shift_mm=0.0):
    """The head turned about an array axis through its middle and moved to the right, and the turn."""
    from scipy.ndimage import affine_transform

    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = [a for a in range(3) if a != axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = c
    turn[i, j], turn[j, i] = -s, s
    spacing, middle = np.array(SPACING), (np.array(SHAPE) - 1) / 2
    back = np.diag(1 / spacing) @ turn.T @ np.diag(spacing)
    shift = np.array([shift_mm, 0, 0]) / spacing
    voxels = affine_transform(head.image.astype(np.float32), back, middle - back @ (middle + shift), order=1)
    return Scan.from_array(voxels, head.affine), turn, middle + shift


@pytest.mark.parametrize("code", all_orientations())
@pytest.mark.parametrize(("x", "expected"), [(62, "right"), (33, "left"), (47.5, "midline")])
def test_the_side_in_every_orientation(head, code, x, expected):
    away = head.affine.copy()
    away[0, 3] -= 90  # the whole head lies left of the scanner's x = 0
    mask = box(SHAPE, (x, 60, 10))
    voxels, affine = reoriented(head.image, away, code)
    turned_mask, _ = reoriented(mask, away, code)
    assert side(turned_mask, Scan.from_array(voxels, affine)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_head_at_the_edge_of_the_field(seed):
    whole = phantom_volume(seed, "no_tumor", shape=(140, 112, 22), spacing_mm=SPACING)
    voxels = whole.image[26:]  # the head's middle moves from 69.5 to 43.5 of 114
    midline = find_midline(Scan.from_array(voxels, whole.affine))
    assert abs(distance_mm(midline, [43.5, 55.5, 10.0])) < 2.5


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("degrees", [-8, 4, 12])
def test_a_turned_head(head, axis, degrees):
    straight = find_midline(head.scan)
    scan, turn, center = turned(head, degrees, axis, shift_mm=14)
    midline = find_midline(scan)
    normal = midline.steps / np.array(SPACING)
    assert np.linalg.norm(normal) == pytest.approx(1)
    # compare with the same phantom unturned: its halves are not alike, and its own middle is not quite at x = 0
    assert np.degrees(np.arccos(normal @ turn @ (straight.steps / SPACING))) < 2.5
    assert abs(distance_mm(midline, center) - distance_mm(straight, (np.array(SHAPE) - 1) / 2)) < 1.5


def test_a_lesion_beside_the_falx_of_a_turned_head(head):
    """At the brow of a head that is turned by 12 degrees the middle is 14 mm from where it is at the center."""
    scan, turn, center = turned(head, 12)
    spacing = np.array(SPACING)
    for x, expected in ((9.0, "right"), (-9.0, "left")):
        place = center + (turn @ np.array([x, 66.0, 0.0])) / spacing
        mask = box(SHAPE, place, half=(1, 1, 1))
        assert side(mask, scan) == expected
    # a plane straight along the array would put the lesion on the right to the left
    assert (center + (turn @ np.array([9.0, 66.0, 0.0])) / spacing)[0] < center[0]


@pytest.mark.parametrize("degrees", [10, 30])
def test_an_oblique_affine(head, degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[c, -s, 0, 30], [s, c, 0, -12], [0, 0, 1, 5], [0, 0, 0, 1]])
    scan = Scan.from_array(head.image, turn @ head.affine)
    assert side(box(SHAPE, (60, 80, 10)), scan) == "right"
    assert side(box(SHAPE, (35, 30, 10)), scan) == "left"


@pytest.mark.parametrize(
    ("cut", "middle"),
    [
        ((slice(None), slice(0, 90)), 47.5),  # the brow
        ((slice(None), slice(24, None)), 47.5),
        ((slice(18, None), slice(None)), 29.5),  # an ear and what is behind it
        ((slice(0, 80), slice(None)), 47.5),
    ],
)
def test_a_head_that_is_cut_off(head, cut, middle):
    midline = find_midline(Scan.from_array(head.image[cut], head.affine))
    shape = head.image[cut].shape
    assert abs(distance_mm(midline, [middle, shape[1] / 2, 10.0])) < 5
    mask = box(shape, (middle + 10, shape[1] / 2, 10))
    assert side(mask, Scan.from_array(head.image[cut], head.affine)) == "right"


@pytest.mark.parametrize("half", [slice(0, 47), slice(48, 96), slice(0, 40), slice(52, 96)])
def test_half_a_head_has_no_middle(head, half):
    assert find_midline(Scan.from_array(head.image[half], head.affine)) is None


def test_a_few_sagittal_slices_have_no_middle(head):
    voxels = head.image[::4][6:18]  # 12 slices of 4.5 mm: 54 mm
    assert find_midline(Scan.from_array(voxels, np.diag([4.5, 2.0, 6.0, 1.0]))) is None
    assert side(box(voxels.shape, (6, 50, 10)), Scan.from_array(voxels, np.diag([4.5, 2.0, 6.0, 1.0]))) is None


def test_sagittal_slices_across_the_whole_head(head):
    whole = phantom_volume(3, "no_tumor", shape=(30, 112, 80), spacing_mm=(6.0, 2.0, 2.0))
    midline = find_midline(whole.scan)
    assert abs(distance_mm(midline, [14.5, 56, 40])) < 2.5


def test_noise_does_not_move_the_middle(head):
    rng = np.random.default_rng(0)
    noisy = head.image + rng.rayleigh(45, head.image.shape)
    clean, with_noise = find_midline(head.scan), find_midline(Scan.from_array(noisy, head.affine))
    middle = np.array([47.5, 55.5, 10.0])
    assert abs(distance_mm(with_noise, middle) - distance_mm(clean, middle)) < 1.5


def test_no_middle_without_geometry_or_head(head):
    assert find_midline(Scan.from_array(head.image)) is None
    assert find_midline(Scan.from_array(head.image[:, :, 10])) is None
    assert find_midline(Scan(head.image, head.affine, None, volume=True)) is None
    assert find_midline(Scan.from_array(np.zeros(SHAPE), head.affine)) is None
    assert find_midline(Scan.from_array(np.ones(SHAPE), head.affine)) is None


def test_three_quarters_make_a_side():
    midline = Midline(np.array([1.0, 0.0, 0.0]), -9.5)
    for right, expected in ((4, "right"), (3, "right"), (2, "midline"), (1, "left"), (0, "left")):
        member = np.zeros((20, 4, 1), bool)
        for k in range(4):
            member[15 if k < right else 3, k] = True
        assert midline.side(member, np.zeros(3, int)) == expected
        assert midline.side(member[2:], np.array([2, 0, 0])) == expected
