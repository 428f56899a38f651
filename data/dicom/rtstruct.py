"""A DICOM Segmentation -> RT Structure Set (PS3.3 A.19) with a contour around each part; and such contours read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.derived import RESEARCH_ONLY, SEGMENTATION_SERIES, highdicom_errors, inherit, save_dicom
from tumorlens.data.dicom.headers import number, read_dataset, read_header, text, value
from tumorlens.data.dicom.seg_exchange import GEOMETRY, Rgb, of_frame, read_segmentation
from tumorlens.data.dicom.source import DicomSource
from tumorlens.data.errors import InputError, reason_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# A mask -> its outlines in pixels, ``(n, 2)`` x and y: the first pixel is the square from (0, 0) to (1, 1).
Trace = Callable[[NDArray[np.bool_]], list[NDArray[np.float64]]]

_WHAT = "RT Structure Set"
_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but no other class can stand for a study
_SERIES = 4  # after the report and the overlay of `data.dicom.derived`
_COPIED = ("StudyInstanceUID", "FrameOfReferenceUID", "Manufacturer", "ManufacturerModelName", "SoftwareVersions")
_COPIED_IF_GIVEN = ("DeviceSerialNumber", "PositionReferenceIndicator")
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def write_structure_set(
    source: Path, target: Path, colors: Mapping[int, Rgb], merged: tuple[str, Rgb] | None, trace: Trace
) -> None:
    """Write the segments of a DICOM Segmentation of tumorlens as regions of an RT Structure Set.

    A segment without pixels is a region without contours.

    Args:
        source: The Segmentation, with one segment a lesion.
        target: The file to write.
        colors: Number of a segment -> its color.
        merged: Name and color of the one region that all segments become; None keeps them apart.
        trace: Gives the outlines of a slice's mask. Each becomes a contour, so a hole must be part of its outline.

    Raises:
        InputError: The file is not a DICOM Segmentation of tumorlens, or is damaged.
    """
    segmentation, frames = read_segmentation(source)
    with highdicom_errors(_WHAT):
        structures = _without_regions(segmentation)
        structures.StructureSetROISequence, structures.ROIContourSequence = [], []
        structures.RTROIObservationsSequence = []
        contours = _contours(segmentation, frames, merged is not None, trace, source)
        for segment in list(segmentation.SegmentSequence)[: 1 if merged is not None else None]:
            roi = 1 if merged is not None else int(segment.SegmentNumber)
            color = colors.get(roi) if merged is None else merged[1]
            name = text(segment, "SegmentLabel") if merged is None else merged[0]
            _add_region(structures, roi, name, color, segment, contours[roi])
        save_dicom(target, structures)


def is_structure_set(path: Path) -> bool:
    """Whether a DICOM file is an RT Structure Set.

    Raises:
        InputError: The file is not DICOM, or is damaged.
    """
    return text(read_header(path, ("SOPClassUID",)), "SOPClassUID") == _SOP_CLASS


def read_contours(path: Path) -> list[list[NDArray[np.float64]]]:
    """The closed contours of each region of an RT Structure Set, as points ``(n, 3)`` in RAS mm.

    Points and open lines have no area and are left out.

    Raises:
        InputError: The file is damaged.
    """
    structures = read_dataset(path)
    try:
        return [
            [
                np.array(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1)
                for contour in value(region, "ContourSequence") or ()
                if text(contour, "ContourGeometricType") in _CLOSED
            ]
            for region in value(structures, "ROIContourSequence") or ()
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the {_WHAT} is damaged ({reason_of(error)})") from None


def _without_regions(segmentation: Dataset) -> Dataset:
    """The structure set but for its regions: patient, study, series, equipment and references to the source images."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, generate_uid

    structures = Dataset()
    structures.file_meta = FileMetaDataset()
    # With explicit VR, a contour of more than 65,534 characters does not fit its element.
    structures.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    structures.SOPClassUID, structures.SOPInstanceUID = _SOP_CLASS, str(generate_uid())
    for name in _COPIED:
        setattr(structures, name, value(segmentation, name))
    for name in _COPIED_IF_GIVEN:
        if name in segmentation:
            setattr(structures, name, value(segmentation, name))
    inherit(structures, DicomSource((segmentation,), ()))
    structures.Modality, structures.SeriesInstanceUID = "RTSTRUCT", str(generate_uid())
    structures.SeriesNumber = int(number(segmentation, "SeriesNumber") or 0) + _SERIES - SEGMENTATION_SERIES
    structures.SeriesDescription = structures.StructureSetName = "tumorlens tumor outlines"
    structures.InstanceNumber, structures.OperatorsName = 1, ""
    structures.StructureSetLabel = "TUMOR_OUTLINES"
    structures.StructureSetDescription = f"tumorlens tumor outlines, {RESEARCH_ONLY}"
    structures.ApprovalStatus = "UNAPPROVED"
    now = datetime.now()
    structures.StructureSetDate = structures.InstanceCreationDate = now.strftime("%Y%m%d")
    structures.StructureSetTime = structures.InstanceCreationTime = now.strftime("%H%M%S")
    study, frame_of_reference = Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, structures.StudyInstanceUID
    study.RTReferencedSeriesSequence = []
    for referenced in segmentation.ReferencedSeriesSequence:
        series = Dataset()
        series.SeriesInstanceUID = referenced.SeriesInstanceUID
        series.ContourImageSequence = [_image(item) for item in referenced.ReferencedInstanceSequence]
        study.RTReferencedSeriesSequence.append(series)
    frame_of_reference.FrameOfReferenceUID = structures.FrameOfReferenceUID
    frame_of_reference.RTReferencedStudySequence = [study]
    structures.ReferencedFrameOfReferenceSequence = [frame_of_reference]
    return structures


