"""NIfTI-1 and NIfTI-2 pictures and volumes, compressed or not, whatever the file is called."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.scan import Scan, checked_affine

_MM = {"meter": 1000.0, "micron": 0.001}  # anything else is mm: writers that leave the unit out mean it
_MAX_VOXELS = 2_000_000_000


def read_nifti(path: Path, frame: int | None = None) -> Scan:
    """A 2-D or 3-D NIfTI, or one frame of a 4-D one (the others have no frames, and `frame` says nothing to them).

    Raises:
        InputError: Damaged, more than four axes, a frame that is missing or must be chosen, a singular affine.
    """
    image = _load(path)
    shape = tuple(int(n) for n in image.shape)
    if any(n < 1 for n in shape) or np.prod([float(n) for n in shape]) > _MAX_VOXELS:
        raise InputError(f"the NIfTI header gives an impossible shape {shape}")
    spatial = _spatial_shape(shape)
    affine = checked_affine(image.affine)
    try:
        data = _frame(image, spatial, frame) if len(spatial) == 4 else np.asanyarray(image.dataobj)
    except InputError:
        raise
    except Exception as error:  # nibabel passes on what gzip, numpy and the file system raise on short data
        raise InputError(f"the NIfTI data are damaged or cut off ({error})") from None
    if data.dtype.kind not in "buif":
        raise InputError(f"the NIfTI holds {data.dtype} values; a scan has one number a voxel")
    voxels = data.reshape(spatial[:3] if len(spatial) > 2 else (*spatial, 1))
    factor = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    spacing = None
    if _says_where(image.header):
        spacing = tuple(float(s) * factor for s in np.linalg.norm(affine[:3, :3], axis=0))
    affine = np.diag([factor, factor, factor, 1.0]) @ affine
    return Scan(
        voxels,
        affine=affine,
        spacing_mm=spacing,
        path=path,
        format="nifti",
        volume=True,
        source_shape=shape if len(spatial) < 4 else shape[:3],
        header=image.header.copy(),
        frame=frame if len(spatial) == 4 else None,
    )


def _says_where(header: Any) -> bool:
    """Whether the header speaks of space at all: by a qform, an sform or a unit. Without, its 1 x 1 x 1 is filler."""
    return bool(header["qform_code"] or header["sform_code"] or header.get_xyzt_units()[0] != "unknown")


def _load(path: Path) -> Any:
    import nibabel as nib

    logging.getLogger("nibabel").setLevel(logging.CRITICAL)  # header repairs are not the user's business
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if compressed else open
    with opener(path, "rb") as file:
        head = file.read(8)
    if head[4:8] == b"ni2\x00":
        raise InputError("this is the header of an .img/.hdr pair; convert it to .nii")
    kind = nib.Nifti2Image if head[4:7] == b"n+2" else nib.Nifti1Image
    try:
        named_so = path.name.endswith(".nii.gz") if compressed else path.name.endswith(".nii")
        if named_so:  # read lazily from disk; under another name nibabel would refuse it
            return kind.from_filename(path)
        with opener(path, "rb") as file:
            return kind.from_bytes(file.read())
    except Exception as error:  # nibabel's header checks raise many types; all of them mean a damaged file
        raise InputError(f"the NIfTI file is damaged or cut off ({error})") from None


def _spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing axes of length 1 (beyond the second)."""
    spatial = shape
    while len(spatial) > 2 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if len(spatial) > 4 or len(spatial) < 2 or len(shape) > 4:
        raise InputError(f"the NIfTI has {len(shape)} axes {shape}; 2, 3 or 4 can be used")
    return spatial


def _frame(image: Any, shape: tuple[int, ...], frame: int | None) -> Any:
    if frame is None:
        raise InputError(f"the NIfTI is 4-D with {shape[3]} frames; choose one with --frame 0 to {shape[3] - 1}")
    if not 0 <= frame < shape[3]:
        raise InputError(f"frame {frame} does not exist, the NIfTI has frames 0 to {shape[3] - 1}")
    return np.asanyarray(image.dataobj[..., frame])
