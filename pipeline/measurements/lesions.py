"""Measurements on a mask: numbered lesions, their areas, volumes, diameters and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.components import label_pieces
from tumorlens.data.errors import InputError
from tumorlens.data.scan import PLANES, Scan
from tumorlens.pipeline.measurements.diameters import Diameters, diameters
from tumorlens.pipeline.measurements.midline import Midline, find_midline

LOW_CONFIDENCE = 0.7  # a person should look at scans and lesions below it

_MOST = int(np.iinfo(np.uint16).max)  # lesions that have a number
_AXIAL = next(world for world, name in PLANES.items() if name == "axial")
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Lesion:
    """One connected lesion. Fields in mm, mm2, mm3 and ml are None where the spacing is not known.

    "The slice" is the slice of the scan in which the lesion is largest. Diameters include one pixel.

    Attributes:
        number: Its value in the numbered mask. The largest lesion has number 1.
        bbox_min: Lowest index along each axis of the mask.
        bbox_max: Highest index along each axis, exclusive.
        voxels: Number of mask pixels or voxels.
        slice_index: The slice in which the lesion is largest (0 for a picture).
        area_px: Its area in the slice, in pixels.
        area_mm2: The same in mm2.
        longest_diameter_px: Longest straight line across the lesion in the slice, in pixels.
        longest_diameter_mm: Longest straight line across the lesion in the slice, in mm.
        perpendicular_diameter_px: Longest chord at a right angle to it in the slice, in pixels.
        perpendicular_diameter_mm: The same in mm, at a right angle to `longest_diameter_mm`.
        volume_mm3: Volume in mm3; None for a picture.
        volume_ml: The same in ml.
        axial_longest_mm: The largest diameter in any axial plane, as RANO measures it (Wen et al., JCO 2010, doi
            10.1200/JCO.2009.26.3541). Axial planes lie across the array axis nearest to head-foot, whatever the plane
            of acquisition. This and the other axial fields are None for a picture, for a volume without affine, and
            for a single slice that is not axial.
        axial_perpendicular_mm: Longest chord at a right angle to it in the same plane.
        axial_index: Index of that plane along the array axis nearest to head-foot.
        centroid_index: Center of gravity as indices along the array axes.
        centroid_ras_mm: The same in mm to the right, to anterior and to superior, by the affine; None without affine.
        side: ``"left"`` or ``"right"`` of the patient where at least 75 % of the voxels lie on that side of the head's
            mid-sagittal plane, else ``"midline"``; None where the plane is not known (see `find_midline`).
        confidence: Probability that it is one; None where nothing judged it.
    """

    number: int
    bbox_min: tuple[int, ...]
    bbox_max: tuple[int, ...]
    voxels: int
    slice_index: int
    area_px: int
    area_mm2: float | None
    longest_diameter_px: float
    longest_diameter_mm: float | None
    perpendicular_diameter_px: float
    perpendicular_diameter_mm: float | None
    volume_mm3: float | None
    volume_ml: float | None
    axial_longest_mm: float | None
    axial_perpendicular_mm: float | None
    axial_index: int | None
    centroid_index: tuple[float, ...]
    centroid_ras_mm: tuple[float, float, float] | None
    side: str | None
    confidence: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether a person should look before believing in it."""
        return self.confidence is not None and self.confidence < LOW_CONFIDENCE


def lesion_boxes(mask: NDArray[np.bool_], scan: Scan, min_volume_mm3: float) -> list[Box]:
    """The bounding boxes of a mask's lesions; arguments as in `number_lesions`."""
    return boxes_of(number_lesions(mask, scan, min_volume_mm3))


def boxes_of(numbers: NDArray[np.uint16]) -> list[Box]:
    """The bounding box of each numbered lesion."""
    return [box for box in _boxes(numbers) if box is not None]


