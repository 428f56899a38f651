"""Planes: which volumes are cut in three of them, which slices, and how their maps become one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Placement
from tumorlens.data.scan import Scan
from tumorlens.pipeline.volumes.planes import PlaneAnswer, fuse, is_isotropic, on_grid, slices_across

SIZE = 32
WHOLE = Placement((SIZE, SIZE), (0, SIZE, 0, SIZE), (SIZE, SIZE), (0, 0))
CUBE = Scan.from_array(np.zeros((SIZE, SIZE, SIZE)), np.diag([3.0, 3.0, 3.0, 1.0]))


def answer(axis, maps, step=1, scan=CUBE):
    """Maps are levels (of the whole slice) or arrays, in the order of the array's axes."""
    across = scan.in_plane(axis)
    drawn = {}
    for k, level in maps.items():
        volume = np.zeros(scan.voxels.shape, np.uint8)
        np.moveaxis(volume, axis, 0)[k] = level
        drawn[k] = (np.ascontiguousarray(across.view(volume, k)), WHOLE)
    return PlaneAnswer(across, drawn, np.full((across.n_slices, 4), np.nan, np.float32), step)


# ---- near isotropic ----


def head(spacing, shape):
    return phantom_volume(7, "meningioma", shape=shape, spacing_mm=spacing).scan


def test_a_head_of_even_voxels_is_isotropic():
    assert is_isotropic(head((2.0, 2.0, 2.0), (72, 84, 72)))
    assert is_isotropic(head((2.0, 2.0, 2.8), (72, 84, 52)))


@pytest.mark.parametrize(("spacing", "shape"), [((2.0, 2.0, 5.0), (72, 84, 30)), ((3.0, 3.0, 10.0), (64, 75, 12))])
def test_thick_slices_are_not(spacing, shape):
    assert not is_isotropic(head(spacing, shape))


def test_a_header_that_lost_its_spacing_is_not_believed():
    """24 slices of 6 mm whose header says 1 mm would be a head of 24 mm."""
    thick = head((1.0, 1.0, 6.0), (144, 168, 24))
    lost = Scan.from_array(thick.voxels, np.diag([1.0, 1.0, 1.0, 1.0]))
    assert not is_isotropic(lost)


def test_a_volume_without_orientation_or_spacing_is_not_isotropic():
    scan = head((2.0, 2.0, 2.0), (72, 84, 72))
    assert not is_isotropic(replace(scan, affine=None))
    assert not is_isotropic(Scan.from_array(scan.voxels))
    assert not is_isotropic(Scan.from_array(np.zeros((64, 64))))


# ---- the map of all planes ----


def test_planes_are_averaged_geometrically():
    levels = {0: 255, 1: 128, 2: 32}
    fused = fuse([answer(axis, dict.fromkeys(range(SIZE), level)) for axis, level in levels.items()], SIZE)
    assert fused.shape == CUBE.voxels.shape
    np.testing.assert_allclose(fused, np.prod(list(levels.values())) ** (1 / 3), atol=3)


def test_one_plane_alone_draws_nothing():
    everywhere = dict.fromkeys(range(SIZE), 255)
    stripes = answer(2, everywhere)
    assert not fuse([stripes, answer(0, {}), answer(1, {})], SIZE).any()
    nothing = dict.fromkeys(range(SIZE), 0)
    assert fuse([stripes, answer(0, everywhere), answer(1, nothing)], SIZE).max() < 0.3 * 255


def test_planes_that_did_not_see_a_voxel_have_no_vote():
    everywhere = dict.fromkeys(range(SIZE), 255)
    fused = fuse([answer(2, everywhere), answer(0, dict.fromkeys(range(10, 20), 255)), answer(1, {})], SIZE)
    assert (fused[10:20] == 255).all()
    assert not fused[:10].any() and not fused[20:].any()


def test_slices_between_two_of_a_step_are_interpolated():
    fused = fuse([answer(axis, {k: 8 * k for k in range(0, SIZE, 3)}, step=3) for axis in (0, 1)], SIZE)
    diagonal = fused[np.arange(31), np.arange(31), 5].astype(int)
    np.testing.assert_allclose(diagonal[1:], 8 * np.arange(1, 31), atol=9)
    gap = fuse([answer(axis, {0: 255, 6: 255}, step=3) for axis in (0, 1)], SIZE)
    assert not gap[3, 3].any()


def test_the_map_keeps_its_place_in_every_plane():
    rng = np.random.default_rng(0)
    volume = np.where(rng.random(CUBE.voxels.shape) > 0.9, 255, 0).astype(np.uint8)
    planes = [answer(axis, dict(enumerate(np.moveaxis(volume, axis, 0)))) for axis in range(3)]
    np.testing.assert_allclose(fuse(planes, SIZE), volume, atol=1)


def test_a_single_plane_is_smoothed_along_its_normal():
    fused = fuse([answer(2, {5: 200, 10: 200, 11: 200})], SIZE)
    assert fused[3, 3, 3:14].tolist() == [0, 50, 100, 50, 0, 0, 50, 150, 150, 50, 0]


def test_a_single_slice_is_not_smoothed():
    flat = Scan.from_array(np.zeros((SIZE, SIZE, 1)), np.diag([3.0, 3.0, 3.0, 1.0]))
    assert (fuse([answer(2, {0: 200}, scan=flat)], SIZE) == 200).all()


# ---- the slices of other planes ----


def test_other_planes_are_cut_near_a_suspicion_only():
    spot = np.zeros((SIZE, SIZE), np.uint8)
    spot[12:18, 20:26] = 255
    found = answer(2, dict.fromkeys(range(4, 9), spot))
    assert slices_across(0, [found], SIZE, 77, 0.0).tolist() == list(range(10, 20))  # 6 mm are two voxels
    assert slices_across(1, [found], SIZE, 77, 0.0).tolist() == list(range(18, 28))
    assert not slices_across(0, [found], SIZE, 77, 1e6).size


def test_slices_are_taken_one_in_a_step_wherever_they_begin():
    wanted = np.zeros(20, bool)
    wanted[4:14] = True
    assert on_grid(wanted, 3).tolist() == [6, 9, 12]
    assert on_grid(wanted, 1).tolist() == list(range(4, 14))
