"""Where the head lies in a slice, so that the borders of a picture do not reach a network."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.preprocessing.percentiles import percentiles
from tumorlens.data.scan import Scan

_WORK_SIZE = 256  # the mask is found at this size: fast, and independent of the source's resolution
_UNIFORM = 0.08  # a row belongs to a border if its values (without 3 % at both ends) span less of the slice's range
_THRESHOLD_RANGE = (0.06, 0.22)  # of the bright level; below lies air and ringing, above lie dark tissue and fluid


def find_head(image_hw: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The convex mask of the head.

    Uniform borders of any gray level are trimmed. A damped Otsu threshold (N. Otsu, IEEE Trans. SMC 1979) splits air
    from tissue. Morphological opening removes thin lines and letters. The convex hull of the rest is the head, so that
    sinuses, ventricles and dark lesions stay inside.

    Args:
        image_hw: ``(rows, columns)``, one gray slice in any intensity unit, finite.

    Returns:
        ``(rows, columns)`` bool; empty if no head stands out from its background.
    """
    small = _shrunk(image_hw)
    inside = _inside_borders(image_hw, small)
    whole = inside == tuple(slice(0, length) for length in image_hw.shape)
    first = _hull_in(image_hw[inside], small if whole else None)
    mask = np.zeros(image_hw.shape, np.uint8)
    if cv2.countNonZero(first):
        # The second pass sees the head's own box, because the amount of air around it must not matter.
        box = _box_around(first, inside)
        mask[box] = first if box == inside else _hull_in(image_hw[box])
    return mask.view(bool)


