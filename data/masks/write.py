"""Masks -> files in the source's own geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.files import whole_file
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.scan import Scan


def write_mask_png(path: Path, mask_hw: NDArray[np.uint8]) -> None:
    """A mask of 0 and 1 as a picture of 0 and 255, in the rows and columns of its slice."""
    write_png(path, (mask_hw != 0).astype(np.uint8) * 255)


def write_mask_nifti(path: Path, mask: NDArray[np.uint8], scan: Scan) -> None:
    """A mask as uint8 NIfTI with the source's shape and place.

    From a NIfTI: its affine, qform, sform and their codes, but none of its words, which may name the patient. From
    another file with an affine: that as sform (code 1, scanner) and qform (code 1; 0 if it is sheared, which a qform
    cannot say), in mm.

    Args:
        path: Ends in ``.nii.gz``.
        mask: 0 and 1 in the array order of ``scan.voxels``.
        scan: The source.
    """
    import nibabel as nib

    shaped = mask.reshape(scan.source_shape or mask.shape).astype(np.uint8)
    if scan.header is not None:
        header = _wordless(scan.header)
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_max"], header["cal_min"] = 0, 0
        header["descrip"] = b"tumorlens tumor mask"
        kind: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
        # No affine: nibabel would rewrite both forms and their codes from it; the header's own are to stay.
        image = kind(shaped, None, header)
    elif scan.affine is not None:
        image = nib.Nifti1Image(shaped, scan.affine)
        image.set_sform(scan.affine, 1)
        image.set_qform(scan.affine, 0 if _is_sheared(scan.affine) else 1)
        image.header.set_xyzt_units("mm")
    else:
        image = nib.Nifti1Image(shaped, np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0))[:3], 1.0]))
    with whole_file(path) as part:
        nib.save(image, part)


def _wordless(header: Any) -> Any:
    """A copy of a NIfTI header without extensions (they hold DICOM headers, comments), free text and intent."""
    copy = type(header)(header.binaryblock, header.endianness, check=False)
    copy.set_intent("none", (), "")
    for field in ("data_type", "db_name", "descrip", "aux_file", "unused_str"):
        if field in copy.structarr.dtype.names:
            copy[field] = b""
    return copy


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the array axes are not at right angles, by more than the float32 of a header loses."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
