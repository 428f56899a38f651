"""Geometry of a scan: how its slices are cut and shown, and how masks go back into the volume."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt2axcodes
from scipy.spatial.transform import Rotation

from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.scan import Scan, shear_deg, straightened


def all_orientations() -> list[str]:
    """The 48 ways in which array axes can run along the body's."""
    from itertools import permutations, product

    pairs = ("LR", "PA", "IS")
    return ["".join(p[s] for p, s in zip(order, sense, strict=True))
            for order in permutations(pairs) for sense in product((0, 1), repeat=3)]  # fmt: skip


def reoriented(voxels, affine, code):
    """The same volume stored in another orientation."""
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    transform = ornt_transform(io_orientation(affine), axcodes2ornt(code))
    return apply_orientation(voxels, transform), affine @ inv_ornt_aff(transform, voxels.shape)


def test_there_are_48_orientations():
    assert len(set(all_orientations())) == 48


@pytest.mark.parametrize("code", all_orientations())
def test_slices_look_the_same_in_every_orientation(code):
    phantom = phantom_volume(1, "glioma", shape=(40, 48, 10), spacing_mm=(4, 4, 12))
    reference = Scan.from_array(phantom.image, phantom.affine)
    voxels, affine = reoriented(phantom.image, phantom.affine, code)
    assert "".join(ornt2axcodes(np.array(axcodes2ornt(code)))) == code
    scan = Scan.from_array(voxels, affine)
    assert scan.plane == "axial"
    assert scan.n_slices == 10
    slices = {scan.slice(k).tobytes() for k in range(10)}
    assert slices == {reference.slice(k).tobytes() for k in range(10)}
    masks = np.stack([(scan.slice(k) > 300).astype(np.uint8) for k in range(10)])
    np.testing.assert_array_equal(scan.mask_from_slices(masks), voxels > 300)


def test_axial_view_is_radiological():
    voxels = np.zeros((10, 12, 4))
    voxels[9, 6, :] = 1  # far right of the patient
    voxels[5, 11, :] = 2  # far anterior
    view = Scan.from_array(voxels, np.diag([2, 2, 6, 1.0])).slice(0)
    assert np.argwhere(view == 1)[0].tolist() == [5, 0]  # the patient's right is on the left of the picture
    assert np.argwhere(view == 2)[0].tolist() == [0, 4]  # anterior is up


@pytest.mark.parametrize(("spacing", "plane"), [((6, 1, 1), "sagittal"), ((1, 6, 1), "coronal"), ((1, 1, 6), "axial")])
def test_slices_lie_in_the_plane_of_acquisition(spacing, plane):
    scan = Scan.from_array(np.random.default_rng(0).normal(size=(20, 20, 20)), np.diag([*spacing, 1.0]))
    assert scan.plane == plane


def test_even_spacing_gives_axial_slices():
    scan = Scan.from_array(np.random.default_rng(0).normal(size=(20, 30, 25)), np.eye(4))
    assert scan.plane == "axial"


def test_pixel_aspect_comes_from_the_spacing():
    scan = Scan.from_array(np.zeros((8, 9, 3)), np.diag([1.0, 2.0, 7.0, 1.0]))
    assert scan.slice(0).shape == (9, 8)
    assert scan.pixel_aspect == 2.0


def test_unknown_spacing_stays_unknown():
    scan = Scan.from_array(np.zeros((8, 9)))
    assert scan.spacing_mm is None
    assert scan.slice_spacing_mm is None


@pytest.mark.parametrize(
    "voxels", [np.zeros(5), np.zeros((0, 4)), np.zeros((2, 2, 2, 2)), np.array([["a"]]), np.zeros((3, 3), complex)]
)
def test_arrays_that_are_not_scans(voxels):
    with pytest.raises(InputError):
        Scan.from_array(voxels)


def test_singular_affine():
    with pytest.raises(InputError, match="singular"):
        Scan.from_array(np.zeros((3, 3, 3)), np.diag([1, 1, 0, 1]))


@pytest.mark.parametrize("code", all_orientations())
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_look_the_same_in_every_orientation(code, plane):
    phantom = phantom_volume(1, "glioma", shape=(20, 24, 10), spacing_mm=(8, 7, 12))
    reference = phantom.scan.with_plane(plane)
    voxels, affine = reoriented(phantom.image, phantom.affine, code)
    scan = Scan.from_array(voxels, affine).with_plane(plane)
    assert scan.plane == plane
    n = {"sagittal": 20, "coronal": 24, "axial": 10}[plane]
    assert scan.n_slices == n
    assert {scan.slice(k).tobytes() for k in range(n)} == {reference.slice(k).tobytes() for k in range(n)}
    assert scan.pixel_aspect == pytest.approx({"sagittal": 12 / 7, "coronal": 12 / 8, "axial": 7 / 8}[plane])
    masks = np.stack([(scan.slice(k) > 300).astype(np.uint8) for k in range(n)])
    np.testing.assert_array_equal(scan.mask_from_slices(masks), voxels > 300)


def test_coronal_and_sagittal_views_are_radiological():
    voxels = np.zeros((10, 12, 8))
    voxels[9, :, :4] = 1  # far right of the patient, lower half
    scan = Scan.from_array(voxels, np.diag([2, 2, 6, 1.0]))
    view = scan.with_plane("coronal").slice(5)
    assert view.shape == (8, 10)
    assert view[:, 0].tolist() == [0] * 4 + [1] * 4
    voxels[:] = 0
    voxels[5, 11, 6:] = 1  # anterior, above
    view = scan.with_plane("sagittal").slice(5)
    assert np.argwhere(view).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("code", ["RAS", "LPS", "ASR", "SLP", "PIR"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "acquisition"])
