"""MGH: voxels keep their type, and a header without a place gives none."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tests.scans.volumes import VOXELS, oblique_affine, read_volume, save_as


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("suffix", ["mgh", "mgz"])
def test_mgh_storage_types(tmp_path, dtype, suffix):
    voxels = np.arange(60).astype(dtype).reshape(3, 4, 5)
    nib.save(nib.MGHImage(voxels, np.eye(4)), tmp_path / f"a.{suffix}")
    scan = read_volume(tmp_path / f"a.{suffix}")
    assert (scan.format, scan.voxels.dtype) == ("mgh", np.dtype(dtype))  # and not the file's big-endian order
    np.testing.assert_array_equal(scan.voxels, voxels)


def test_mgh_without_geometry(tmp_path):
    path = save_as(tmp_path, "mgh", VOXELS, oblique_affine())
    raw = bytearray(path.read_bytes())
    raw[28:30] = b"\0\0"  # goodRASFlag
    path.write_bytes(raw)
    scan = read_volume(path)
    assert (scan.affine, scan.spacing_mm) == (None, None)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
