"""The picture for the reader: the scan at its own resolution, the mask as tint and contour, label and confidence."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from data.preprocess import to_gray
from pipeline.result import Result

_TINT = (255, 40, 40)
_CONTOUR = (255, 225, 0)  # yellow on red stays visible to colour-blind readers
_TINT_SHARE = 0.3


def draw_overlay(result: Result) -> NDArray[np.uint8]:
    """RGB picture ``(rows, columns, 3)`` of the scan, or of the volume's slice with the largest tumor area."""
    scan = result.scan
    view = scan.slice(result.shown_slice)
    mask = scan.view(result.mask, result.shown_slice)
    picture = np.repeat(display_levels(view)[..., None], 3, axis=2)
    picture = draw_mask(picture, mask)
    caption = f"{result.label.replace('_', ' ')} {result.confidence:.2f}"
    return _write(picture, caption)


def display_levels(view: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey bytes of a slice with the darkest and brightest 0.5 % cut off."""
    gray = to_gray(view) if np.ptp(view) else np.zeros(view.shape[:2], np.float32)
    low, high = np.percentile(gray, (0.5, 99.5))
    if high <= low:
        low, high = float(gray.min()), max(float(gray.max()), float(gray.min()) + 1)
    return (np.clip((gray - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def draw_mask(picture_hw3: NDArray[np.uint8], mask_hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a mask (0 and 1) over an RGB picture: tint inside, line along the border."""
    drawn = picture_hw3.copy()
    inside = mask_hw != 0
    drawn[inside] = ((1 - _TINT_SHARE) * drawn[inside] + _TINT_SHARE * np.array(_TINT)).astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _CONTOUR, thickness=max(1, round(max(mask_hw.shape) / 500)))
    return drawn


def _write(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Text in the upper left corner, on a dark ground, as large as the picture allows."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = float(np.clip(picture.shape[1] / 700, 0.3, 2.0))
    room = 0.94 * picture.shape[1] / cv2.getTextSize(text, font, scale, 1)[0][0]
    scale *= min(1.0, room)
    thickness = max(1, round(scale * 1.5))
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    rim = max(2, height // 3)
    box = picture[: height + below + 2 * rim, : width + 2 * rim]
    box[:] = (box * 0.35).astype(np.uint8)
    cv2.putText(picture, text, (rim, rim + height), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return picture
