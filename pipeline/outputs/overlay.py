"""The overlay: the scan at its own resolution, lesions as tint and contour, label and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR
from tumorlens.data.plotting import plain
from tumorlens.data.preprocessing.percentiles import percentiles
from tumorlens.data.preprocessing.preprocess import to_gray
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.result import Result

_TINT = (255, 40, 40)
_CONTOUR = (255, 225, 0)  # yellow on red stays visible to color-blind readers
_TINT_SHARE = 0.3
_DASH = 4  # pixels of a dash, and of the gap behind it, around a doubtful lesion
_SQUARE = 0.02  # pixels whose sides differ by less are not stretched

# The patient's directions at the left, right, upper and lower border of each radiological view (see `data.scan`).
BORDERS = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
_LEAST_COVERED = 0.2  # share of the slice's gray levels that a header's window must cover to be used


def draw_overlay(result: Result) -> NDArray[np.uint8]:
    """RGB picture ``(rows, columns, 3)`` uint8 of the shown slice with its mask, label and confidence.

    Pixels that are not square are stretched to true proportions. Letters show the orientation where it is known.
    """
    scan, index = result.scan, result.shown_slice
    gray = _gray(scan, index)
    picture = draw_slice(
        scan, marked_mask(result), index, _limits(scan, index, gray), _true_size(gray.shape, scan.pixel_aspect)
    )
    return write_text(mark_sides(picture, scan, f"slice {index}, research only"), caption(result))


def draw_heat(result: Result) -> NDArray[np.uint8]:
    """RGB picture of the same slice under the classifier's heat, with the mask's contour: the evidence for the label.

    Raises:
        InputError: The result has no heat.
    """
    from tumorlens.classification.evaluation.explanation import draw_explanation

    if result.heat is None:
        raise InputError("the result has no explanation; run with RunOptions(explain=True)")
    scan, index = result.scan, result.shown_slice
    gray = _gray(scan, index)
    size = _true_size(gray.shape, scan.pixel_aspect)
    shown = cv2.resize(gray_bytes(gray, _limits(scan, index, gray)), size[::-1], interpolation=cv2.INTER_LINEAR)
    heat = cv2.resize(result.heat, size[::-1], interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(np.ascontiguousarray(scan.view(result.mask, index)), size[::-1], interpolation=cv2.INTER_NEAREST)
    picture = draw_explanation(shown, heat, mask if mask.any() else None)
    return write_text(mark_sides(picture, scan), f"{caption(result)}: why")


def marked_mask(result: Result) -> NDArray[np.uint8]:
    """The mask of a result in which doubtful lesions have the value 2, as `draw_slice` takes it."""
    doubtful = [lesion.number for lesion in result.lesions if lesion.doubtful]
    if not doubtful:
        return result.mask
    return np.where(np.isin(number_lesions(result.mask, result.scan), doubtful), np.uint8(2), result.mask)


def mark_sides(picture: NDArray[np.uint8], scan: Scan, note: str = "") -> NDArray[np.uint8]:
    """Write the patient's directions at the borders of a volume's slice, and its plane with a note below.

    The picture stays as it is where the orientation is not known.
    """
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
        return picture
    height, width = picture.shape[:2]
    scale = float(np.clip(width / 700, 0.35, 1.2))
    left, right, _, _ = BORDERS[str(scan.plane)]
    rim = max(2, round(4 * scale))
    texts = [(left, rim, height // 2), (right, width - rim - _text_width(right, scale), height // 2)]
    if note:
        texts.append((f"{scan.plane} {note}", rim, height - 2 * rim))
    for text, x, y in texts:
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # readable on air and on bone
            cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, color, thickness, cv2.LINE_AA)
    return picture


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])


def caption(result: Result) -> str:
    """Label and confidence, without anything that identifies the patient."""
    if result.confidence is None:
        return "refused: no MRI of the brain"
    uncertain = " (type uncertain)" if result.label == TUMOR else ""
    return f"{plain(result.label)}{uncertain} {result.confidence:.2f}"


def display_limits(values: NDArray[Any]) -> tuple[float, float]:
    """The values shown as black and as white. The darkest and the brightest 0.5 % lie beyond them."""
    low, high = (float(v) for v in percentiles(values, (0.5, 99.5)))
    if high <= low:
        low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1)
    return low, high


def gray_bytes(gray_hw: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Gray values as bytes: 0 up to the lower limit, 255 from the upper limit on."""
    low, high = limits
    return (np.clip((gray_hw - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def draw_slice(
    scan: Scan, mask: NDArray[np.uint8], index: int, limits: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """A slice with its mask, from `marked_mask`, at a size ``(height, width)``. Contours are drawn after resizing."""
    gray = gray_bytes(_gray(scan, index), limits)
    mask_hw = np.ascontiguousarray(scan.view(mask, index))
    shrinks = size[0] * size[1] < gray.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    gray = cv2.resize(gray, size[::-1], interpolation=how)
    drawn = np.zeros(size, np.uint8)
    for value in (2, 1):
        covered = cv2.resize((mask_hw == value).astype(np.float32), size[::-1], interpolation=how)
        # A lesion may be thinner than a pixel of the picture.
        drawn[covered > (0.5 if covered.max() > 0.5 else 0)] = value
    return draw_mask(np.repeat(gray[..., None], 3, axis=2), drawn)


def draw_mask(picture_hw3: NDArray[np.uint8], mask_hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An RGB picture under a mask: a tint inside 1 and a line along its border; only a thin dashed line around 2."""
    marked = picture_hw3.copy()
    inside = mask_hw == 1
    marked[inside] = ((1 - _TINT_SHARE) * marked[inside] + _TINT_SHARE * np.array(_TINT)).astype(np.uint8)
    width = max(1, round(max(mask_hw.shape) / 500))
    cv2.drawContours(marked, _contours(inside), -1, _CONTOUR, thickness=width)
    for contour in _contours(mask_hw == 2):
        for start in range(0, len(contour), 2 * _DASH * width):
            cv2.polylines(marked, [contour[start : start + _DASH * width]], False, _CONTOUR)
    return marked


def _contours(inside: NDArray[np.bool_]) -> Sequence[NDArray[Any]]:
    return cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]


def _gray(scan: Scan, index: int) -> NDArray[np.float32]:
    view = scan.slice(index)
    return to_gray(view) if np.ptp(view) else np.zeros(view.shape[:2], np.float32)


def _limits(scan: Scan, index: int, gray: NDArray[np.float32]) -> tuple[float, float]:
    """The window in the header, which readers are used to, if it fits the slice; else limits from the values."""
    low, high = display_limits(gray)
    as_acquired = scan.plane_axis is None and index < len(scan.windows)
    window = scan.windows[index] if as_acquired else None
    if window is None:
        return low, high
    covered = min(high, window[1]) - max(low, window[0])
    fits = covered > _LEAST_COVERED * (high - low) and window[1] - window[0] < (high - low) / _LEAST_COVERED
    return window if fits else (low, high)


def _true_size(shape: tuple[int, ...], aspect: float) -> tuple[int, int]:
    """Height and width with square pixels. The side with the finer pixels keeps their number."""
    rows, columns = shape[:2]
    if abs(aspect - 1) < _SQUARE:
        return rows, columns
    return (round(rows * aspect), columns) if aspect > 1 else (rows, round(columns / aspect))


def write_text(picture: NDArray[np.uint8], text: str, scale: float | None = None) -> NDArray[np.uint8]:
    """Write text into the upper left corner on a dark ground, at a font scale or as large as the picture allows."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = float(np.clip(picture.shape[1] / 700, 0.3, 2.0)) if scale is None else scale
    room = 0.94 * picture.shape[1] / cv2.getTextSize(text, font, scale, 1)[0][0]
    scale *= min(1.0, room)
    thickness = max(1, round(scale * 1.5))
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    rim = max(2, height // 3)
    box = picture[: height + below + 2 * rim, : width + 2 * rim]
    box[:] = (box * 0.35).astype(np.uint8)
    cv2.putText(picture, text, (rim, rim + height), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return picture
