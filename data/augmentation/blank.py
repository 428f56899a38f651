"""Slices whose head is blanked: they show an outline and no brain."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def blank_head(image_hw: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """The prepared slice with the inside of its head replaced by a flat tone or by grain, so that the outline is left.

    A classifier learns from such slices that all classes are equally likely, so it cannot recognize a scan's source by
    the head's outline (outlier exposure: D. Hendrycks et al., ICLR 2019).

    Args:
        image_hw: ``(size, size)`` uint8, 0 outside the head's convex mask.
        seed: The same seed gives the same picture.
    """
    rng = np.random.default_rng(seed)
    points = cv2.findNonZero(image_hw)
    head = np.zeros(image_hw.shape, np.uint8)
    if points is not None:
        cv2.fillConvexPoly(head, cv2.convexHull(points), 1)
    level, deviation = rng.uniform(20, 230), rng.choice([0.0, rng.uniform(2, 70)])
    grain = rng.normal(0, 1, image_hw.shape).astype(np.float32)
    coarseness = rng.choice([0.0, rng.uniform(0.5, 8)])
    if coarseness:
        grain = cv2.GaussianBlur(grain, (0, 0), coarseness)
        grain /= max(float(grain.std()), 1e-6)
    return np.rint(np.clip(level + deviation * grain, 0, 255)).astype(np.uint8) * head
