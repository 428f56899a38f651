"""The montage: a volume's slices at true proportions, its lesions in words, and three planes through the largest."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR_FREE
from tumorlens.data.scan import PLANES, Scan
from tumorlens.pipeline.measurements.lesions import Lesion, slice_areas_px
from tumorlens.pipeline.outputs.overlay import (
    BORDERS,
    RESEARCH_ONLY,
    caption,
    display_limits,
    draw_slice,
    legend,
    mark_sides,
)
from tumorlens.pipeline.outputs.text import Picture, band, draw_caption, draw_text, ground, text_width
from tumorlens.pipeline.result import Result

_MOST_TUMOR_SLICES = 20
_MOST_HEALTHY_SLICES = 12
_MOST_LESIONS = 12  # that are described
_TILE = 256  # pixels along the longer side of a tile
_LEAST_SIDE = 64  # pixels along the shorter side of a tile: the slice number needs room
_GAP = 4
_MARGIN = 22  # around a plane, for the letters of its directions
_WIDTH = 1024  # least width of the picture
_TALLEST_PLANE = 640
_TICK = 14
_SMALL, _MEDIUM, _LARGE = 13, 16, 24  # heights of letters
_MARK = (90, 220, 255)


def draw_montage(result: Result) -> Picture:
    """RGB picture ``(rows, columns, 3)`` uint8 of a volume, at most 2400 x 2400 pixels.

    On top stand the label and each lesion's number, size and confidence. Below are the slices with tumor, or those that
    look most like one (see `shown_slices`). Where the orientation is known, the lower part shows the axial, coronal and
    sagittal plane through the center of the largest lesion, to which ticks at the borders point, or through the middle
    of the most suspicious slice. All parts share one range of gray levels.

    Raises:
        InputError: The scan has one slice; `pipeline.outputs.overlay.draw_overlay` shows all of it.
    """
    scan = result.scan
    if scan.n_slices < 2:
        raise InputError("a montage shows a volume of several slices")
    step = max(1, round((scan.voxels.size / 1_000_000) ** (1 / 3)))
    limits = display_limits(scan.voxels[::step, ::step, ::step])
    grid = _grid(result, limits)
    width = max(_WIDTH, grid.shape[1])
    parts = [_title(result, width), _centered(grid, width)]
    if scan.affine is not None and scan.spacing_mm is not None:
        parts.append(_centered(_planes(result, limits, width), width))
    return np.concatenate(parts)


def shown_slices(result: Result) -> list[int]:
    """The slices that the montage shows, in order.

    These are the slices with tumor. Of more than 20, the montage shows 20 that are spread evenly and include the first,
    the last and the one with the largest area. Without tumor it shows the 12 judged slices with the highest tumor
    probability.
    """
    areas = slice_areas_px(result.mask, result.scan)
    tumor = np.flatnonzero(areas)
    if not len(tumor):
        ranked = sorted(_suspicions(result).items(), key=lambda item: -item[1])
        return sorted(index for index, _ in ranked[:_MOST_HEALTHY_SLICES])
    chosen = _spread(tumor, _MOST_TUMOR_SLICES)
    largest = int(areas.argmax())
    if largest not in chosen:  # it replaces its nearest neighbor, but never the first or the last
        inner = chosen[1:-1]
        chosen[1 + int(np.abs(np.array(inner) - largest).argmin())] = largest
    return chosen


def _suspicions(result: Result) -> dict[int, float]:
    """The tumor probability of each judged slice."""
    return {s["index"]: 1 - s["probabilities"].get(TUMOR_FREE, 0.0) for s in result.slices}


def _spread(indices: NDArray[np.int_], most: int) -> list[int]:
    if len(indices) <= most:
        return [int(k) for k in indices]
    return [int(indices[round(place)]) for place in np.linspace(0, len(indices) - 1, most)]


def _title(result: Result, width: int) -> Picture:
    """Label and confidence, and below them the lesions in words."""
    title = band([caption(result)], width, _LARGE)
    draw_text(title, RESEARCH_ONLY, width - _LARGE // 2, len(title) // 2, _MEDIUM, "rm")
    return np.concatenate([title, band(_legend(result, width), width, _MEDIUM), *legend(result, width, _MEDIUM)])


def _legend(result: Result, width: int) -> list[str]:
    """What is known of each lesion, as many to a line as fit."""
    if not result.lesions:
        return ["No lesion. These slices look most like a tumor; their tumor probability stands on each."]
    texts = [_described(lesion) for lesion in result.lesions[:_MOST_LESIONS]]
    if len(result.lesions) > _MOST_LESIONS:
        texts.append(f"{len(result.lesions) - _MOST_LESIONS} more: see result.json")
    lines = [texts[0]]
    for text in texts[1:]:
        longer = f"{lines[-1]}   |   {text}"
        if text_width(longer, _MEDIUM) > width - _MEDIUM:
            lines.append(text)
        else:
            lines[-1] = longer
    return lines


def _described(lesion: Lesion) -> str:
    """A lesion in words: number, size, confidence, and whether it is doubtful."""
    size = f"{lesion.voxels} voxels" if lesion.volume_ml is None else f"{lesion.volume_ml:.3g} ml"
    sure = "" if lesion.confidence is None else f", confidence {lesion.confidence:.2f}"
    return f"lesion {lesion.number}: {size}{sure}{', doubtful (dashed)' if lesion.doubtful else ''}"


def _grid(result: Result, limits: tuple[float, float]) -> Picture:
    shown = shown_slices(result)
    columns = min(len(shown), 5 if len(shown) > 12 else 4)
    tiles = [_slice_picture(result, k, limits) for k in shown]
    suspicions = {} if result.lesions else _suspicions(result)
    height, width = tiles[0].shape[:2]
    rows = -(-len(shown) // columns)
    grid = ground(rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for place, (k, tile) in enumerate(zip(shown, tiles, strict=True)):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        mark_sides(tile, result.scan, _SMALL)
        tumor = f", tumor {suspicions[k]:.2f}" if k in suspicions else ""
        grid[top : top + height, left : left + width] = draw_caption(tile, f"slice {k}{tumor}", _SMALL)
    return grid


def _planes(result: Result, limits: tuple[float, float], width: int) -> Picture:
    """Three planes through the center of the largest lesion, or of the head, side by side at one scale."""
    center = result.lesions[0].centroid_index if result.lesions else _middle(result)
    views = [scan for scan in (_cut(result.scan, name) for name in PLANES.values()) if scan is not None]
    sizes = [_size_mm(scan) for scan in views]
    room = width - len(views) * (2 * _MARGIN + 1)  # the 1 is for rounding
    scale = min(room / sum(w for _, w in sizes), _TALLEST_PLANE / max(h for h, _ in sizes))
    panels = [_panel(result, scan, center, limits, scale) for scan in views]
    row = ground(max(panel.shape[0] for panel in panels), width)
    spare = (width - sum(panel.shape[1] for panel in panels)) // (len(panels) + 1)
    left = spare
    for panel in panels:
        top = (len(row) - len(panel)) // 2
        row[top : top + len(panel), left : left + panel.shape[1]] = panel
        left += panel.shape[1] + spare
    return row


def _middle(result: Result) -> tuple[float, ...]:
    """The middle of the most suspicious slice, as indices of the array axes."""
    suspicions = _suspicions(result)
    middle = [(n - 1) / 2 for n in result.scan.voxels.shape[:3]]
    middle[result.scan.slice_axis] = max(suspicions, key=lambda index: suspicions[index])
    return tuple(middle)


def _cut(scan: Scan, name: str) -> Scan | None:
    """The scan in a plane, or None where the volume is only one voxel thick in it."""
    try:
        return scan.with_plane(name)
    except InputError:
        return None


def _panel(
    result: Result, scan: Scan, center: tuple[float, ...], limits: tuple[float, float], px_per_mm: float
) -> Picture:
    """One plane through the center, with letters around it and, for a lesion, ticks that point to the center."""
    index = min(max(round(center[scan.slice_axis]), 0), scan.n_slices - 1)
    height, width = (max(1, round(mm * px_per_mm)) for mm in _size_mm(scan))
    picture = draw_slice(result, scan, index, limits, (height, width))
    if result.lesions:
        _draw_ticks(picture, scan, index, center)
    panel = ground(height + 2 * _MARGIN, width + 2 * _MARGIN)
    panel[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = picture
    half = _MARGIN // 2
    draw_text(panel, f"{scan.plane} {index}", _MARGIN, half, _SMALL, "lm")
    left, right, top, bottom = BORDERS[str(scan.plane)]
    for letter, x, y in (
        (left, half, _MARGIN + height // 2),
        (right, panel.shape[1] - half, _MARGIN + height // 2),
        (top, _MARGIN + width // 2, half),
        (bottom, _MARGIN + width // 2, panel.shape[0] - half),
    ):
        draw_text(panel, letter, x, y, _SMALL, "mm")
    return panel


def _draw_ticks(picture: Picture, scan: Scan, index: int, center: tuple[float, ...]) -> None:
    """Draw ticks at the borders of a plane that point to a center, given as indices of the array axes."""
    height, width = picture.shape[:2]
    row, column = scan.place_in_view(center)
    rows, columns = scan.slice(index).shape[:2]
    y, x = int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)
    tick = min(_TICK, height // 4, width // 4)
    for start, end in (
        ((x, 0), (x, tick)),
        ((x, height - 1), (x, height - 1 - tick)),
        ((0, y), (tick, y)),
        ((width - 1, y), (width - 1 - tick, y)),
    ):
        cv2.line(picture, start, end, _MARK, thickness=2)


def _slice_picture(result: Result, index: int, limits: tuple[float, float]) -> Picture:
    scan = result.scan
    rows, columns = scan.slice(index).shape[:2]
    height, width = rows * scan.pixel_aspect, float(columns)
    scale = _TILE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    tile = ground(max(_LEAST_SIDE, size[0]), max(_LEAST_SIDE, size[1]))
    top, left = (len(tile) - size[0]) // 2, (tile.shape[1] - size[1]) // 2
    tile[top : top + size[0], left : left + size[1]] = draw_slice(result, scan, index, limits, size)
    return tile


def _size_mm(scan: Scan) -> tuple[float, float]:
    """Height and width of a slice in mm, or in pixels where their size is not known."""
    rows, columns = scan.slice(0).shape[:2]
    spacing = scan.slice_spacing_mm or (1.0, 1.0)
    return rows * spacing[0], columns * spacing[1]


def _centered(part: Picture, width: int) -> Picture:
    line = ground(len(part) + 2 * _GAP, width)
    left = (width - part.shape[1]) // 2
    line[_GAP:-_GAP, left : left + part.shape[1]] = part
    return line
