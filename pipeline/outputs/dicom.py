"""The DICOM files of a result: mask as SEG, measurements as SR and, if asked for, the overlay as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.errors import InputError
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.outputs.dicom_overlay import write_overlay_dicom
from tumorlens.pipeline.outputs.dicom_report import segmenter_of, write_report_dicom
from tumorlens.pipeline.result import Result


def write_dicom(
    result: Result, folder: Path, picture: NDArray[np.uint8], secondary_capture: bool
) -> tuple[list[str], list[str]]:
    """Write ``mask.dcm``, ``measurements.dcm`` and, if wanted, ``overlay.dcm``.

    Args:
        result: Of a scan that came from DICOM.
        folder: Where to.
        picture: The overlay, RGB.
        secondary_capture: Whether ``overlay.dcm`` is wanted.

    Returns:
        The names of the files, and why others could not be made (a source that lacks what the standard requires): the
        result stands without them.
    """
    files, problems = [], []
    if result.scan.volume:
        try:
            numbers = number_lesions(result.mask, result.scan)
            mask = write_mask_dicom(folder / "mask.dcm", numbers, result.scan, result.label, segmenter_of(result))
            files.append("mask.dcm")
            write_report_dicom(folder / "measurements.dcm", result, mask)
            files.append("measurements.dcm")
        except InputError as error:
            problems.append(f"no {'measurements.dcm' if files else 'mask.dcm'}: {error}")
    if secondary_capture:
        try:
            write_overlay_dicom(folder / "overlay.dcm", picture, result)
            files.append("overlay.dcm")
        except InputError as error:
            problems.append(f"no overlay.dcm: {error}")
    return files, problems
