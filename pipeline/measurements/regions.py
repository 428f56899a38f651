"""The size of each region of a mask, and of its part in each lesion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.masks.regions import Regions
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import pixel_area_mm2, voxel_volume_mm3


@dataclass(frozen=True)
class RegionSize:
    """The size of one region. Fields with a unit are None where the spacing is unknown.

    Attributes:
        area_px: Area in the shown slice in pixels; None for a refused scan, like all sizes.
        area_mm2: The same in mm2.
        voxels: Size in the whole scan.
        volume_mm3: The same in mm3; None for a picture.
        lesions: Of each lesion, in the order of their numbers, ``number``, ``voxels`` and ``volume_mm3`` of the region.
    """

    area_px: int | None = None
    area_mm2: float | None = None
    voxels: int | None = None
    volume_mm3: float | None = None
    lesions: tuple[dict[str, Any], ...] = ()


def measure_regions(
    region_mask: NDArray[np.uint8] | None, regions: Regions, numbers: NDArray[np.uint16], scan: Scan, shown_slice: int
) -> list[RegionSize]:
    """The size of each region, in their order; empty without regions.

    Args:
        region_mask: The value of each voxel's region, as `Regions.paint` makes it, in the array order of the scan; None
            without regions.
        regions: The regions.
        numbers: The number of each voxel's lesion, 0 outside.
        scan: The source of the geometry.
        shown_slice: The slice whose area is measured.
    """
    if region_mask is None:
        return []
    pixel_mm2, voxel_mm3 = pixel_area_mm2(scan), voxel_volume_mm3(scan)
    in_slice = regions.planes(regions.bits(scan.view(region_mask, shown_slice))).sum(axis=(1, 2), dtype=np.int64)
    inside = region_mask != 0
    bits, lesion = regions.bits(region_mask[inside]), numbers[inside]
    sizes = []
    for area_px, plane in zip(in_slice.tolist(), regions.planes(bits), strict=True):
        counts = np.bincount(lesion[plane != 0], minlength=int(numbers.max(initial=0)) + 1)
        rows = [_sized(voxels, voxel_mm3) for voxels in [int(plane.sum()), *counts[1:].tolist()]]
        sizes.append(
            RegionSize(
                area_px=area_px,
                area_mm2=None if pixel_mm2 is None else round(area_px * pixel_mm2, 3),
                **rows[0],
                lesions=tuple({"number": n} | row for n, row in enumerate(rows[1:], start=1)),
            )
        )
    return sizes


def _sized(voxels: int, voxel_mm3: float | None) -> dict[str, Any]:
    return {"voxels": voxels, "volume_mm3": None if voxel_mm3 is None else round(voxels * voxel_mm3, 3)}
