"""Masks -> files in the source's own geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.atomic import whole_file
from data.scan import Scan


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """A grey ``(rows, columns)`` or RGB ``(rows, columns, 3)`` picture."""
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    with whole_file(path) as part:
        _, encoded = cv2.imencode(".png", ordered)
        part.write_bytes(encoded.tobytes())


def write_mask_png(path: Path, mask_hw: NDArray[np.uint8]) -> None:
    """A mask of 0 and 1 as a picture of 0 and 255, in the rows and columns of its slice."""
    write_png(path, (mask_hw != 0).astype(np.uint8) * 255)


def write_mask_nifti(path: Path, mask: NDArray[np.uint8], scan: Scan) -> None:
    """A mask as uint8 NIfTI with the source's shape, affine, qform, sform and their codes.

    Args:
        path: Ends in ``.nii.gz``.
        mask: 0 and 1 in the array order of ``scan.voxels``.
        scan: The source.
    """
    import nibabel as nib

    shaped = mask.reshape(scan.source_shape or mask.shape).astype(np.uint8)
    if scan.header is not None:
        header = scan.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_max"], header["cal_min"] = 0, 0
        header["descrip"] = b"tumorlens tumor mask"
        kind: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
        # No affine: nibabel would rewrite both forms and their codes from it; the header's own are to stay.
        image = kind(shaped, None, header)
    else:
        affine = np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0))[:3], 1.0]) if scan.affine is None else scan.affine
        image = nib.Nifti1Image(shaped, affine)
    with whole_file(path) as part:
        nib.save(image, part)
