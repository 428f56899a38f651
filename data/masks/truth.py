"""The true mask of a scan, from what a data set names: a mask file, boxes, DICOM objects, or the folder of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.headers import is_dicom, text
from tumorlens.data.dicom.rtstruct import is_structure_set
from tumorlens.data.dicom.seg_exchange import is_segmentation, segment_labels
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.drawings import draw, drawing_of, is_drawing
from tumorlens.data.masks.placed import read_mask_dicom, read_segments_dicom
from tumorlens.data.masks.read import (
    describe_values,
    labels_of,
    lesion_of,
    open_mask,
    read_labels,
    read_mask,
    read_volume_mask,
)
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.scan import Scan

# Masks in the folder of a result (docs/reference/output-files.md); one that a person has corrected comes first.
_CORRECTED = ("mask.reviewed.nii.gz", "mask.reviewed.png")
_OF_A_RESULT = (*_CORRECTED, "mask.nii.gz", "mask.png")
_REGIONS_OF_A_RESULT = ("regions.nii.gz", "regions.png")


def read_truth(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """The mask of a scan, 0 and 1: ``(rows, columns)``, or of a volume in the array order of ``scan.voxels``.

    Args:
        path: A mask file; boxes or outlines of YOLO or COCO, see `data.masks.drawings`; a DICOM Segmentation or RT
            Structure Set; a folder that holds one of these; or the folder of a scan's result, whose mask a reviewer may
            have corrected.
        scan: The scan to which it belongs.

    Raises:
        InputError: The mask is missing, there are several, or it does not fit the scan.
    """
    file = _file_of(path)
    if is_drawing(file):
        if scan.volume or scan.path is None:
            raise InputError(f"{file}: boxes and outlines of YOLO and COCO are for pictures, and {scan.path} is none")
        rows, columns = scan.voxels.shape[:2]
        return draw(file, scan.path, (rows, columns))
    if not is_dicom(file):
        return read_volume_mask(file, scan) if scan.volume else read_mask(file, scan)
    _check_dicom(file, scan)
    return read_mask_dicom(file, scan)


def read_regions(path: Path, scan: Scan, regions: Regions) -> NDArray[np.uint8]:
    """The mask of a scan as bits, see `Regions.bits`: ``(rows, columns)``, or in the array order of ``scan.voxels``.

    The values of a mask file are labels, of a palette the numbers of its colors. The segments of a DICOM Segmentation
    are called as the regions or as the values are, see `Regions.bits_of`.

    Args:
        path: A mask file; a DICOM Segmentation; a folder that holds one of these; or the folder of a scan's result,
            which has the values that `Regions.paint` gives, cut to the mask that a reviewer has corrected.
        scan: The scan to which it belongs.
        regions: The regions to tell apart.

    Raises:
        InputError: As `read_truth`, or the mask cannot hold regions, as boxes, JPEG, gray levels and fractions cannot,
            or a reviewer has added to it what the model had given no region.
    """
    file = _file_of(path, regions)
    if is_drawing(file):
        raise InputError(
            f"{file}: boxes and outlines of YOLO and COCO cannot hold regions; give masks of whole numbers"
        )
    if not is_dicom(file):
        labels = read_labels(file, scan)
        return regions.bits(_corrected(labels, path, scan) if file.name in _REGIONS_OF_A_RESULT else labels)
    _check_dicom(file, scan)
    bits = np.zeros(scan.voxels.shape, np.uint8)
    for label, mask in read_segments_dicom(file, scan).items():
        bits |= mask * np.uint8(regions.bits_of(label))
    return bits


def _corrected(labels: NDArray[Any], folder: Path, scan: Scan) -> NDArray[Any]:
    """The regions of a result, cut to the mask that a reviewer has corrected; as they are if nobody has.

    Raises:
        InputError: The reviewer added what has no region.
    """
    if not any((folder / name).is_file() for name in _CORRECTED):
        return labels
    lesion = read_truth(folder, scan)
    if (lesion.astype(bool) & (labels == 0)).any():
        raise InputError(f"{folder}: the correction adds voxels without a region; give a mask of whole numbers")
    return labels * lesion


def known_regions(path: Path | None, scan: Scan, regions: Regions) -> NDArray[np.uint8] | None:
    """The true regions of a scan as `read_regions` gives them; None where its mask tells none apart.

    Args:
        path: Its mask; None for a scan without a lesion.
        scan: The scan.
        regions: The regions to tell apart.

    Raises:
        InputError: The mask cannot be read as a mask.
    """
    if path is None:
        return np.zeros(scan.voxels.shape if scan.volume else scan.voxels.shape[:2], np.uint8)
    lesion = read_truth(path, scan)
    try:
        bits = read_regions(path, scan, regions)
    except InputError:  # boxes, contours, gray levels and what a reviewer has added are a lesion, and no regions
        return None
    return None if lesion.any() and not bits.any() else bits


def found_labels(path: Path, regions: Regions) -> tuple[str, ...]:
    """The labels in a mask, as text: its values besides 0, or how the segments of a DICOM Segmentation are called.

    Raises:
        InputError: It cannot be read, or cannot hold regions.
    """
    file = _file_of(path, regions)
    if is_dicom(file):
        return segment_labels(file)
    labels = labels_of(open_mask(file))
    return tuple(str(value) for value in np.unique(labels[labels != 0]))


def _check_dicom(file: Path, scan: Scan) -> None:
    """Raise an `InputError` if a DICOM mask is of another patient and study: grids may be equal by chance."""
    import pydicom

    if not scan.volume:
        raise InputError(f"{file}: a DICOM mask needs a volume, and {scan.path} is a picture; give the mask as PNG")
    if scan.dicom is None:
        return
    mask, own = pydicom.dcmread(file, stop_before_pixels=True), scan.dicom.datasets[0]
    differ = [
        text(mask, name) != text(own, name)
        for name in ("StudyInstanceUID", "PatientID")
        if text(mask, name) and text(own, name)
    ]
    if differ and all(differ):
        raise InputError(f"{file}: this mask is of another patient and study than {scan.path}")


def is_unreviewed(path: Path) -> bool:
    """Whether a mask is that of a result which nobody has corrected: the answer of a network."""
    return (path / "result.json").is_file() and not any((path / name).is_file() for name in _CORRECTED)


def shows_lesion(path: Path, image: Path, regions: Regions = NO_REGIONS) -> bool:
    """Whether the truth of a picture's file shows a lesion, which lies in one of the regions where there are any.

    Raises:
        InputError: It cannot be read.
    """
    if regions:
        return bool(read_regions(path, open_scan(image), regions).any())
    file = _file_of(path)
    if is_drawing(file):
        return drawing_of(file, image).lesions > 0
    if is_dicom(file):
        return bool(read_truth(file, open_scan(image)).any())
    return bool(lesion_of(open_mask(file)).any())


def describe_truth(path: Path) -> str:
    """How a mask with several values is read, see `describe_values`; empty for DICOM, boxes and outlines.

    Raises:
        InputError: It cannot be read.
    """
    file = _file_of(path)
    return "" if is_drawing(file) or is_dicom(file) else describe_values(open_mask(file))


def mask_files(folder: Path, regions: Regions = NO_REGIONS) -> list[Path]:
    """The files in the folder of a result of which its mask is read, or that of its regions; of a file, none."""
    names = (*_REGIONS_OF_A_RESULT, *_CORRECTED) if regions else _OF_A_RESULT
    return [file for name in names if (file := folder / name).is_file()]


def _file_of(path: Path, regions: Regions = NO_REGIONS) -> Path:
    """The mask file that a path names, or that lies in the folder that it names."""
    if not path.is_dir():
        return path
    of_result = [
        file for name in (_REGIONS_OF_A_RESULT if regions else _OF_A_RESULT) if (file := path / name).is_file()
    ]
    if of_result:
        return of_result[0]
    if regions and mask_files(path):
        raise InputError(f"{path}: the result has no {' or '.join(_REGIONS_OF_A_RESULT)}; give a mask of whole numbers")
    if (path / "result.json").is_file():
        raise InputError(f"{path}: the result has no mask, because the scan was refused; give a mask, or leave it out")
    files = [file for file in sorted(path.rglob("*")) if is_dicom(file)]
    masks = [file for file in files if is_segmentation(file) or is_structure_set(file)]
    if len(masks) != 1:
        there = f"{len(masks)} DICOM masks ({masks[0].name}, {masks[1].name} ...)" if masks else "no mask"
        raise InputError(
            f"{path}: the folder holds {there}; a mask is a file, a DICOM Segmentation or RT Structure Set, a folder "
            "with one of these, or the folder of a scan's result"
        )
    return masks[0]