def number_lesions(
    mask: NDArray[np.uint8] | NDArray[np.bool_], scan: Scan, min_volume_mm3: float = 0.0
) -> NDArray[np.uint16]:
    """Number the connected lesions of a mask by size. The largest has number 1, and corners count as contact.

    Of lesions of equal size, the one that comes first in the array (rows before columns) has the lower number.

    Args:
        mask: Non-zero is lesion, in the array order of the scan.
        scan: The source of the voxel's volume.
        min_volume_mm3: Smaller lesions are left out, except in a picture or a volume of unknown spacing.

    Returns:
        uint16 in the mask's shape: the number of each voxel's lesion, 0 outside.

    Raises:
        InputError: More than 65535 lesions remain.
    """
    numbered = np.zeros(mask.shape, np.uint16)
    box = _bounding_box(mask)
    if box is None:
        return numbered
    labels, count = label_pieces(mask[box] != 0, corners=True)
    points = np.flatnonzero(labels)  # only lesion voxels: a count over the whole box would need 8 bytes for each voxel
    label_of_point = labels.reshape(-1)[points]
    sizes = np.bincount(label_of_point, minlength=count + 1)[1:]
    first = np.zeros(count + 1, np.intp)
    first[label_of_point[::-1]] = points[::-1]  # of several assignments the last one stays
    order = np.lexsort((first[1:], -sizes))
    voxel = voxel_volume_mm3(scan)
    if voxel is not None:  # a lesion of exactly the limit must not be lost by rounding
        order = order[sizes[order] * voxel >= min_volume_mm3 * (1 - 1e-6)]
    if len(order) > _MOST:
        raise InputError(f"the mask falls into {len(order)} pieces, and at most {_MOST} can be numbered")
    numbers = np.zeros(count + 1, np.uint16)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    numbered[box] = numbers[labels]
    return numbered


def measure_lesions(
    numbers: NDArray[np.uint16], scan: Scan, confidences: Sequence[float | None] | None = None
) -> list[Lesion]:
    """The measurements of each numbered lesion, in the order of the numbers.

    Args:
        numbers: From `number_lesions`: the number of each voxel's lesion, 0 outside, in the array order of the scan.
        scan: The source of the geometry and, for the side, of the head.
        confidences: Of each number from 1 on, the probability that it is a lesion.
    """
    box = _bounding_box(numbers)
    if box is None:
        return []
    part = numbers[box]
    midline = find_midline(scan)
    lesions = []
    for number, inner in enumerate(_boxes(part), start=1):
        if inner is not None:
            place = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, inner, strict=True))
            lesion = _measure(number, part[inner] == number, place, scan, midline)
            lesions.append(lesion if confidences is None else replace(lesion, confidence=confidences[number - 1]))
    return lesions


def voxel_volume_mm3(scan: Scan) -> float | None:
    """Volume of a voxel in mm3; None for a picture (a 2-D NIfTI has no thickness) or an unknown spacing."""
    if not scan.volume or scan.spacing_mm is None or 0 < len(scan.source_shape) < 3:
        return None
    if scan.affine is not None:
        return float(abs(np.linalg.det(scan.affine[:3, :3])))
    return float(np.prod(scan.spacing_mm[:3]))


def pixel_area_mm2(scan: Scan) -> float | None:
    """Area of a slice's pixel in mm2, or None for an unknown spacing."""
    spacing = scan.slice_spacing_mm
    return None if spacing is None else spacing[0] * spacing[1]


def slice_areas_px(mask: NDArray[np.integer] | NDArray[np.bool_], scan: Scan) -> NDArray[np.int64]:
    """Number of mask pixels in each slice, ``(n_slices,)``."""
    if not scan.volume:
        return np.array([int(np.count_nonzero(mask))])
    others = tuple(a for a in range(3) if a != scan.slice_axis)
    return np.count_nonzero(mask, axis=others)


