"""Damage inside compressed voxels is found by the checksum, which stands behind the last voxel."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan

VOXELS = np.random.default_rng(5).integers(0, 40, (30, 28, 12)).astype(np.int16)


def save(folder, name):
    path = folder / name
    if name.endswith(".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path), useCompression=True)
    elif name.endswith(".mgz"):
        nib.save(nib.MGHImage(VOXELS, np.eye(4)), path)
    elif name.endswith(".hdr"):
        nib.save(nib.Nifti1Pair(VOXELS, np.eye(4)), path)
        for part in (path, path.with_suffix(".img")):
            part.with_name(f"{part.name}.gz").write_bytes(gzip.compress(part.read_bytes()))
            part.unlink()
        return path.with_name(f"{name}.gz"), path.with_suffix(".img.gz")
    else:
        nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    return path, path


@pytest.mark.parametrize("name", ["scan.nii.gz", "called-otherwise.nii.gz.bak", "scan.hdr", "scan.mgz", "scan.nrrd"])
def test_a_changed_bit_is_damage(tmp_path, name):
    if name.endswith(".bak"):
        path = save(tmp_path, "scan.nii.gz")[0].rename(tmp_path / name)
        packed = path
    else:
        path, packed = save(tmp_path, name)
    whole = packed.read_bytes()
    expected = open_scan(path).voxels
    read = 0
    for place in np.random.default_rng(1).integers(len(whole) // 4, len(whole) - 1, 40):
        content = bytearray(whole)
        content[place] ^= 1 << int(place % 8)
        packed.write_bytes(content)
        try:
            voxels = open_scan(path).voxels
        except InputError as error:
            assert "damaged or cut off" in str(error)
            continue
        read += 1
        assert np.array_equal(voxels, expected)
    assert read <= 1
    packed.write_bytes(whole[:-3])  # within the checksum
    with pytest.raises(InputError, match="damaged or cut off"):
        open_scan(path)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.mgz", "scan.nrrd"])
def test_bytes_behind_the_end_do_no_harm(tmp_path, name):
    path, _ = save(tmp_path, name)
    expected = open_scan(path).voxels
    with path.open("ab") as file:
        file.write(b"left by a bad copy")
    assert np.array_equal(open_scan(path).voxels, expected)
