"""DICOM Segmentations that exist already: read their frames, and write them again with colors and merged segments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.decoding import stored_frames
from tumorlens.data.dicom.derived import save_dicom
from tumorlens.data.dicom.headers import frame_items, items, number, numbers, read_dataset, read_header, text
from tumorlens.data.dicom.source import affine_of_frames, volume_from_frames
from tumorlens.data.errors import InputError, reason_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_FRAMES = 100_000
Rgb = tuple[int, int, int]
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_COUNTS = {**dict(zip(GEOMETRY, (3, 6, 2), strict=True)), "ReferencedSegmentNumber": 1}
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", _LABEL_MAP)


def read_seg_frames(
    path: Path, steps: Sequence[NDArray[Any]]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """The frames of a DICOM Segmentation that are not empty, each as a volume of one slice with an affine to RAS mm.

    Args:
        path: The file.
        steps: ``(3,)`` RAS mm from a voxel to the next along each axis of the grid that the mask goes to. A frame does
            not say how far the next one is, so its third axis is the nearest of these.

    Raises:
        InputError: The file is not a DICOM Segmentation, or is damaged.
    """
    dataset, frames = read_segmentation(path)
    for index, frame in enumerate(frames):
        if frame.any():
            yield volume_from_frames(frame[None]), _affine_of(dataset, index, frame.shape[0], steps, path)


def read_segments(
    path: Path, steps: Sequence[NDArray[Any]]
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.float64]]]:
    """The label of each frame's segment before each frame of `read_seg_frames`; arguments and errors as there."""
    dataset, stored, least = _read(path)
    labels = _labels_of(dataset)
    is_map = text(dataset, "SOPClassUID") == _LABEL_MAP
    for index, pixels in enumerate(stored):
        if not (pixels >= least).any():
            continue
        affine = _affine_of(dataset, index, pixels.shape[0], steps, path)
        numbers_in = [int(n) for n in np.unique(pixels) if n] if is_map else []
        for segment in numbers_in or [int(of_frame(dataset, index, "ReferencedSegmentNumber", path)[0])]:
            frame = pixels == segment if is_map else pixels >= least
            yield labels.get(segment, ""), volume_from_frames(frame[None]), affine


def segment_labels(path: Path) -> tuple[str, ...]:
    """The labels of a DICOM Segmentation's segments.

    Raises:
        InputError: It cannot be read.
    """
    return tuple(_labels_of(read_header(path, ("SegmentSequence",))).values())


def _labels_of(dataset: Dataset) -> dict[int, str]:
    rows = items(dataset, "SegmentSequence")
    return {int(number(row, "SegmentNumber") or 0): text(row, "SegmentLabel") for row in rows}


def _affine_of(
    dataset: Dataset, frame: int, rows: int, steps: Sequence[NDArray[Any]], path: Path
) -> NDArray[np.float64]:
    """``(4, 4)`` from the indices of a frame's volume to RAS mm; see `read_seg_frames`."""
    position, orientation, spacing = (of_frame(dataset, frame, name, path) for name in GEOMETRY)
    normal = np.cross(orientation[:3], orientation[3:]) * (-1, -1, 1)  # LPS to RAS
    step = max(steps, key=lambda step: abs(float(step @ normal)) / float(np.linalg.norm(step)))
    return affine_of_frames(orientation, position, step * (-1, -1, 1), (float(spacing[0]), float(spacing[1])), rows)


def copy_segmentation(source: Path, target: Path, colors: Mapping[int, Rgb], merged: tuple[str, Rgb] | None) -> None:
    """Write a DICOM Segmentation of tumorlens again, as a new instance in a series of its own, with display colors.

    Args:
        source: The Segmentation, with one segment a lesion.
        target: The file to write.
        colors: Number of a segment -> its color.
        merged: Label and color of the one segment that all segments become; None keeps them apart.

    Raises:
        InputError: The file is not a binary DICOM Segmentation, or is damaged.
    """
    from pydicom.uid import generate_uid

    dataset, frames = read_segmentation(source)
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, name, str(generate_uid()))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    try:
        if merged is not None:
            _merge(dataset, frames, merged[0], source)
        for segment in dataset.SegmentSequence:
            color = merged[1] if merged is not None else colors.get(int(segment.SegmentNumber))
            if color is not None:
                segment.RecommendedDisplayCIELabValue = cielab_of(color)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{source}: the DICOM Segmentation is damaged ({reason_of(error)})") from None
    save_dicom(target, dataset)


