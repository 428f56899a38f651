"""Boxes as weak masks: what they teach, and boxes around masks.

A box says that a lesion touches its four sides, and that there is none outside. As in "Simple Does It" (A. Khoreva et
al., CVPR 2017), its core counts as lesion and the truth of the rest is left open. Lesions are round, so core and rest
are ellipses here. Measured on 900 slices of BRISC (docs/notebook/experiments.md): within 0.6 of the ellipse that
touches the sides nine pixels in ten or more are lesion, in each class, and beyond 1.1 one in seven or fewer.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LESION, UNKNOWN = 1, 2  # values of what a slice teaches, besides 0
_CORE, _RIM = 0.6, 1.1
_CORNERS_PX = 4  # resampling may take the corners off a box


def box_truth(mask_hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What filled boxes teach: 0 outside, `LESION` in their cores, `UNKNOWN` between.

    Where boxes overlap or touch, or an outline lies among them, only the outside is certain.

    Args:
        mask_hw: ``(rows, columns)`` 0 and 1, with upright boxes.
    """
    truth = np.where(mask_hw != 0, UNKNOWN, 0).astype(np.uint8)
    for left, top, width, height, area in _parts(mask_hw):
        if area + _CORNERS_PX < width * height:
            continue
        y, x = np.ogrid[:height, :width]
        radius = np.hypot((2 * x + 1) / width - 1, (2 * y + 1) / height - 1)
        part = truth[top : top + height, left : left + width]
        part[radius < _CORE] = LESION
        part[radius > _RIM] = 0
    return truth


def fill_boxes(mask_hw: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The mask, 0 and 1, of the upright boxes around the 8-connected parts of a mask."""
    filled = np.zeros(mask_hw.shape, np.uint8)
    for left, top, width, height, _ in _parts(mask_hw):
        filled[top : top + height, left : left + width] = 1
    return filled


def boxes_of(mask_hw: NDArray[np.generic]) -> NDArray[np.int64]:
    """The boxes around the 8-connected parts of a mask, ``(n, 4)``: left, top, right, bottom."""
    boxes = _parts(mask_hw)[:, :4].astype(np.int64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _parts(mask_hw: NDArray[np.generic]) -> NDArray[np.int32]:
    """Left, top, width, height and area of each part, ``(n, 5)``."""
    return np.asarray(cv2.connectedComponentsWithStats((mask_hw != 0).astype(np.uint8), connectivity=8)[2][1:])
