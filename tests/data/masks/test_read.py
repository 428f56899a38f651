"""Which values of a mask file are lesion, and masks that do not fit their scans."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.scans.pictures import save
from tumorlens.data.errors import InputError
from tumorlens.data.masks.read import describe_values, open_mask, read_mask, read_volume_mask
from tumorlens.data.scan import Scan

AFFINE = np.diag([1.0, 1, 5, 1])


def row(*values, dtype=np.uint8):
    """A picture whose columns have these values."""
    return np.tile(np.array(values, dtype), (8, 1))


def lesion_of(path, columns):
    return read_mask(path, Scan.from_array(np.zeros((8, columns))))[0].tolist()


@pytest.mark.parametrize(
    ("values", "lesion", "text"),
    [
        ((0, 255), [0, 1], ""),
        ((0, 1, 2, 4), [0, 1, 1, 1], "values 1, 2, 4, all of them lesion"),
        ((0, 100, 127, 128, 255), [0, 0, 0, 1, 1], "4 gray levels, lesion above 127.5"),
        ((0, 0, 0), [0, 0, 0], ""),
    ],
)
def test_whole_numbers_of_pictures_are_classes_or_gray_levels(tmp_path, values, lesion, text):
    path = save(tmp_path / "a.png", row(*values))
    assert lesion_of(path, len(values)) == lesion
    assert describe_values(open_mask(path)) == text


@pytest.mark.parametrize(
    ("values", "lesion", "text"),
    [
        ((0, 0.3, 0.5, 1), [0, 0, 1, 1], "fractions up to 1, lesion from 0.5 on"),
        ((0, 0.1, 0.2, 0.3), [0, 0, 1, 1], "fractions up to 0.3, lesion from 0.15 on"),
        ((0, 60.5, 200.5, 255), [0, 0, 1, 1], "3 gray levels, lesion above 127.5"),  # after a resize
    ],
)
def test_fractions_are_cut_at_half(tmp_path, values, lesion, text):
    path = save(tmp_path / "a.tif", row(*values, dtype=np.float32))
    assert lesion_of(path, len(values)) == lesion
    assert describe_values(open_mask(path)) == text


def test_any_channel_of_a_color_counts(tmp_path):
    picture = np.zeros((8, 3, 3), np.uint8)
    picture[:, 1, 0] = picture[:, 2, 2] = 255
    assert lesion_of(save(tmp_path / "a.png", picture), 3) == [0, 1, 1]


def test_jpeg_has_no_classes(tmp_path):
    Image.fromarray(np.where(np.arange(64) < 32, 0, 20).astype(np.uint8)[None].repeat(64, axis=0)).save(
        tmp_path / "a.jpg", quality=60
    )
    lesion = read_mask(tmp_path / "a.jpg", Scan.from_array(np.zeros((64, 64))))
    np.testing.assert_array_equal(lesion[:, :28], 0)
    np.testing.assert_array_equal(lesion[:, 36:], 1)


def test_every_class_of_a_volume_is_lesion(tmp_path):
    voxels = np.zeros((4, 5, 3), np.int16)
    voxels[1, 2, 1], voxels[2, 2, 1] = 1, 200
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii")
    scan = Scan.from_array(np.zeros((4, 5, 3)), AFFINE)
    np.testing.assert_array_equal(read_volume_mask(tmp_path / "a.nii", scan), voxels > 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.nii", scan, 1), scan.view(voxels > 0, 1))


@pytest.mark.parametrize(
    ("shape", "shift_mm", "reason"),
    [
        ((4, 5, 2), 0, r"the mask has shape \(4, 5, 2\), its scan \(4, 5, 3\)"),
        ((4, 5, 3), 0.6, "the mask lies up to 0.6 voxels away from its scan"),
        ((4, 5, 3), 0.4, None),
    ],
)
def test_a_volume_mask_has_the_shape_and_place_of_its_scan(tmp_path, shape, shift_mm, reason):
    affine = AFFINE.copy()
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / "a.nii")
    scan = Scan.from_array(np.zeros((4, 5, 3)), AFFINE)
    if reason is None:
        assert not read_volume_mask(tmp_path / "a.nii", scan).any()
        return
    with pytest.raises(InputError, match=rf"a\.nii: {reason}"):
        read_volume_mask(tmp_path / "a.nii", scan)


def test_a_picture_mask_has_the_shape_of_its_image(tmp_path):
    path = save(tmp_path / "a.png", row(0, 1))
    with pytest.raises(InputError, match=r"a\.png: the mask has shape \(8, 2\), its image \(9, 2\)"):
        read_mask(path, Scan.from_array(np.zeros((9, 2))))
