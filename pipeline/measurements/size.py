"""Whether a file's lengths can be right, by the head that they would make: headers in the wrong unit are common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tumorlens.data.scan import Scan

# Bounds for scans of a head, wide enough that only gross errors lie beyond them: a head in cm, m or µm that is called
# mm, but not an infant's head, a field of view that cuts the head, or one that shows the shoulders.
# The width is the diameter of a circle with the head's area in the slice that shows most of it. It is 127 to 180 mm in
# the volumes at hand (axial, coronal and sagittal; with and without a skull); a preterm infant's is about 70 mm.
_WIDTH_MM = (40.0, 350.0)
_DISTANCE_MM = (0.2, 25.0)  # between slices; 0.5 to 8 mm in scans that cover a head
_MOST_SPAN_MM = 500.0  # from the first judged slice to the last; 94 to 151 mm in the volumes at hand
_MOST_UNEVEN = 200.0  # the longest side of a voxel divided by the shortest; 40 in thick slices of fine pixels

_SO = "so the lengths in the file are wrong, and nothing is measured in mm or ml"


def impossible_voxels(scan: Scan) -> str | None:
    """Why the sides of a voxel contradict each other, or None. Not even their ratios are to be used then."""
    if scan.spacing_mm is None:
        return None
    spacing = scan.spacing_mm[: 3 if scan.volume else 2]
    if max(spacing) <= _MOST_UNEVEN * min(spacing):
        return None
    what = "voxels" if scan.volume else "pixels"
    return f"the {what} would be {' x '.join(map(_length, spacing))} mm in size, {_SO}"


def impossible_head(scan: Scan, head_px: float, n_slices: int) -> str | None:
    """Why no head can have the size that a file gives it, or None where it can, or where the size is not known.

    Args:
        scan: The source of the spacing.
        head_px: Largest area of the head in a slice, in pixels; 0 if no head was found, so that its width is not known.
        n_slices: Number of slices from the first to the last one that shows the head.
    """
    pixel = scan.slice_spacing_mm
    if scan.spacing_mm is None or pixel is None:
        return None
    width = 2 * float(np.sqrt(head_px * pixel[0] * pixel[1] / np.pi))
    if head_px > 0 and not _WIDTH_MM[0] <= width <= _WIDTH_MM[1]:
        return f"the head would be {_length(width)} mm wide (heads are about 110 to 260 mm), {_SO}"
    if not scan.volume:
        return None
    distance = float(scan.spacing_mm[scan.slice_axis])
    if not _DISTANCE_MM[0] <= distance <= _DISTANCE_MM[1]:
        return f"the slices would lie {_length(distance)} mm apart, {_SO}"
    span = (n_slices - 1) * distance
    if span > _MOST_SPAN_MM:
        return f"the head would reach over {_length(span)} mm of slices (heads are about 110 to 260 mm), {_SO}"
    return None


def without_lengths(scan: Scan) -> Scan:
    """The scan in the same slices, of unknown spacing. Its affine still says where right, front and top are."""
    return replace(scan, spacing_mm=None, plane_axis=scan.slice_axis if scan.volume else None)


def _length(mm: float) -> str:
    return f"{mm:.0f}" if mm >= 100 else f"{mm:.2g}"
