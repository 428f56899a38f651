"""MGH, NRRD and MetaImage on disk for the tests, by other software or line by line, and read back by content."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tumorlens.data.formats.metaimage import read_metaimage
from tumorlens.data.formats.mgh import read_mgh
from tumorlens.data.formats.nrrd import read_nrrd
from tumorlens.data.formats.open import sniff

VOXELS = np.random.default_rng(0).integers(0, 900, (6, 7, 5)).astype(np.int16)
VOXELS[1, 5, 3] = 999  # the marked voxel
LPS = np.diag([-1.0, -1.0, 1.0])
ITK = {"nrrd": "nrrd", "nhdr": "nrrd", "mha": "metaimage", "mhd": "metaimage"}
READERS = {"mgh": read_mgh, "nrrd": read_nrrd, "metaimage": read_metaimage}
SMALL = np.arange(60, dtype="<i2")
NRRD = ("type: short", "dimension: 3", "sizes: 5 4 3", "endian: little", "encoding: raw")


def oblique_affine():
    """An affine with three spacings, a rotation and an offset, so that axes cannot be confused."""
    a, b = 0.2, -0.1
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, 2, 4.0])
    affine[:3, 3] = -11, 22, 33
    return affine


def itk_image(voxels, affine):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine[:3, 3]).tolist())
    return image


def save_as(folder, suffix, voxels, affine):
    path = folder / f"a.{suffix}"
    if suffix in ("mgh", "mgz"):
        nib.save(nib.MGHImage(voxels, affine), path)
    else:
        sitk.WriteImage(itk_image(voxels, affine), str(path))
    return path


def read_volume(path, frame=None):
    """By content, as the program does."""
    return READERS[sniff(path)](path, frame)


def place_of(affine, index):
    return (np.asarray(affine) @ [*index, 1])[:3]


def save_nrrd(path, *fields, data=b""):
    path.write_bytes("\n".join(["NRRD0005", "# a comment", *fields, "", ""]).encode() + data)
    return path


def save_mha(path, data=b"", last="ElementDataFile = LOCAL", **fields):
    known = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "DimSize": "5 4 3", "ElementType": "MET_SHORT"}
    lines = [f"{name} = {value}" for name, value in (known | fields).items() if value is not None]
    path.write_bytes("\n".join([*lines, last, ""]).encode() + data)
    return path
