"""Where the head lies in a slice: the first step that takes a picture's frame out of the picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_WORK_SIZE = 256  # the mask is found at this size: fast, and independent of the source's resolution
_UNIFORM = 0.03  # a frame row whose values span less than this share of the slice's range is no anatomy
_THRESHOLD_RANGE = (0.06, 0.22)  # of the bright level; below lies air and ringing, above lie dark tissue and fluid


def find_head(image_hw: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Convex mask of the head.

    Uniform frames of any grey level are trimmed, air is split from tissue by a damped Otsu threshold
    (N. Otsu, IEEE Trans. SMC 1979), thin lines and letters are opened away, and the convex hull of what is left is
    taken, so that sinuses, ventricles and dark lesions stay inside.

    Args:
        image_hw: One grey slice, any intensity unit, finite.

    Returns:
        Mask of the same rows x columns. All true when no head stands out from its background.
    """
    height, width = image_hw.shape
    scale = min(1.0, _WORK_SIZE / max(height, width))
    small = cv2.resize(
        image_hw, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    rows, columns = _inside_frame(small)
    mask_small = np.zeros(small.shape, np.uint8)
    mask_small[rows, columns] = _tissue_hull(small[rows, columns])
    if not mask_small.any():
        return np.ones(image_hw.shape, bool)
    mask = cv2.resize(mask_small * 255, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    return mask if mask.any() else np.ones(image_hw.shape, bool)


def _inside_frame(image_hw: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns left when uniform borders (black, white or grey bars) are trimmed from all sides."""
    low, high = np.percentile(image_hw, (0.5, 99.5))
    tolerance = _UNIFORM * max(float(high - low), 1e-6)
    top, left = 0, 0
    bottom, right = image_hw.shape
    while True:  # bars can be nested (white page around a black frame), so trim until nothing is uniform
        before = (top, bottom, left, right)
        window = image_hw[top:bottom, left:right]
        busy_rows = np.flatnonzero(np.ptp(window, axis=1) > tolerance)
        if busy_rows.size == 0:
            return slice(0, image_hw.shape[0]), slice(0, image_hw.shape[1])
        top, bottom = top + int(busy_rows[0]), top + int(busy_rows[-1]) + 1
        window = image_hw[top:bottom, left:right]
        busy_columns = np.flatnonzero(np.ptp(window, axis=0) > tolerance)
        if busy_columns.size == 0:
            return slice(0, image_hw.shape[0]), slice(0, image_hw.shape[1])
        left, right = left + int(busy_columns[0]), left + int(busy_columns[-1]) + 1
        if (top, bottom, left, right) == before:
            return slice(top, bottom), slice(left, right)


def _tissue_hull(image_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(image_hw, (0.5, 99.0))
    empty = np.zeros(image_hw.shape, np.uint8)
    if high - low <= 1e-6 or min(image_hw.shape) < 8:
        return empty
    level = np.clip((image_hw - low) / (high - low), 0, 1)
    level_u8 = cv2.GaussianBlur((level * 255).astype(np.uint8), (0, 0), 1.0)
    otsu, _ = cv2.threshold(level_u8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(0.5 * otsu / 255, *_THRESHOLD_RANGE)) * 255
    tissue = (level_u8 > threshold).astype(np.uint8)
    radius = max(1, round(0.012 * max(image_hw.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Padded, because the head may touch the frame and the border must count as air.
    tissue = cv2.copyMakeBorder(tissue, 2 * radius, 2 * radius, 2 * radius, 2 * radius, cv2.BORDER_CONSTANT, value=0)
    solid = cv2.morphologyEx(_filled(cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, kernel)), cv2.MORPH_OPEN, kernel)
    solid = solid[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    if count < 2:
        return empty
    areas = stats[1:, cv2.CC_STAT_AREA]
    # Eyes and cerebellum are separate islands in skull-stripped slices; letters and scan artefacts are smaller.
    kept = np.flatnonzero(areas >= 0.06 * areas.max()) + 1
    points = np.argwhere(np.isin(labels, kept))[:, ::-1].astype(np.int32)
    hull = cv2.convexHull(points.reshape(-1, 1, 2))
    cv2.fillConvexPoly(empty, hull, 1)
    return empty


def _filled(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, contours, -1, 1, thickness=cv2.FILLED)
    return filled
