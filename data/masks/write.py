"""Masks of 0 and 1 -> files in the geometry of their scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.files import whole_file
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.scan import ROUNDED_DEG, Scan, shear_deg, straightened


def write_mask_png(path: Path, mask_hw: NDArray[np.uint8]) -> None:
    """Write a mask of 0 and 1, ``(rows, columns)`` of its slice, as a picture of 0 and 255."""
    write_png(path, (mask_hw != 0).astype(np.uint8) * 255)


def write_mask_nifti(path: Path, mask: NDArray[np.uint8], scan: Scan) -> None:
    """Write a mask, 0 and 1 in the array order of ``scan.voxels``, as uint8 NIfTI; see `write_nifti`."""
    write_nifti(path, mask.astype(np.uint8), scan, "tumorlens tumor mask")


def write_nifti(path: Path, voxels: NDArray[np.unsignedinteger], scan: Scan, what: str, slope: float = 1.0) -> None:
    """Write whole numbers for each voxel of a scan as NIfTI with the source's shape and place in space.

    If the source is a NIfTI, the file takes over its affine, qform, sform and their codes, but none of its texts, which
    may name the patient. A sform without qform whose axes are not exactly at right angles gets the nearest qform: ITK
    opens no other. The affine of any other source becomes sform (code 1, scanner) and qform (code 1, or 0 for a sheared
    affine, which a qform cannot express), in mm.

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
        _complete_forms(header, scan.voxels.shape)
        kind: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
        # No affine, from which nibabel would rewrite both forms and their codes: the header's own stay.
        image = kind(shaped, None, header)
    elif scan.affine is not None:
        image = nib.Nifti1Image(shaped, scan.affine)
        set_forms(image, scan.affine)
    else:
        image = nib.Nifti1Image(shaped, np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0))[:3], 1.0]))
    image.header["descrip"] = what.encode()
    image.header.set_slope_inter(slope, 0)  # the numbers are stored as they are
    with whole_file(path) as part:
        nib.save(image, part)


def set_forms(image: Any, affine: NDArray[np.float64]) -> None:
    """Write an affine to RAS mm into a NIfTI's header: as sform (code 1, scanner), and as qform (code 1, or 0 for a
    sheared affine, which a qform cannot express)."""
    image.set_sform(affine, 1)
    image.set_qform(straightened(affine, (*image.shape, 1)[:3]), int(shear_deg(affine) <= ROUNDED_DEG))
    image.header.set_xyzt_units("mm")


def _without_texts(header: Any) -> Any:
    """A copy of a NIfTI header without free text, intent and extensions (which hold DICOM headers and comments)."""
    copy = type(header)(header.binaryblock, header.endianness, check=False)
    copy.set_intent("none", (), "")
    for field in ("data_type", "db_name", "descrip", "aux_file", "unused_str"):
        if field in copy.structarr.dtype.names:
            copy[field] = b""
    return copy


def _complete_forms(header: Any, shape: tuple[int, ...]) -> None:
    """Add the nearest qform to a header whose sform, slightly sheared by rounding, is all it has."""
    if int(header["qform_code"]) or not int(header["sform_code"]):
        return
    sform = header.get_sform()
    straight = straightened(sform, shape)
    if straight is not sform:  # else it is exact, or sheared for good
        header.set_qform(straight, int(header["sform_code"]))
