"""Cleans probability maps and turns them into masks, on the network's grid."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def threshold_u8(threshold: float) -> int:
    """The lowest byte of a lesion's pixel in a map."""
    return max(1, round(threshold * 255))


def clean_map(map_hw: NDArray[np.uint8], threshold: float, min_lesion_px: int) -> NDArray[np.uint8]:
    """A map in which lesions smaller than `min_lesion_px` pixels are 0.

    The map keeps its gray levels elsewhere, so that the mask's border can be interpolated on the source's grid.

    Args:
        map_hw: ``(rows, columns)`` uint8, 255 is certain.
        threshold: Lowest probability of a lesion's pixel.
        min_lesion_px: Smallest lesion, an 8-connected component.
    """
    mask = (map_hw >= threshold_u8(threshold)).astype(np.uint8)
    if min_lesion_px <= 0 or not mask.any():
        return map_hw
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < min_lesion_px]
    if not small:
        return map_hw
    cleaned = map_hw.copy()
    cleaned[np.isin(labels, small)] = 0
    return cleaned


def clean_mask(map_hw: NDArray[np.uint8], threshold: float, min_lesion_px: int) -> NDArray[np.uint8]:
    """The mask of the clean map, 0 and 1; arguments as in `clean_map`."""
    return (clean_map(map_hw, threshold, min_lesion_px) >= threshold_u8(threshold)).astype(np.uint8)


def move_threshold(map_hw: NDArray[np.uint8], threshold: float, common: float) -> NDArray[np.uint8]:
    """A map whose levels are stretched so that the mask at `threshold` is the one at `common`.

    Args:
        map_hw: ``(rows, columns)`` uint8, 255 is certain.
        threshold: Lowest probability of a lesion's pixel in it.
        common: The same in the returned map.
    """
    old, new = threshold_u8(threshold), threshold_u8(common)
    if old == new:
        return map_hw
    levels = np.interp(np.arange(256), [0, old, 255], [0, new, 255])
    return levels.astype(np.uint8)[map_hw]  # rounded down, so that a level below the threshold stays below it