def is_segmentation(path: Path) -> bool:
    """Whether a DICOM file is a Segmentation; false for files that cannot be read."""
    try:
        return text(read_header(path, ("SOPClassUID",)), "SOPClassUID") in _SEGMENTATIONS
    except InputError:
        return False


def read_segmentation(path: Path) -> tuple[Dataset, NDArray[np.bool_]]:
    """A DICOM Segmentation, and its frames ``(frames, rows, columns)``.

    Raises:
        InputError: The file is not a DICOM Segmentation, or is damaged.
    """
    dataset, pixels, least = _read(path)
    return dataset, pixels >= least


def _read(path: Path) -> tuple[Dataset, NDArray[Any], int]:
    """A DICOM Segmentation, its stored frames ``(frames, rows, columns)``, and the value from which on they are one."""
    dataset = read_dataset(path)
    if text(dataset, "SOPClassUID") not in _SEGMENTATIONS:
        raise InputError(f"{path}: this is not a DICOM Segmentation")
    n_frames = int(number(dataset, "NumberOfFrames") or 1)
    if not 1 <= n_frames <= _MAX_FRAMES:
        raise InputError(f"{path}: the header gives an impossible number of {n_frames} frames")
    pixels = np.stack(stored_frames(dataset, list(range(n_frames))))
    if pixels.ndim != 3:
        raise InputError(f"{path}: the DICOM Segmentation is damaged (it holds colors)")
    least = (int(number(dataset, "MaximumFractionalValue") or 1) + 1) // 2  # 1 in binary ones and label maps
    return dataset, pixels, least


def of_frame(dataset: Dataset, frame: int, name: str, path: Path) -> NDArray[np.float64]:
    """A frame's values of an element of its functional groups, one of `_COUNTS`.

    Raises:
        InputError: It has none.
    """
    for holder in frame_items(dataset, frame):
        values = numbers(holder, name)
        if values is not None and len(values) == _COUNTS[name]:
            return np.array(values)
    raise InputError(f"{path}: frame {frame + 1} of the DICOM Segmentation has no {name}")


def cielab_of(rgb: Rgb) -> list[int]:
    """A color as DICOM encodes it: L*, a* and b* of CIELab with D65, each as 16 bits (PS3.3 C.10.7.1.1)."""
    import cv2

    lightness, a, b = cv2.cvtColor(np.array([[rgb]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0].tolist()
    return [round(lightness * 0xFFFF / 100), round((a + 128) * 0xFFFF / 255), round((b + 128) * 0xFFFF / 255)]


def _merge(dataset: Dataset, frames: NDArray[np.bool_], label: str, path: Path) -> None:
    """Make all segments one, with one frame for each plane."""
    from pydicom.pixels import pack_bits
    from pydicom.uid import generate_uid

    at: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index in range(len(frames)):
        at[tuple(of_frame(dataset, index, "ImagePositionPatient", path).round(3))].append(index)
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    merged = np.stack([frames[same].any(axis=0) for same in at.values()]).astype(np.uint8)
    items = []
    for same in at.values():
        item = groups[same[0]]
        if "SegmentIdentificationSequence" in item:  # of a single segment, it is among the shared groups
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
        content = item.FrameContentSequence[0]
        content.DimensionIndexValues = [1, *list(content.DimensionIndexValues)[1:]]  # the segment comes first
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items
    dataset.NumberOfFrames = len(items)
    dataset.PixelData = pack_bits(merged, pad=True)
    segment = dataset.SegmentSequence[0]
    segment.SegmentNumber, segment.SegmentLabel = 1, label[:64]
    if "TrackingID" in segment:
        segment.TrackingID, segment.TrackingUID = label[:64], str(generate_uid())
    dataset.SegmentSequence = [segment]
