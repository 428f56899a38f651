"""The overlay picture -> DICOM Secondary Capture (PS3.3 A.8), which every viewer shows next to the series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.derived import (
    OVERLAY_SERIES,
    RESEARCH_ONLY,
    highdicom_errors,
    inherit,
    new_series,
    reference_item,
    reference_to,
    save_dicom,
    source_of,
)
from tumorlens.data.dicom.headers import text
from tumorlens.data.dicom.source import DicomSource
from tumorlens.pipeline.outputs.dicom_report import segmenter_of
from tumorlens.pipeline.result import Result

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WHAT = "DICOM secondary capture"
_DESCRIPTION = f"tumorlens overlay, {RESEARCH_ONLY}"

# The directions of the rows and the columns of the radiological view (`data.scan.Scan.slice`).
_DIRECTIONS = {"axial": ("L", "P"), "coronal": ("L", "F"), "sagittal": ("P", "F")}


def write_overlay_dicom(path: Path, picture_rgb: NDArray[np.uint8], result: Result) -> Dataset:
    """Write the overlay as a color Secondary Capture into the study of the scan.

    Args:
        path: The file to write.
        picture_rgb: ``(rows, columns, 3)`` uint8 from `pipeline.outputs.overlay.draw_overlay`.
        result: The result of a scan that was read from DICOM.

    Returns:
        The object as written, a ``highdicom.sc.SCImage``.

    Raises:
        InputError: The scan is not from DICOM, its headers lack the UIDs that the picture refers to, or highdicom
            rejects them. The message says what is missing.
    """
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian

    source = source_of(result.scan)
    algorithm = segmenter_of(result)
    directions = _DIRECTIONS.get(result.scan.plane or "")
    with highdicom_errors(_WHAT):
        capture: Dataset = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=reference_to(source.datasets[0]),
            pixel_array=np.ascontiguousarray(picture_rgb),
            photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            patient_orientation=directions or ("L", "P"),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=algorithm.package_version,
            device_serial_number=algorithm.serial_number,
            series_description=_DESCRIPTION,
            **new_series(source, OVERLAY_SERIES),
        )
        if directions is None:
            capture.PatientOrientation = ""
        capture.BodyPartExamined = "BRAIN"
        capture.ConversionType = "WSD"  # made by a workstation; highdicom writes that it came from a video interface
        capture.DerivationDescription = _DESCRIPTION
        # Our lettering does not identify the patient, so it does not count (PS3.3 C.7.6.1). The source's may.
        capture.BurnedInAnnotation = "YES" if _is_burned_in(source) else "NO"
        capture.SourceImageSequence = _shown_instances(result, source)
        inherit(capture, source)
        save_dicom(path, capture)
    return capture


def _shown_instances(result: Result, source: DicomSource) -> list[Dataset]:
    """The frame that the picture shows, or all instances if the shown plane cuts across them."""
    scan = result.scan
    along_slices = not scan.volume or scan.slice_axis == 2
    place = source.places[result.shown_slice] if along_slices else None
    if place is None:
        return [reference_item(dataset) for dataset in source.datasets]
    return [reference_item(source.datasets[place[0]], place[1])]


def _is_burned_in(source: DicomSource) -> bool:
    return any(text(dataset, "BurnedInAnnotation").upper() == "YES" for dataset in source.datasets)
