"""Masks of lesions or of their regions -> DICOM Segmentation (PS3.3 A.51) in the geometry of the source instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.derived import (
    MANUFACTURER,
    REGIONS_SERIES,
    RESEARCH_ONLY,
    SEGMENTATION_SERIES,
    Algorithm,
    frame_of_reference,
    highdicom_errors,
    inherit,
    new_series,
    reference_item,
    reference_to,
    save_dicom,
    source_of,
    uid,
)
from tumorlens.data.dicom.headers import frame_items
from tumorlens.data.dicom.headers import numbers as numbers_in
from tumorlens.data.dicom.source import DicomSource, frames_from_volume
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR_FREE, ClassList, TumorClass
from tumorlens.data.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WHAT = "DICOM segmentation"
_LIGHTNESS = (85.0, 35.0)  # L* of the first and the last lesion's shade


def write_mask_dicom(
    path: Path,
    numbers: NDArray[Any],
    scan: Scan,
    label: str,
    algorithm: Algorithm,
    reviewer: str = "",
    classes: ClassList = SHIPPED_CLASSES,
) -> Dataset:
    """Write a binary DICOM Segmentation with one segment for each lesion.

    Only frames that show a lesion are written, each in the plane of the source frame to which it refers. Slices that
    the series lacks have no source and are left out. Without a lesion there is one segment with one empty frame, in the
    middle of the scan.

    Args:
        path: Where the file goes.
        numbers: Number of each voxel's lesion, 0 outside, in the array order of ``scan.voxels``; segment `n` is
            lesion `n`.
        scan: The source, read from DICOM.
        label: The predicted class.
        algorithm: The model that drew the mask.
        reviewer: The person who has corrected it, its Content Creator; empty where nobody has.
        classes: The classes of the classifier.

    Returns:
        The object as written, a ``highdicom.seg.Segmentation``.

    Raises:
        InputError: The scan is not from DICOM, its headers lack the geometry or the UIDs that the references need, or
            highdicom does not accept them. The message says what is missing.
    """
    source = source_of(scan)
    frames = _frames_of(numbers, scan)
    shown = _frames_to_write(frames, source)
    count = int(numbers.max(initial=0))
    segments = np.ascontiguousarray(frames[shown], np.uint8 if count < 256 else np.uint16)
    with highdicom_errors(_WHAT):
        described = _segments(count, classes.row(label), algorithm, corrected=bool(reviewer))
    texts = _Texts("tumorlens tumor mask", "TUMOR_MASK", SEGMENTATION_SERIES, reviewer)
    return _write(path, segments, shown, described, scan, algorithm, texts)


def write_regions_dicom(
    path: Path,
    planes: NDArray[np.uint8],
    regions: Sequence[tuple[str, str]],
    scan: Scan,
    label: str,
    algorithm: Algorithm,
    classes: ClassList = SHIPPED_CLASSES,
) -> Dataset:
    """Write a binary DICOM Segmentation with one segment for each region of lesions, which may lie in each other.

    It stands beside the Segmentation of the lesions, because that is what reports refer to and reviewers correct.

    Args:
        path: Where the file goes.
        planes: ``(c, ...)`` a mask of each region, 0 and 1, in the array order of ``scan.voxels``. At least one voxel
            has a region.
        regions: Name and hexadecimal color of each; segment `n` is the n-th of them.
        scan: The source, read from DICOM.
        label: The predicted class.
        algorithm: The model that drew the regions.
        classes: The classes of the classifier.

    Returns:
        As `write_mask_dicom`.

    Raises:
        InputError: As `write_mask_dicom`.
    """
    source = source_of(scan)
    shown = _frames_to_write(_frames_of(planes.max(axis=0), scan), source)
    segments = np.stack([_frames_of(plane, scan)[shown] for plane in planes], axis=-1)
    with highdicom_errors(_WHAT):
        described = _region_segments(regions, classes.row(label), algorithm)
    texts = _Texts("tumorlens regions", "TUMOR_REGIONS", REGIONS_SERIES)
    return _write(path, segments, shown, described, scan, algorithm, texts)


@dataclass(frozen=True)
class _Texts:
    """What a Segmentation says of itself: description, Content Label, its series' offset, and who has corrected it."""

    description: str
    label: str
    series: int
    reviewer: str = ""


