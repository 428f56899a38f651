"""What is a mask, and what is a scan that somebody gives as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.masks.placed import check_labels

PATH, RANDOM = Path("a.nii"), np.random.default_rng(5)


def blocks(count):
    """A volume of `count` labels, each 2 x 2 x 2 voxels, side by side."""
    labels = np.zeros((8, 8, 8), np.int16)
    labels.reshape(-1)[: min(count, 512)] = np.arange(1, count + 1)
    return labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (RANDOM.integers(0, 900, (9, 9, 9)), "different values"),
        (blocks(256), "it has 256 different values"),
        (RANDOM.integers(0, 200, (9, 9, 9)), "shades of gray"),
        (np.linspace(0, 1, 27).reshape(3, 3, 3), "not whole labels"),
        (np.full((2, 2, 2), -1), "not whole labels"),
    ],
)
def test_scans_are_not_masks(voxels, reason):
    with pytest.raises(InputError, match=rf"^a\.nii: this is not a mask, because .*{reason}.*; give the mask"):
        check_labels(voxels, PATH)


def test_masks_are():
    points = np.zeros((20, 20), np.uint8)
    points[::2, ::2] = np.arange(100).reshape(10, 10)
    for mask in (np.zeros((3, 3, 3)), blocks(255), blocks(3) * 1.0000001, points):
        check_labels(mask, PATH)
    x, y = np.mgrid[-60:60, -60:60]
    brush = np.clip(40 * (50 - np.hypot(x, y)), 0, 255).astype(np.uint8)  # a smooth border
    assert len(np.unique(brush)) > 31
    check_labels(brush, PATH, smooth=True)
