"""The overlay: the scan at a size that can be read, lesions as tint and contour, label and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.masks.labeling import rgb_of
from tumorlens.data.plotting import plain
from tumorlens.data.preprocessing.percentiles import percentiles
from tumorlens.data.preprocessing.preprocess import to_gray
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs.text import (
    Picture,
    band,
    draw_caption,
    draw_text,
    fitted,
    ground,
    letter_size,
    line_height,
    text_width,
)
from tumorlens.pipeline.result import Result

RESEARCH_ONLY = "research only"
_TINT = (255, 40, 40)
_CONTOUR = (255, 225, 0)  # yellow on red stays visible to color-blind readers
_TINT_SHARE = 0.3
_DASH = 4  # pixels of a dash, and of the gap behind it, around a doubtful lesion
_SQUARE = 0.02  # pixels whose sides differ by less are not stretched
_LEAST_SIDE = 640  # pixels along the longer side of the picture; smaller slices are enlarged
_GAP = 4
_FLAT = 1.6  # pictures wider than this, as a multiple of their height, stand one above the other

# The patient's directions at the left, right, upper and lower border of each radiological view (see `data.scan`).
BORDERS = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
_LEAST_COVERED = 0.2  # share of the slice's gray levels that a header's window must cover to be used


def draw_overlay(result: Result) -> Picture:
    """RGB picture ``(rows, columns, 3)`` uint8 of the shown slice with its mask, label and confidence.

    Its longer side has 640 pixels or more. Pixels that are not square are stretched to true proportions. Letters show
    the orientation where it is known. Several lesions have their numbers. Regions of lesions have their colors, which a
    strip below explains.
    """
    gray = _gray(result.scan, result.shown_slice)
    picture = draw_caption(_marked(_with_mask(result, gray), result), caption(result))
    return np.concatenate([picture, *legend(result, picture.shape[1], letter_size(*picture.shape[:2]))])


def draw_heat(result: Result) -> Picture:
    """RGB picture of the shown slice twice, under the mask and under the classifier's heat, with words that explain it.

    Raises:
        InputError: The result has no heat.
    """
    from tumorlens.classification.evaluation.explanation import draw_explanation

    if result.heat is None:
        raise InputError("the result has no explanation; run with RunOptions(explain=True)")
    scan, index = result.scan, result.shown_slice
    gray = _gray(scan, index)
    left = _with_mask(result, gray)
    size = left.shape[1::-1]
    shown = cv2.resize(gray_bytes(gray, _limits(scan, index, gray)), size, interpolation=cv2.INTER_LINEAR)
    heated = draw_explanation(shown, cv2.resize(result.heat, size, interpolation=cv2.INTER_LINEAR))
    panels = [
        draw_caption(_marked(left, result), caption(result)),
        draw_caption(_marked(heated, result), "where the classifier looked"),
    ]
    along = 0 if size[0] > _FLAT * size[1] else 1
    bar = ground(_GAP, size[0]) if along == 0 else ground(size[1], _GAP)
    both = np.concatenate([panels[0], bar, panels[1]], axis=along)
    words = (
        f"Grad-CAM: where the classifier looked for '{_sought(result)}'; not an outline of the tumor. Research only."
    )
    below = [*legend(result, both.shape[1], letter_size(*size)), band([words], both.shape[1], letter_size(*size))]
    return np.concatenate([both, *below])


def _with_mask(result: Result, gray: NDArray[Any]) -> Picture:
    scan, index = result.scan, result.shown_slice
    size = _shown_size(gray.shape, scan.pixel_aspect)
    return draw_slice(result, scan, index, _limits(scan, index, gray), size, numbered=len(result.lesions) > 1)


def _marked(picture: Picture, result: Result) -> Picture:
    """The picture of the shown slice with its directions, and below its plane and that it is for research only."""
    scan = result.scan
    size = letter_size(*picture.shape[:2])
    is_placed = mark_sides(picture, scan, size)
    note = f"{scan.plane} slice {result.shown_slice}, {RESEARCH_ONLY}" if is_placed else RESEARCH_ONLY
    size = fitted(note, round(0.8 * size), picture.shape[1] - 8)
    draw_text(picture, note, max(2, size // 4), picture.shape[0] - max(2, size // 4), size, "ld")
    return picture


def _sought(result: Result) -> str:
    """The class that the heat belongs to, in words: the likeliest type of a tumor of uncertain type."""
    if not result.classes.is_uncertain(result.label):
        return result.classes.prose(result.label)
    return result.classes.prose(max(result.classes.tumors, key=lambda name: result.probabilities[name]))


def mark_sides(picture: Picture, scan: Scan, size: int) -> bool:
    """Write the patient's directions at the left and right border of a volume's slice; False where they are not known.

    Args:
        picture: The slice, changed in place.
        scan: Its volume.
        size: Height of the letters in pixels.
    """
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
        return False
    height, width = picture.shape[:2]
    left, right, _, _ = BORDERS[str(scan.plane)]
    rim = max(2, size // 4)
    draw_text(picture, left, rim, height // 2, size, "lm")
    draw_text(picture, right, width - rim, height // 2, size, "rm")
    return True


def caption(result: Result) -> str:
    """Label and confidence, without anything that identifies the patient."""
    if result.confidence is None:
        return "refused: no MRI of the brain"
    return f"{result.classes.prose(result.label)} {result.confidence:.2f}"


def legend(result: Result, width: int, size: int) -> list[Picture]:
    """A strip with the color, name and size of each region; none where no region is drawn.

    Args:
        result: The result.
        width: Width of the strip in pixels.
        size: Height of the letters in pixels.
    """
    if result.region_mask is None or not result.lesions:
        return []
    rows: list[list[tuple[int, str, tuple[int, int, int]]]] = [[]]
    x, box = size // 2, round(0.8 * size)
    for row, region in zip(result.regions.rows, result.region_sizes, strict=True):
        sized = "" if region.volume_mm3 is None else f" {region.volume_mm3 / 1000:.3g} ml"
        text = f"{plain(row.name)}{sized}"
        end = x + box + size // 3 + text_width(text, size)
        if rows[-1] and end > width:
            rows.append([])
            x, end = size // 2, size // 2 + end - x
        rows[-1].append((x, text, rgb_of(row.color)))
        x = end + size
    strip = ground(len(rows) * line_height(size) + size // 2, width)
    for k, entries in enumerate(rows):
        top = size // 4 + k * line_height(size)
        for x, text, color in entries:
            low = top + (line_height(size) - box) // 2
            strip[low : low + box, x : x + box] = color
            draw_text(strip, text, x + box + size // 3, top + line_height(size) // 2, size, "lm")
    return [strip]


def display_limits(values: NDArray[Any]) -> tuple[float, float]:
    """The values shown as black and as white. The darkest and the brightest 0.5 % lie beyond them."""
    low, high = (float(v) for v in percentiles(values, (0.5, 99.5)))
    if high <= low:
        low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1)
    return low, high


def gray_bytes(gray_hw: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Gray values as bytes: 0 up to the lower limit, 255 from the upper limit on."""
    if gray_hw.dtype == np.uint8:
        return np.asarray(cv2.LUT(gray_hw, gray_bytes(np.arange(256, dtype=np.float32), limits)))
    low, high = limits
    return (np.clip((gray_hw - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def draw_slice(
    result: Result, scan: Scan, index: int, limits: tuple[float, float], size: tuple[int, int], numbered: bool = True
) -> Picture:
    """A slice with its lesions at a size ``(height, width)``. Contours are drawn after resizing.

    Args:
        result: The result. Doubtful lesions are dashed.
        scan: Its scan, cut in any plane.
        index: Index of the slice in that plane.
        limits: The values shown as black and as white.
        size: Height and width of the picture.
        numbered: Whether lesions have their numbers beside them.
    """
    gray = gray_bytes(_gray(scan, index), limits)
    numbers_hw = np.ascontiguousarray(scan.view(result.numbers, index))
    shrinks = size[0] * size[1] < gray.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    gray = cv2.resize(gray, size[::-1], interpolation=how)
    picture: Picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    if not numbers_hw.any():
        return picture
    doubtful = np.isin(numbers_hw, [lesion.number for lesion in result.lesions if lesion.doubtful])

    def resized(inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
        drawn = np.zeros(size, np.uint8)
        for value, part in ((2, inside & doubtful), (1, inside & ~doubtful)):
            if part.any():
                covered = cv2.resize(part.astype(np.float32), size[::-1], interpolation=how)
                # A lesion may be thinner than a pixel of the picture.
                drawn[covered > (0.5 if covered.max() > 0.5 else 0)] = value
        return drawn

    if result.region_mask is None:
        picture = draw_mask(picture, resized(numbers_hw > 0))
    else:
        bits = result.regions.bits(np.ascontiguousarray(scan.view(result.region_mask, index)))
        planes = zip(result.regions.planes(bits), map(rgb_of, (row.color for row in result.regions.rows)), strict=True)
        picture = _draw_layers(picture, [_Layer(resized(plane != 0), color, color) for plane, color in planes])
    return _number(picture, numbers_hw) if numbered else picture


def _number(picture: Picture, numbers_hw: NDArray[np.uint16]) -> Picture:
    """Write the number of each lesion of a slice to its upper right, or to its upper left at the picture's border."""
    height, width = picture.shape[:2]
    scale = np.array([height, width]) / numbers_hw.shape
    size = max(12, round(0.8 * letter_size(height, width)))
    for number in np.unique(numbers_hw[numbers_hw > 0]):
        rows, columns = np.nonzero(numbers_hw == number)
        text = str(number)
        top = max(round(rows.min() * scale[0]), size)
        x = round((columns.max() + 1) * scale[1])
        anchor = "ls"
        if x + text_width(text, size) > width:
            x, anchor = round(columns.min() * scale[1]), "rs"
        draw_text(picture, text, x, top, size, anchor)
    return picture


def draw_mask(picture_hw3: Picture, mask_hw: NDArray[np.uint8]) -> Picture:
    """An RGB picture under a mask: a tint inside 1 and a line along its border; only a thin dashed line around 2."""
    return _draw_layers(picture_hw3, [_Layer(mask_hw, _TINT, _CONTOUR)])


@dataclass(frozen=True)
class _Layer:
    """A mask as in `draw_mask`, and the colors of its tint and its line."""

    mask_hw: NDArray[np.uint8]
    tint: tuple[int, int, int]
    line: tuple[int, int, int]


def _draw_layers(picture_hw3: Picture, layers: Sequence[_Layer]) -> Picture:
    """An RGB picture under masks, the last on top. Where several lie, only the tint of the last shows."""
    marked = picture_hw3.copy()
    for layer in layers:
        tints = ((1 - _TINT_SHARE) * np.arange(256)[:, None] + _TINT_SHARE * np.array(layer.tint)).astype(np.uint8)
        cv2.copyTo(cv2.LUT(picture_hw3, tints[:, None]), (layer.mask_hw == 1).view(np.uint8), marked)
    width = max(1, round(letter_size(*picture_hw3.shape[:2]) / 10))
    for layer in layers:
        cv2.drawContours(marked, _contours(layer.mask_hw == 1), -1, layer.line, thickness=width)
        for contour in _contours(layer.mask_hw == 2):
            for start in range(0, len(contour), 2 * _DASH * width):
                cv2.polylines(marked, [contour[start : start + _DASH * width]], False, layer.line)
    return marked


def _contours(inside: NDArray[np.bool_]) -> Sequence[NDArray[Any]]:
    return cv2.findContours(inside.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]


def _gray(scan: Scan, index: int) -> NDArray[Any]:
    view = scan.slice(index)
    if view.ndim == 2 and view.dtype == np.uint8:  # bytes are counted and looked up faster than floats
        return np.ascontiguousarray(view)
    return to_gray(view) if np.ptp(view) else np.zeros(view.shape[:2], np.float32)


def _limits(scan: Scan, index: int, gray: NDArray[Any]) -> tuple[float, float]:
    """The window in the header, which readers are used to, if it fits the slice; else limits from the values."""
    low, high = display_limits(gray)
    as_acquired = scan.plane_axis is None and index < len(scan.windows)
    window = scan.windows[index] if as_acquired else None
    if window is None:
        return low, high
    covered = min(high, window[1]) - max(low, window[0])
    fits = covered > _LEAST_COVERED * (high - low) and window[1] - window[0] < (high - low) / _LEAST_COVERED
    return window if fits else (low, high)


def _shown_size(shape: tuple[int, ...], aspect: float) -> tuple[int, int]:
    """Height and width with square pixels. The side with the finer pixels keeps their number, or is enlarged."""
    rows, columns = float(shape[0]), float(shape[1])
    if aspect > 1 + _SQUARE:
        rows *= aspect
    elif aspect < 1 - _SQUARE:
        columns /= aspect
    scale = max(1.0, _LEAST_SIDE / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))