def _write(
    path: Path,
    segments: NDArray[Any],
    shown: list[int],
    described: list[Any],
    scan: Scan,
    algorithm: Algorithm,
    texts: _Texts,
) -> Dataset:
    """Write the Segmentation of some frames.

    Args:
        path: Where the file goes.
        segments: The segment's number of each pixel, ``(frames, rows, columns)``, or a mask of each segment,
            ``(frames, rows, columns, segments)``.
        shown: The frames of the source.
        described: The segments' descriptions.
        scan: The source.
        algorithm: The model.
        texts: What the object says of itself.
    """
    import highdicom as hd

    source = source_of(scan)
    planes = _planes([place for k in shown if (place := source.places[k]) is not None], scan, source)
    with highdicom_errors(_WHAT):
        segmentation: Dataset = hd.seg.Segmentation(
            source_images=[plane for plane, _ in planes],
            pixel_array=segments,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=algorithm.package_version,
            device_serial_number=algorithm.serial_number,
            series_description=texts.description,
            content_label=texts.label,
            content_description=f"{texts.description}, {RESEARCH_ONLY}",
            content_creator_name=_person_name(texts.reviewer),
            omit_empty_frames=bool(segments.any()),
            **new_series(source, texts.series),
        )
        _refer_to_source(segmentation, source, {str(plane.SOPInstanceUID): place for plane, place in planes})
        inherit(segmentation, source)
        # From here on, its look-up tables have the source's frames.
        segmentation = hd.seg.Segmentation.from_dataset(segmentation, copy=False)
        save_dicom(path, segmentation)
    return segmentation


def _person_name(name: str) -> str | None:
    """A name as DICOM writes it (PS3.5 6.2.1); one that is not parted by ``^`` is a family name as a whole."""
    name = name.replace("\\", " ").replace("=", " ")  # which part values and alphabets
    return (name if "^" in name else f"{name[:63]}^")[:64] if name else None


def _frames_of(voxels: NDArray[Any], scan: Scan) -> NDArray[Any]:
    return frames_from_volume(voxels) if scan.volume else voxels[None]


