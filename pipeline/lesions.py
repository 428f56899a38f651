"""What can be measured on a mask: connected lesions, areas, volumes, longest diameters."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.scan import Scan


@dataclass(frozen=True)
class Lesion:
    """One connected lesion. Fields in mm are none where the spacing is not known.

    Attributes:
        bbox_min: Lowest index along each axis of the mask.
        bbox_max: Highest index along each axis, exclusive.
        voxels: Number of mask pixels or voxels.
        slice_index: The slice in which the lesion is largest (0 for a picture).
        area_px: Its area in that slice.
        area_mm2: The same in mm2.
        longest_diameter_px: Longest straight line across the lesion in that slice, in pixels.
        longest_diameter_mm: Longest straight line across the lesion within one slice, in mm.
        volume_mm3: Volume; none for a picture.
    """

    bbox_min: tuple[int, ...]
    bbox_max: tuple[int, ...]
    voxels: int
    slice_index: int
    area_px: int
    area_mm2: float | None
    longest_diameter_px: float
    longest_diameter_mm: float | None
    volume_mm3: float | None


def measure_lesions(mask: NDArray[np.uint8], scan: Scan) -> list[Lesion]:
    """The connected lesions (corners count as contact) of a mask in the array order of the scan, largest first."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    boxes = ndimage.find_objects(labels)
    lesions = [_measure(labels == number, boxes[number - 1], scan) for number in range(1, count + 1)]
    return sorted(lesions, key=lambda lesion: -lesion.voxels)


def voxel_volume_mm3(scan: Scan) -> float | None:
    """Volume of a voxel in mm3, or none for a picture (a 2-D NIfTI has no thickness) or an unknown spacing."""
    if not scan.volume or scan.spacing_mm is None or 0 < len(scan.source_shape) < 3:
        return None
    if scan.affine is not None:
        return float(abs(np.linalg.det(scan.affine[:3, :3])))
    return float(np.prod(scan.spacing_mm[:3]))


def pixel_area_mm2(scan: Scan) -> float | None:
    """Area of a slice's pixel in mm2, or none for an unknown spacing."""
    spacing = scan.slice_spacing_mm
    return None if spacing is None else spacing[0] * spacing[1]


def slice_areas_px(mask: NDArray[np.uint8], scan: Scan) -> NDArray[np.int64]:
    """Mask pixels in each slice, ``(n_slices,)``."""
    if not scan.volume:
        return np.array([int(np.count_nonzero(mask))])
    others = tuple(a for a in range(3) if a != scan.slice_axis)
    return np.count_nonzero(mask, axis=others)


def _measure(member: NDArray[np.bool_], box: tuple[slice, ...], scan: Scan) -> Lesion:
    voxels = int(member.sum())
    areas = slice_areas_px(member.astype(np.uint8), scan)
    largest = int(areas.argmax())
    in_slice: NDArray[np.bool_] = (
        np.take(member, [largest], scan.slice_axis).squeeze(scan.slice_axis) if scan.volume else member
    )
    spacing = None
    if scan.spacing_mm is not None:
        spacing = [s for a, s in enumerate(scan.spacing_mm) if not scan.volume or a != scan.slice_axis][:2]
    area_mm2, volume = pixel_area_mm2(scan), voxel_volume_mm3(scan)
    return Lesion(
        bbox_min=tuple(int(s.start) for s in box),
        bbox_max=tuple(int(s.stop) for s in box),
        voxels=voxels,
        slice_index=largest,
        area_px=int(areas[largest]),
        area_mm2=None if area_mm2 is None else round(float(areas[largest] * area_mm2), 3),
        longest_diameter_px=round(longest_diameter(in_slice, (1.0, 1.0)), 2),
        longest_diameter_mm=None if spacing is None else round(longest_diameter(in_slice, (spacing[0], spacing[1])), 2),
        volume_mm3=None if volume is None else round(voxels * volume, 3),
    )


def longest_diameter(mask_hw: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Largest distance between two pixel centres of a mask, plus the width of one pixel (maximum Feret diameter).

    Args:
        mask_hw: A non-empty mask.
        spacing: Size of a pixel along the rows' and the columns' axis, in the unit of the result.
    """
    points = np.argwhere(mask_hw)
    hull = cv2.convexHull(points.astype(np.int32).reshape(-1, 1, 2)).reshape(-1, 2) * np.array(spacing)
    distances = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    return float(distances.max() + np.mean(spacing))
