"""The head in a slice: all of its tissue, without the frame around it."""

from __future__ import annotations

import cv2
import numpy as np

from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.head import find_head


def test_head_is_found_and_convex():
    image = phantom_slice(2, "no_tumor").image
    head = find_head(image.astype(np.float32))
    tissue = image > 40
    assert (head & tissue).sum() > 0.995 * tissue.sum()
    assert head.sum() < 1.25 * cv2.contourArea(
        cv2.convexHull(np.argwhere(tissue)[:, ::-1].astype(np.int32).reshape(-1, 1, 2))
    )