def test_the_place_in_the_view_is_where_the_voxel_shows(code, plane):
    voxels = np.zeros((10, 12, 8))
    voxels[2, 9, 5] = 1
    voxels, affine = reoriented(voxels, np.diag([2, 2, 6, 1.0]), code)
    scan = Scan.from_array(voxels, affine).with_plane(plane)
    index = np.argwhere(voxels)[0]
    assert np.argwhere(scan.slice(index[scan.slice_axis])).tolist() == [list(scan.place_in_view(index))]


def test_the_plane_of_acquisition_comes_back():
    scan = Scan.from_array(np.zeros((20, 20, 6)), np.diag([1, 1, 5, 1.0]))
    coronal = scan.with_plane("coronal")
    assert (coronal.slice_axis, scan.slice_axis) == (1, 2)
    assert coronal.with_plane("acquisition").slice_axis == 2
    assert coronal.with_plane("sagittal").with_plane("axial").plane == "axial"
    assert scan.in_plane(0).plane == "sagittal"


def test_planes_without_orientation():
    volume, picture = Scan.from_array(np.zeros((20, 20, 6))), Scan.from_array(np.zeros((20, 20)))
    with pytest.raises(InputError, match="orientation is not known"):
        volume.with_plane("axial")
    with pytest.raises(InputError, match="a picture has no planes"):
        picture.with_plane("axial")
    with pytest.raises(InputError, match="a picture has no planes"):
        picture.in_plane(0)
    with pytest.raises(InputError, match="no axis 3"):
        volume.in_plane(3)
    with pytest.raises(InputError, match="'oblique' is not one of"):
        volume.with_plane("oblique")
    assert volume.in_plane(0).slice(3).shape == (20, 6)
    assert volume.with_plane("acquisition").n_slices == 6
    assert picture.with_plane("acquisition").n_slices == 1


def test_a_single_slice_has_one_plane():
    scan = Scan.from_array(np.zeros((20, 22, 1)), np.diag([1, 1, 5, 1.0]))
    assert scan.with_plane("axial").slice(0).shape == (22, 20)
    with pytest.raises(InputError, match="a single axial slice has no coronal view"):
        scan.with_plane("coronal")


def test_a_view_of_a_volume_in_fortran_order_copies_nothing():
    scan = Scan.from_array(np.zeros((30, 30, 8), order="F"), np.diag([1, 1, 5, 1.0]))
    assert np.shares_memory(scan.slice(3), scan.voxels)


def test_an_array_of_truth_values_is_a_scan_like_any_other():
    volume = np.zeros((20, 30, 25), bool)
    volume[5:15, 5:15, 5:15] = True
    scan = Scan.from_array(volume)
    assert scan.volume and scan.voxels.dtype == np.uint8
    assert Scan.from_array(volume[..., :3]).volume  # three slices, not a color


@pytest.mark.parametrize("lengths", [(0.5, 0.5, 5), (1, -1, 1), (3, 0.4, 2)])
@pytest.mark.parametrize("shape", [(256, 256, 20), (200, 30, 180), (512, 512, 3), (90, 100, 1)])
def test_straightened_axes_are_at_right_angles_and_the_center_stays(lengths, shape):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix().round(3) * lengths
    affine[:3, 3] = 40, -30, 7
    straight = straightened(affine, shape)
    assert shear_deg(affine) > 0.01 and shear_deg(straight) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(straight, axis=0), np.linalg.norm(affine, axis=0), rtol=1e-3)
    assert np.sign(np.linalg.det(straight)) == np.sign(np.linalg.det(affine))
    center = [*((np.array(shape) - 1) / 2), 1]
    np.testing.assert_allclose(straight @ center, affine @ center, atol=1e-9)
    assert straightened(straight, shape) is straight


def test_no_other_straight_axes_put_the_voxels_nearer():
    rng, shape = np.random.default_rng(0), np.array((200, 160, 24))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (8, 5, -12), degrees=True).as_matrix().round(2) * (1, 1, 5)
    offsets = (rng.random((20000, 3)) - 0.5) * shape

    def apart(matrix):
        return np.square(offsets @ (matrix - affine[:3, :3]).T).sum(axis=1).mean()

    best = straightened(affine, shape, most_deg=5)[:3, :3]
    turns = Rotation.from_rotvec(rng.normal(scale=2e-3, size=(200, 3))).as_matrix()
    assert apart(best) < min(apart(turn @ best) for turn in turns)


def test_the_few_slices_of_a_short_stack_do_not_turn_the_slices():
    affine = np.diag([1, 1, 3, 1.0])
    affine[:3, 2] = 0, 3 * np.sin(0.008), 3 * np.cos(0.008)
    straight = straightened(affine, (256, 256, 3))
    np.testing.assert_allclose(straight[:3, :2], affine[:3, :2], atol=1e-4)


def test_real_shear_and_exact_axes_are_left_alone():
    for degrees in (0, 1, 20):
        affine = np.diag([1, 1, 4, 1.0])
        affine[1, 2] = 4 * np.tan(np.radians(degrees))
        assert straightened(affine, (64, 64, 20)) is affine
        assert shear_deg(affine) == pytest.approx(degrees, abs=1e-6)