def tissue_shares(scan: Scan) -> NDArray[np.float64]:
    """``(n_slices,)``: the share of each slice's pixels that are brighter than the air of the volume.

    The level is that of the whole volume, because a slice of noise alone looks as full as any other.
    """
    few = scan.voxels.reshape(-1)[:: max(1, scan.voxels.size // 1_000_000)]
    low, high = (float(v) for v in percentiles(few, (1, 99)))
    level = low + 0.1 * (high - low)
    return np.array([(scan.slice(k) > level).mean() for k in range(scan.n_slices)])


def _hull_in(part_hw: NDArray[np.float32], small: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """The tissue's hull in a part of a slice as 0 and 1, computed at the working size (`small`, if it is known)."""
    hull = _tissue_hull(_shrunk(part_hw) if small is None else small)
    large = cv2.resize(hull * 255, part_hw.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.threshold(large, 127, 1, cv2.THRESH_BINARY)[1], np.uint8)


def _shrunk(image_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = min(1.0, _WORK_SIZE / max(image_hw.shape))
    size = (max(1, round(image_hw.shape[1] * scale)), max(1, round(image_hw.shape[0] * scale)))
    return cv2.resize(image_hw, size, interpolation=cv2.INTER_AREA)


def _box_around(mask_hw: NDArray[np.uint8], inside: tuple[slice, slice]) -> tuple[slice, slice]:
    """Rows and columns of a non-empty mask of the part `inside`, with a rim of a tenth, but never beyond that part."""
    left, top, width, height = cv2.boundingRect(mask_hw)
    rim = max(2, (max(width, height) - 1) // 10)
    rows, columns = inside
    return (
        slice(max(rows.start, rows.start + top - rim), min(rows.stop, rows.start + top + height + rim)),
        slice(max(columns.start, columns.start + left - rim), min(columns.stop, columns.start + left + width + rim)),
    )


def _inside_borders(image_hw: NDArray[np.float32], small: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns of a slice inside its uniform borders (black, white, gray bars, thin lines), by a small copy."""
    rows, columns = (
        slice(math.ceil(part.start * scale), int(part.stop * scale))
        for part, scale in zip(_trimmed(small), np.divide(image_hw.shape, small.shape), strict=True)
    )
    return rows, columns


def _trimmed(image_hw: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns inside uniform borders on all sides; all rows and columns if nothing would be left."""
    low, high = percentiles(image_hw, (0.5, 99.5))
    tolerance = _UNIFORM * max(float(high - low), 1e-6)
    top, left = 0, 0
    bottom, right = image_hw.shape
    everything = slice(0, bottom), slice(0, right)
    columns_first = cv2.transpose(image_hw)
    while True:  # bars can be nested (white page around a black frame), so trim until nothing is uniform
        before = (top, bottom, left, right)
        busy = _busy(image_hw[top:bottom, left:right], tolerance)
        if busy is None:
            return everything
        top, bottom = top + busy[0], top + busy[1]
        busy = _busy(columns_first[left:right, top:bottom], tolerance)
        if busy is None:
            return everything
        left, right = left + busy[0], left + busy[1]
        if (top, bottom, left, right) == before:
            break
    if bottom - top < 8 or right - left < 8:
        return everything
    # Dark lines stay: they are air, in which the tip of a head may show, and do no harm. Next to a bright line lies one
    # in which resizing has mixed border and picture; it goes as well.
    bright = float(low + _UNIFORM * (high - low))
    return (
        _between(image_hw[:, left:right], top, bottom, bright),
        _between(columns_first[:, top:bottom], left, right, bright),
    )


def _between(lines: NDArray[np.float32], start: int, stop: int, level: float) -> slice:
    """From behind the last line before `start` that is brighter than a level to before the first such one from `stop`
    on."""
    before, after = (np.flatnonzero(percentiles(part, (50,), 1)[0] > level) for part in (lines[:start], lines[stop:]))
    return slice(int(before[-1]) + 2 if before.size else 0, stop + int(after[0]) - 1 if after.size else len(lines))


def _busy(lines: NDArray[np.float32], tolerance: float) -> tuple[int, int] | None:
    """The first and one past the last line that is not uniform, or none if all are uniform."""
    low, high = percentiles(lines, (3, 97), 1)
    busy = np.flatnonzero(high - low > tolerance)
    return (int(busy[0]), int(busy[-1]) + 1) if busy.size else None


def _tissue_hull(image_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The convex hull of everything brighter than air as 0 and 1; empty if nothing is."""
    low, high = percentiles(image_hw, (0.5, 99.0))
    empty = np.zeros(image_hw.shape, np.uint8)
    if high - low <= 1e-6 or min(image_hw.shape) < 8:
        return empty
    level = image_hw - low
    level /= high - low
    level *= 255
    level_u8 = cv2.GaussianBlur(np.clip(level, 0, 255, out=level).astype(np.uint8), (0, 0), 1.0)
    otsu, _ = cv2.threshold(level_u8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(0.5 * otsu / 255, *_THRESHOLD_RANGE)) * 255
    tissue = (level_u8 > threshold).astype(np.uint8)
    radius = max(1, round(0.012 * max(image_hw.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Padded, because the head may touch the edge, and what lies beyond must count as air.
    tissue = cv2.copyMakeBorder(tissue, 2 * radius, 2 * radius, 2 * radius, 2 * radius, cv2.BORDER_CONSTANT, value=0)
    solid = cv2.morphologyEx(_filled(cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, kernel)), cv2.MORPH_OPEN, kernel)
    solid = solid[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    outlines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if len(outlines) > 1:
        outlines = [_row_ends(_large_islands(solid))]
    if outlines:
        cv2.fillConvexPoly(empty, cv2.convexHull(outlines[0]), 1)
    return empty


def _large_islands(solid: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Eyes and cerebellum are islands of their own in skull-stripped slices. Letters and scan artifacts are smaller."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = np.concatenate([[False], areas >= 0.06 * areas.max()])
    return np.asarray(large[labels])


def _row_ends(mask_hw: NDArray[np.bool_]) -> NDArray[np.int32]:
    """``(n, 1, 2)`` x and y of the first and last pixel of each row that is not empty.

    The convex hull depends on these points only, a hundredth of the mask's.
    """
    rows = np.flatnonzero(mask_hw.any(axis=1))
    filled = mask_hw[rows]
    first, last = filled.argmax(axis=1), mask_hw.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([first, rows], axis=1), np.stack([last, rows], axis=1)])
    return ends.astype(np.int32).reshape(-1, 1, 2)


def _filled(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask with its holes filled."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, contours, -1, 1, thickness=cv2.FILLED)
    return filled
