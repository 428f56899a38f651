"""Masks of 0 and 1 -> files in the geometry of their scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.files import whole_file
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.scan import Scan


def write_mask_png(path: Path, mask_hw: NDArray[np.uint8]) -> None:
    """Write a mask of 0 and 1, ``(rows, columns)`` of its slice, as a picture of 0 and 255."""
    write_png(path, (mask_hw != 0).astype(np.uint8) * 255)


def write_mask_nifti(path: Path, mask: NDArray[np.uint8], scan: Scan) -> None:
    """Write a mask, 0 and 1 in the array order of ``scan.voxels``, as uint8 NIfTI; see `write_nifti`."""
    write_nifti(path, mask.astype(np.uint8), scan, "tumorlens tumor mask")


def write_nifti(path: Path, voxels: NDArray[np.unsignedinteger], scan: Scan, what: str, slope: float = 1.0) -> None:
    """Write whole numbers for each voxel of a scan as NIfTI with the source's shape and place in space.

    If the source is a NIfTI, the file takes over its affine, qform, sform and their codes, but none of its texts, which
    may name the patient. The affine of any other source becomes sform (code 1, scanner) and qform (code 1, or 0 for a
    sheared affine, which a qform cannot express), in mm.

    Args:
        path: Ends in ``.nii.gz``.
        voxels: In the array order of ``scan.voxels``, uint8 or uint16, as they are stored.
        scan: The source.
        what: The header's description, at most 79 letters.
        slope: What a reader multiplies the stored numbers by.
    """
    import nibabel as nib

    shaped = voxels.reshape(scan.source_shape or voxels.shape)
    if scan.header is not None:
        header = _without_texts(scan.header)
        header.set_data_dtype(shaped.dtype)
        header["cal_max"], header["cal_min"] = 0, 0
        kind: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
        # No affine, from which nibabel would rewrite both forms and their codes: the header's own stay.
        image = kind(shaped, None, header)
    elif scan.affine is not None:
        image = nib.Nifti1Image(shaped, scan.affine)
        image.set_sform(scan.affine, 1)
        image.set_qform(scan.affine, 0 if _is_sheared(scan.affine) else 1)
        image.header.set_xyzt_units("mm")
    else:
        image = nib.Nifti1Image(shaped, np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0))[:3], 1.0]))
    image.header["descrip"] = what.encode()
    image.header.set_slope_inter(slope, 0)  # the numbers are stored as they are
    with whole_file(path) as part:
        nib.save(image, part)


def _without_texts(header: Any) -> Any:
    """A copy of a NIfTI header without free text, intent and extensions (which hold DICOM headers and comments)."""
    copy = type(header)(header.binaryblock, header.endianness, check=False)
    copy.set_intent("none", (), "")
    for field in ("data_type", "db_name", "descrip", "aux_file", "unused_str"):
        if field in copy.structarr.dtype.names:
            copy[field] = b""
    return copy


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the array axes are not at right angles, within the precision of a header's float32."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
