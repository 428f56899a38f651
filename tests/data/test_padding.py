"""Background: padding of any value becomes 0 or the lowest of the rest, and ordinary scans stay bit for bit."""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.scans.dicom import save_series
from tumorlens.data.formats.open import open_scan
from tumorlens.data.padding import solid_patches, without_padding
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import open_source

SHAPE = (72, 84, 10)


def stripped(seed=0, shape=SHAPE):
    """A brain of several tissues in float64, from 40 to about 1000, and its mask."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (place[0] ** 2 + place[1] ** 2) < 0.7
    tissue = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    tissue = 300 + 400 * (tissue - tissue.min()) / np.ptp(tissue) + rng.normal(0, 25, shape)
    tissue[30:36, 40:48, 3:7] = 40 + rng.normal(0, 4, (6, 8, 4))  # fluid
    tissue[44:50, 40:46, 3:7] = 1000 + rng.normal(0, 20, (6, 6, 4))  # a bright lesion
    return tissue, inside


def z_scores(brain, inside):
    return (brain - brain[inside].mean()) / brain[inside].std()


def assert_dark_outside(scan, padded, inside, dark, tissue_px=0):
    """Outside holds a value, and all of the rest stays but for a few voxels of the value of the background."""
    assert (scan.voxels[~inside] == dark).all() and scan.voxels.dtype == padded.dtype
    assert (scan.voxels[inside] != padded[inside]).sum() <= tissue_px


@pytest.mark.parametrize("value", [-32768, -1024, -300, -9, -3, 3, 500, 1500, 4095, 32767, 63536, 65535])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_background_of_any_value_becomes_0_below_a_brain_of_positive_values(value, dtype):
    brain, inside = stripped()
    padded = np.where(inside, np.rint(brain), value).astype(dtype)
    voxels = padded.copy()
    scan = without_padding(Scan.from_array(voxels))
    assert_dark_outside(scan, padded, inside, 0, tissue_px=20)
    assert len(scan.notes) == 1 and f"{value:g} (" in scan.notes[0] and "set to 0" in scan.notes[0]
    assert not scan.warnings
    assert np.array_equal(voxels, padded)  # the caller's array


@pytest.mark.parametrize("value", [0, -1024, 300, 40000])
@pytest.mark.parametrize("offset", [-500, 30000])
def test_a_background_of_any_value_becomes_the_lowest_where_0_is_not_air(value, offset):
    brain, inside = stripped()
    padded = np.where(inside, np.rint(brain) + offset, value).astype(np.int32)
    dark = padded[inside].min()
    scan = without_padding(Scan.from_array(padded))
    assert_dark_outside(scan, padded, inside, dark, tissue_px=20)
    assert f"set to {dark}" in scan.notes[0]


@pytest.mark.parametrize("value", [0.0, -5.0, -9.0, 7.0])
def test_background_amid_and_beyond_z_scores(value):
    brain, inside = stripped(1)
    padded = np.where(inside, z_scores(brain, inside), value).astype(np.float32)
    assert_dark_outside(without_padding(Scan.from_array(padded)), padded, inside, padded[inside].min(), tissue_px=5)


def test_tissue_that_holds_the_value_of_the_background_stays():
    """Whole numbers: many voxels of the brain are 0 as well, alone or in small patches."""
    brain, inside = stripped(2)
    padded = np.where(inside, np.rint(10 * z_scores(brain, inside)), 0).astype(np.int16)
    zeros = inside & (padded == 0)
    assert zeros.sum() > 100
    voxels = without_padding(Scan.from_array(padded)).voxels
    assert (voxels[~inside] == padded[inside].min()).all()
    assert (voxels[zeros] == 0).mean() > 0.8  # all but those at the brain's surface


def test_clipped_tissue_stays_where_the_background_is_white():
    brain, inside = stripped(3)
    padded = np.where(inside, np.clip(brain * 255 / 700, 0, 255), 255).astype(np.uint8)
    lesion = np.zeros(SHAPE, bool)
    lesion[44:50, 40:46, 3:7] = True
    assert (padded[lesion] == 255).all()
    voxels = without_padding(Scan.from_array(padded)).voxels
    assert (voxels[lesion] == 255).all() and (voxels[~inside] == 0).all()
    assert "as bright as the brightest tissue" in without_padding(Scan.from_array(padded)).warnings[0]


def test_two_values_of_padding():
    brain, inside = stripped(4)
    padded = np.where(inside, z_scores(brain, inside), 0).astype(np.float32)
    padded[:9, :9] = padded[-9:, -9:] = -1024
    scan = without_padding(Scan.from_array(padded))
    assert_dark_outside(scan, padded, inside, padded[inside].min(), tissue_px=5)
    assert "0 and -1024" in scan.notes[0]


def test_padding_beside_air_that_is_dark_becomes_air():
    brain, inside = stripped(5)
    padded = np.where(inside, np.rint(brain), 0).astype(np.int16)
    expected = padded.copy()
    padded[:8, :8] = -32768
    assert np.array_equal(without_padding(Scan.from_array(padded)).voxels, expected)


@pytest.mark.parametrize("part", [slice(0, 3), slice(6, 10)])
def test_slices_of_which_only_some_are_padded(part):
    brain, inside = stripped(6)
    scores = z_scores(brain, inside)
    dark = np.where(inside, scores, scores[inside].min())
    padded = dark.copy()
    padded[..., part][~inside[..., part]] = 0
    padded[..., 0] = 0  # a slice of padding alone
    voxels = without_padding(Scan.from_array(padded)).voxels
    lowest = np.sort(scores[inside])[:5]  # the dark value of the other slices is a background as well
    assert np.ptp(voxels[~inside]) == 0 and voxels.min() in lowest
    assert (voxels != padded)[..., 1:][inside[..., 1:]].sum() <= 10


def test_a_crop_with_background_in_the_corners_only():
    brain, inside = stripped(7)
    box = (slice(9, -9), slice(11, -11))
    brain, inside = brain[box], inside[box]
    assert 0 < (~inside).mean() < 0.2
    padded = np.where(inside, brain, -1024)
    assert np.array_equal(without_padding(Scan.from_array(padded)).voxels, np.where(inside, padded, 0))


@pytest.mark.parametrize("value", [-1024, -32768, 65535])
@pytest.mark.parametrize("order", [1, 3])
def test_resampling_that_mixed_brain_and_background(value, order):
    brain, inside = stripped(8)
    padded = ndimage.zoom(np.where(inside, brain, value), (0.9, 0.9, 1), order=order).astype(np.float32)
    deep = ndimage.zoom(ndimage.binary_erosion(inside, np.ones((9, 9, 1))).astype(float), (0.9, 0.9, 1), order=0) > 0
    outside = ndimage.zoom(ndimage.binary_dilation(inside, np.ones((5, 5, 1))).astype(float), (0.9, 0.9, 1), order=0)
    voxels = without_padding(Scan.from_array(padded)).voxels
    assert np.array_equal(voxels[deep], padded[deep])
    low, high = padded[deep].min(), padded[deep].max()
    assert (voxels >= low - 0.3 * (high - low)).all() and (voxels <= high + 0.3 * (high - low)).all()
    assert np.ptp(voxels[outside == 0]) == 0


@pytest.mark.parametrize("value", [-1024, 100, 500, 1500, 32767])
@pytest.mark.parametrize("order", [1, 3])
def test_resampled_backgrounds_give_what_a_background_of_0_gives(value, order):
    brain, inside = stripped(14)
    resampled = [
        ndimage.zoom(np.where(inside, brain, v).astype(np.float32), (0.9, 0.9, 1), order=order, mode="nearest")
        for v in (0, value)
    ]
    expected, voxels = (without_padding(Scan.from_array(v)).voxels for v in resampled)
    assert np.array_equal(expected, resampled[0])
    assert (voxels > expected + 100).mean() < 0.02  # neither a bright rim nor ripples
    assert (voxels < expected - 100).mean() < 0.08  # the rim of this small brain holds as many


def test_a_bright_lesion_at_the_surface_stays():
    brain, inside = stripped(15)
    inside[44:50, 46:] = False
    expected = np.where(inside, brain, 0).astype(np.float32)
    padded = np.where(inside, brain, 20000).astype(np.float32)
    assert (expected[44:50, 40:46, 3:7] > 900).all()
    assert np.array_equal(without_padding(Scan.from_array(padded)).voxels, expected)


def test_a_background_that_is_constant_but_for_the_last_bits():
    brain, inside = stripped(9)
    noise = np.random.default_rng(0).normal(0, 1e-12, SHAPE)
    padded = np.where(inside, z_scores(brain, inside), noise)
    voxels = without_padding(Scan.from_array(padded)).voxels
    assert (voxels[~inside] == voxels.min()).all() and voxels.min() == padded[inside].min()


def test_the_second_time_changes_nothing():
    brain, inside = stripped(10)
    once = without_padding(Scan.from_array(np.where(inside, z_scores(brain, inside), 0)))
    assert without_padding(once) is once


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_every_slice_axis(plane):
    brain, inside = stripped(11)
    padded = np.moveaxis(np.where(inside, brain, 5000), 2, plane)
    voxels = without_padding(Scan.from_array(padded)).voxels
    assert (np.moveaxis(voxels, plane, 2)[~inside] == 0).all()


@cache
def ordinary():
    """Scans with dark air, and arrays that are no scans."""
    rng = np.random.default_rng(0)
    brain, inside = stripped()
    head = phantom_volume(1, shape=(64, 72, 8), spacing_mm=(3.0, 3.0, 15.0)).image
    saturated = np.where(inside, brain, 20 + rng.integers(0, 9, SHAPE))
    saturated[20:40, -3:, 4:7] = 4095  # bright fat at the edge
    below = np.where(inside, brain, 0)
    below[inside & (brain < 60)] = -35  # as splines leave it
    lined = np.where(inside, 400 + brain, 0)[..., 5]
    lined[:, 0] = 1
    return {
        "noise in the air": head,
        "air of zeros beside a line of ones": lined,
        "air of zeros": np.where(inside, brain, 0),
        "air of zeros, low contrast": np.where(inside, 900 + brain, 0),
        "zeros but for the last bits": np.where(inside, 400 + brain, rng.normal(0, 1e-12, SHAPE)),
        "the darkest value in the air": np.where(inside, brain, brain[inside].min()),
        "nearly the darkest": np.where(inside, brain, brain[inside].min() - 1),
        "air of a few levels": np.where(inside, brain - 1000, -1024 + rng.integers(0, 3, SHAPE)),
        "saturated fat": saturated,
        "undershoot": below,
        "no border": brain,
        "noise alone": rng.normal(size=SHAPE),
        "labels": np.where(inside, 1 + (brain > 500), 0).astype(np.uint8),
        "a ball of ones": inside,
        "tiny": np.arange(8).reshape(2, 2, 2),
        "one row": np.arange(30).reshape(1, 30),
        "a picture": phantom_slice(3).image,
        "a picture of floats": phantom_slice(3).image / 255,
        "a color picture": rng.integers(0, 255, (50, 60, 3)).astype(np.uint8),
    }


@pytest.mark.parametrize("name", ordinary())
def test_other_scans_stay_as_they_are(name):
    scan = Scan.from_array(ordinary()[name])
    assert without_padding(scan) is scan


@pytest.mark.parametrize("gray", [120, 255])
def test_a_stripped_picture_on_a_bright_page(tmp_path, gray):
    brain, inside = stripped(12)
    picture = np.where(inside, np.clip(brain / 5, 0, 254), gray)[..., 5].astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    scan = open_scan(tmp_path / "a.png")
    inside = inside[..., 5]
    assert (scan.voxels[~inside] == 0).all() and scan.notes
    assert np.array_equal(open_source(picture).voxels, scan.voxels)  # a file and an array are one to the program


@pytest.mark.parametrize("gray", [90, 255])
def test_frames_around_pictures_stay(tmp_path, gray):
    framed = np.full((300, 320), gray, np.uint8)
    framed[20:276, 30:286] = phantom_slice(4).image
    Image.fromarray(framed).save(tmp_path / "a.png")
    scan = open_scan(tmp_path / "a.png")
    assert np.array_equal(scan.voxels, framed) and not scan.notes


@pytest.mark.parametrize("value", [-1024, 20000])
def test_files_and_arrays_go_the_same_way(tmp_path, value):
    brain, inside = stripped(13)
    padded = np.where(inside, brain, value).astype(np.int16)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(padded, affine), tmp_path / "a.nii.gz")
    save_series(tmp_path / "dicom", padded, affine)
    expected = np.where(inside, padded, 0)
    for scan in (open_scan(tmp_path / "a.nii.gz"), open_source(Scan.from_array(padded, affine))):
        assert np.array_equal(scan.voxels, expected) and len(scan.notes) == 1
    series = open_scan(tmp_path / "dicom")
    assert sorted(series.voxels.ravel()) == sorted(expected.ravel()) and any("background" in n for n in series.notes)
    assert len(open_source(open_scan(tmp_path / "a.nii.gz")).notes) == 1  # said once


def test_masks_keep_their_values(tmp_path):
    mask = np.full((20, 24, 6), 3, np.uint8)
    mask[5:12, 6:13, 2:4] = np.arange(1, 3)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    assert np.array_equal(open_scan(tmp_path / "mask.nii.gz", constant=True).voxels, mask)


def test_solid_patches():
    mask = np.zeros((12, 12), bool)
    mask[0:3, 0:2] = mask[5:9, 5:9] = mask[10, 3] = True
    assert np.array_equal(np.argwhere(mask & ~solid_patches(mask)), [[10, 3]])
    assert solid_patches(mask, None).sum() == 6