def _measure(number: int, member: NDArray[np.bool_], box: Box, scan: Scan, midline: Midline | None) -> Lesion:
    """The measurements of one lesion.

    Args:
        number: Its number.
        member: Its voxels, within its box.
        box: The place of the box in the scan.
        scan: The source of the geometry.
        midline: The head's mid-sagittal plane, or None.
    """
    voxels = int(np.count_nonzero(member))
    start = np.array([s.start for s in box])
    areas = slice_areas_px(member, scan)
    largest = int(areas.argmax())
    in_slice = np.take(member, largest, scan.slice_axis) if scan.volume else member
    in_pixels, in_mm = diameters(in_slice, (1.0, 1.0)), None
    if scan.spacing_mm is not None:
        spacing = [s for a, s in enumerate(scan.spacing_mm) if not scan.volume or a != scan.slice_axis]
        in_mm = diameters(in_slice, (spacing[0], spacing[1]))
    axial, axial_index = _axial(member, box, scan)
    area_mm2, voxel_mm3 = pixel_area_mm2(scan), voxel_volume_mm3(scan)
    volume = None if voxel_mm3 is None else voxels * voxel_mm3
    centroid = np.array([index.mean() for index in np.nonzero(member)]) + start
    return Lesion(
        number=number,
        bbox_min=tuple(int(s.start) for s in box),
        bbox_max=tuple(int(s.stop) for s in box),
        voxels=voxels,
        slice_index=largest + (int(start[scan.slice_axis]) if scan.volume else 0),
        area_px=int(areas[largest]),
        area_mm2=None if area_mm2 is None else round(float(areas[largest] * area_mm2), 3),
        longest_diameter_px=round(in_pixels.longest, 2),
        longest_diameter_mm=None if in_mm is None else round(in_mm.longest, 2),
        perpendicular_diameter_px=round(in_pixels.perpendicular, 2),
        perpendicular_diameter_mm=None if in_mm is None else round(in_mm.perpendicular, 2),
        volume_mm3=None if volume is None else round(volume, 3),
        volume_ml=None if volume is None else round(volume / 1000, 6),
        axial_longest_mm=None if axial is None else round(axial.longest, 2),
        axial_perpendicular_mm=None if axial is None else round(axial.perpendicular, 2),
        axial_index=axial_index,
        centroid_index=tuple(round(float(c), 2) for c in centroid),
        centroid_ras_mm=_place_in_body(centroid, scan),
        side=None if midline is None else midline.side(member, start),
    )


def _axial(member: NDArray[np.bool_], box: Box, scan: Scan) -> tuple[Diameters | None, int | None]:
    """The diameters in the axial plane in which the lesion is longest, and the plane's index."""
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
        return None, None
    axis = scan.axis_nearest(_AXIAL)
    others = [a for a in range(3) if a != axis]
    if any(scan.voxels.shape[a] == 1 for a in others):
        return None, None
    # In a plane across thick slices pixels are far from square: their mean size would make short diameters too long.
    size = (scan.spacing_mm[others[0]], scan.spacing_mm[others[1]])
    planes = [diameters(plane, size, along=True) for plane in np.moveaxis(member, axis, 0) if plane.any()]
    filled = np.flatnonzero(member.any(axis=tuple(others)))
    best = max(range(len(planes)), key=lambda k: planes[k].longest)
    return planes[best], int(filled[best]) + int(box[axis].start)


def _place_in_body(index: NDArray[np.float64], scan: Scan) -> tuple[float, float, float] | None:
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
        return None
    x, y, z = (round(float(mm), 2) + 0.0 for mm in (scan.affine @ [*index, 1.0])[:3])  # + 0.0 makes -0.0 a plain zero
    return x, y, z


def _boxes(numbered: NDArray[np.integer]) -> list[Box | None]:
    """The bounding box of each number from 1 on, or None where a number does not occur."""
    points = np.flatnonzero(numbered)
    number_of_point = numbered.ravel()[points]
    count = int(number_of_point.max(initial=0))
    low, high = np.full((numbered.ndim, count + 1), max(numbered.shape)), np.zeros((numbered.ndim, count + 1), int)
    step = 1
    for axis in reversed(range(numbered.ndim)):
        index = points // step % numbered.shape[axis]
        np.minimum.at(low[axis], number_of_point, index)
        np.maximum.at(high[axis], number_of_point, index + 1)
        step *= numbered.shape[axis]
    return [
        tuple(slice(int(a), int(b)) for a, b in zip(low[:, k], high[:, k], strict=True)) if high[0, k] else None
        for k in range(1, count + 1)
    ]


def _bounding_box(mask: NDArray[np.integer] | NDArray[np.bool_]) -> Box | None:
    """The smallest box around a mask, or None if the mask is empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)