def _add_region(
    structures: Dataset, roi: int, name: str, color: Rgb | None, segment: Dataset, contours: list[Dataset]
) -> None:
    from pydicom.dataset import Dataset

    region, drawn, observed = Dataset(), Dataset(), Dataset()
    region.ROINumber, region.ROIName = roi, name[:64]
    region.ReferencedFrameOfReferenceUID = structures.FrameOfReferenceUID
    region.ROIGenerationAlgorithm = text(segment, "SegmentAlgorithmType")
    region.ROIGenerationDescription = text(segment, "SegmentAlgorithmName")[:64]
    structures.StructureSetROISequence.append(region)
    drawn.ReferencedROINumber = roi
    if color is not None:
        drawn.ROIDisplayColor = list(color)
    if contours:
        drawn.ContourSequence = contours
    structures.ROIContourSequence.append(drawn)
    observed.ObservationNumber, observed.ReferencedROINumber = roi, roi
    observed.ROIObservationDescription = RESEARCH_ONLY
    observed.RTROIInterpretedType, observed.ROIInterpreter = "GTV", ""  # gross tumor volume: what is seen of it
    observed.RTROIIdentificationCodeSequence = list(segment.SegmentedPropertyTypeCodeSequence)
    structures.RTROIObservationsSequence.append(observed)


def _contours(
    segmentation: Dataset, frames: NDArray[np.bool_], merge: bool, trace: Trace, path: Path
) -> dict[int, list[Dataset]]:
    """Number of a region -> its contours."""
    planes: dict[tuple[int, tuple[float, ...]], list[int]] = defaultdict(list)
    items = list(segmentation.PerFrameFunctionalGroupsSequence)
    for index in np.flatnonzero(frames.any(axis=(1, 2))).tolist():
        place = tuple(of_frame(segmentation, index, "ImagePositionPatient", path).round(3))
        roi = 1 if merge else int(of_frame(segmentation, index, "ReferencedSegmentNumber", path)[0])
        planes[roi, place].append(index)
    contours: dict[int, list[Dataset]] = defaultdict(list)
    for (roi, _), same in planes.items():
        rings = trace(np.asarray(frames[same].any(axis=0)))
        image = items[same[0]].DerivationImageSequence[0].SourceImageSequence[0]
        contours[roi] += [_contour(ring, image) for ring in _in_space(rings, segmentation, same[0], path)]
    return contours


def _in_space(
    rings: list[NDArray[np.float64]], segmentation: Dataset, frame: int, path: Path
) -> Iterator[NDArray[np.float64]]:
    """The rings of a frame as points ``(n, 3)`` in LPS mm. The frame's position is the center of its first pixel."""
    position, orientation, spacing = (of_frame(segmentation, frame, name, path) for name in GEOMETRY)
    axes = np.stack([orientation[:3] * spacing[1], orientation[3:] * spacing[0]])
    for ring in rings:
        yield position + (ring - 0.5) @ axes


def _contour(points: NDArray[np.float64], image: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    contour = Dataset()
    contour.ContourImageSequence = [_image(image)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{n:.4f}" for n in (points.round(4) + 0.0).ravel()]  # + 0.0: no minus zero
    return contour


def _image(item: Dataset) -> Dataset:
    """The item's reference to an image, without what else the Segmentation says of it."""
    from pydicom.dataset import Dataset

    image = Dataset()
    for name in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber"):
        if name in item:
            setattr(image, name, item[name].value)
    return image