def _frames_to_write(frames: NDArray[Any], source: DicomSource) -> list[int]:
    present = [k for k, place in enumerate(source.places) if place is not None]
    if not present:
        raise InputError("the DICOM source has no slices")
    return [k for k in present if frames[k].any()] or [present[len(present) // 2]]


def _planes(places: list[tuple[int, int]], scan: Scan, source: DicomSource) -> list[tuple[Dataset, tuple[int, int]]]:
    """The source frames as single-frame headers, each with the place of its frame in the source.

    highdicom takes single-frame files or one multi-frame file, and requires measures that some headers lack. So it gets
    each slice as a file of its own. `_refer_to_source` puts the true instance and frame number back.
    """
    from pydicom.uid import MRImageStorage, generate_uid
    from pydicom.valuerep import DS

    # The standard has one for all slices; the reader has checked that they agree.
    shared = {"ImageOrientationPatient": 6, "PixelSpacing": 2}
    common = {name: _needed(source.datasets[places[0][0]], places[0][1], name, n) for name, n in shared.items()}
    frame_of_reference_uid, between = frame_of_reference(source), _distance_of_slices(scan)
    planes = []
    for index, frame in places:
        header = source.datasets[index]
        plane = reference_to(source.datasets[0])
        plane.SOPClassUID, plane.SOPInstanceUID = MRImageStorage, str(generate_uid())
        plane.FrameOfReferenceUID = frame_of_reference_uid
        plane.Rows, plane.Columns = scan.voxels.shape[1::-1] if scan.volume else scan.voxels.shape[:2]
        position = _needed(header, frame, "ImagePositionPatient", 3)
        for name, values in {**common, "ImagePositionPatient": position}.items():
            setattr(plane, name, [DS(v, auto_format=True) for v in values])
        thickness = (_geometry(header, frame, "SliceThickness", 1) or (0.0,))[0]
        if thickness > 0 or between is not None:
            plane.SliceThickness = DS(thickness if thickness > 0 else between, auto_format=True)
        if between is not None:
            plane.SpacingBetweenSlices = DS(between, auto_format=True)
        planes.append((plane, (index, frame)))
    return planes


def _needed(header: Dataset, frame: int, name: str, count: int) -> tuple[float, ...]:
    values = _geometry(header, frame, name, count)
    if values is None:
        raise InputError(f"no {_WHAT} can be made of this series: it has no {name}")
    return values


def _geometry(header: Dataset, frame: int, name: str, count: int) -> tuple[float, ...] | None:
    """An element of a frame's geometry: its own in a multi-frame file, else the shared one, else the file's."""
    for holder in frame_items(header, frame):
        values = numbers_in(holder, name)
        if values is not None and len(values) == count:
            return values
    return None


def _distance_of_slices(scan: Scan) -> float | None:
    """Distance of neighboring slice planes in mm, along their normal; none for a single slice."""
    if not scan.volume or scan.affine is None or scan.voxels.shape[2] < 2:
        return None
    normal = np.cross(scan.affine[:3, 0], scan.affine[:3, 1])
    return float(abs(scan.affine[:3, 2] @ normal) / np.linalg.norm(normal))


def _segments(count: int, tumor: TumorClass, algorithm: Algorithm, corrected: bool) -> list[Any]:
    """Descriptions of the lesions' segments (PS3.16 CID 7150, CID 7159), or of the one empty segment."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    identification = _identification(algorithm)
    origin = "corrected by a reviewer" if corrected else "predicted"
    named = f"{tumor.prose}, {origin}" if tumor.name != TUMOR_FREE else origin
    kind = hd.seg.SegmentAlgorithmTypeValues
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Lesion {number} ({named})"[:64] if count else "No lesion found",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=kind.SEMIAUTOMATIC if corrected else kind.AUTOMATIC,
            algorithm_identification=identification,
            tracking_uid=hd.UID(),
            tracking_id=f"Lesion {number}" if count else "No lesion found",
            anatomic_regions=[getattr(codes.SCT, tumor.site)],
            display_color=_shade(tumor.color, number, count),
        )
        for number in range(1, max(count, 1) + 1)
    ]


def _region_segments(regions: Sequence[tuple[str, str]], tumor: TumorClass, algorithm: Algorithm) -> list[Any]:
    """Descriptions of the regions' segments; see `_segments`."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"{name} (predicted)",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=_identification(algorithm),
            tracking_uid=hd.UID(),
            tracking_id=f"Region {name}",
            anatomic_regions=[getattr(codes.SCT, tumor.site)],
            display_color=hd.color.CIELabColor.from_string(color),
        )
        for number, (name, color) in enumerate(regions, start=1)
    ]


def _identification(algorithm: Algorithm) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version[:64],
        source=MANUFACTURER,
        parameters=dict(algorithm.parameters) or None,
    )


def _shade(rgb: str, number: int, count: int) -> Any:
    """The color of the class. Several lesions have it in as many shades, from light to dark (PS3.3 C.10.7.1.1)."""
    import highdicom as hd

    color = hd.color.CIELabColor.from_string(rgb)
    if count < 2:
        return color
    light, dark = _LIGHTNESS
    return hd.color.CIELabColor(light + (dark - light) * (number - 1) / (count - 1), color.a_star, color.b_star)


def _refer_to_source(segmentation: Dataset, source: DicomSource, places: dict[str, tuple[int, int]]) -> None:
    """Make the object refer to all source instances, and its frames to their frames.

    Args:
        segmentation: The segmentation, made from the headers of `_planes`.
        source: The source instances.
        places: SOP Instance UID of such a header -> index of the instance in the source, and frame in it from 0.
    """
    from pydicom.dataset import Dataset

    series = defaultdict(list)
    for dataset in source.datasets:
        series[uid(dataset, "SeriesInstanceUID")].append(reference_item(dataset))
    segmentation.SourceImageSequence = [item for items in series.values() for item in items]
    segmentation.ReferencedSeriesSequence = []
    for series_uid, items in series.items():
        group = Dataset()
        group.SeriesInstanceUID, group.ReferencedInstanceSequence = series_uid, items
        segmentation.ReferencedSeriesSequence.append(group)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        for item in frame.DerivationImageSequence[0].SourceImageSequence:
            place = places.get(str(item.ReferencedSOPInstanceUID))
            if place is not None:  # else it is done: the segments of one slice share the item
                item.update(reference_item(source.datasets[place[0]], place[1]))
