"""The DICOM files of a result: masks as SEG, measurements as SR and, on request, the overlay as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.dicom.seg import write_mask_dicom, write_regions_dicom
from tumorlens.data.errors import InputError
from tumorlens.pipeline.outputs.dicom_overlay import write_overlay_dicom
from tumorlens.pipeline.outputs.dicom_report import segmenter_of, write_report_dicom
from tumorlens.pipeline.outputs.overlay import draw_overlay
from tumorlens.pipeline.result import Result

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def write_dicom(result: Result, folder: Path, secondary_capture: bool) -> tuple[list[str], list[str]]:
    """Write ``mask.dcm``, ``regions.dcm`` (of lesions with regions), ``measurements.dcm`` and, on request,
    ``overlay.dcm``.

    Args:
        result: The result of a scan that was read from DICOM.
        folder: The output folder.
        secondary_capture: Whether to write ``overlay.dcm``.

    Returns:
        The names of the files, and the reasons why others could not be made: the source lacks attributes that the
        standard requires. The rest of the result is written without them.
    """
    files, problems = [], []
    if result.scan.volume:
        try:
            mask = write_mask_dicom(
                folder / "mask.dcm",
                result.numbers,
                result.scan,
                result.label,
                segmenter_of(result),
                classes=result.classes,
            )
            files.append("mask.dcm")
            regions = _write_regions(result, folder / "regions.dcm")
            files += [] if regions is None else ["regions.dcm"]
            write_report_dicom(folder / "measurements.dcm", result, mask, regions)
            files.append("measurements.dcm")
        except InputError as error:
            problems.append(f"no {'measurements.dcm' if files else 'mask.dcm'}: {error}")
    if secondary_capture:
        try:
            write_overlay_dicom(folder / "overlay.dcm", draw_overlay(result), result)
            files.append("overlay.dcm")
        except InputError as error:
            problems.append(f"no overlay.dcm: {error}")
    return files, problems


def _write_regions(result: Result, path: Path) -> Dataset | None:
    if result.region_mask is None or not result.lesions:
        return None
    planes = result.regions.planes(result.regions.bits(result.region_mask))
    named = [(row.name, row.color) for row in result.regions.rows]
    return write_regions_dicom(path, planes, named, result.scan, result.label, segmenter_of(result), result.classes)
