"""The montage: a volume's tumor slices at true proportions, and three planes through its largest lesion."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.scan import PLANES, Scan
from tumorlens.pipeline.measurements.lesions import slice_areas_px
from tumorlens.pipeline.outputs.overlay import (
    BORDERS,
    caption,
    display_limits,
    draw_slice,
    mark_sides,
    marked_mask,
    write_text,
)
from tumorlens.pipeline.result import Result

_MOST_TUMOR_SLICES = 20
_MOST_HEALTHY_SLICES = 12
_TILE = 256  # pixels along the longer side of a tile
_LEAST_SIDE = 64  # pixels along the shorter side of a tile: the slice number needs room
_GAP = 4
_MARGIN = 22  # around a plane, for the letters of its directions
_PLANES_WIDTH = 1024  # least width of the three planes together
_TALLEST_PLANE = 640
_TICK = 14
_SMALL, _MEDIUM, _LARGE = 0.45, 0.5, 0.8  # font scales
_GROUND = 16  # dark gray, so that the black border of a slice stays visible
_TEXT = (235, 235, 235)
_MARK = (90, 220, 255)
Picture = NDArray[np.uint8]


def draw_montage(result: Result) -> Picture:
    """RGB picture ``(rows, columns, 3)`` uint8 of a volume, at most 2400 x 2400 pixels.

    The upper part shows the slices with tumor (see `shown_slices`). Where the orientation is known, the lower part
    shows the axial, coronal and sagittal plane through the center of the largest lesion. Ticks at the borders point to
    the center. All parts share one range of gray levels.

    Raises:
        InputError: The scan has one slice; `pipeline.outputs.overlay.draw_overlay` shows all of it.
    """
    scan = result.scan
    if scan.n_slices < 2:
        raise InputError("a montage shows a volume of several slices")
    step = max(1, round((scan.voxels.size / 1_000_000) ** (1 / 3)))
    limits = display_limits(scan.voxels[::step, ::step, ::step])
    parts = [_grid(result, limits)]
    if result.lesions and scan.affine is not None and scan.spacing_mm is not None:
        parts.append(_planes(result, limits, max(_PLANES_WIDTH, parts[0].shape[1])))
    width = max(part.shape[1] for part in parts)
    return np.concatenate([_title(result, width), *(_centered(part, width) for part in parts)])


def shown_slices(result: Result) -> list[int]:
    """The slices that the montage shows, in order.

    These are the slices with tumor. Of more than 20, the montage shows 20 that are spread evenly and include the first,
    the last and the one with the largest area. Without tumor it shows up to 12 of the judged slices.
    """
    areas = slice_areas_px(result.mask, result.scan)
    tumor = np.flatnonzero(areas)
    if not len(tumor):
        return _spread(np.array([s["index"] for s in result.slices]), _MOST_HEALTHY_SLICES)
    chosen = _spread(tumor, _MOST_TUMOR_SLICES)
    largest = int(areas.argmax())
    if largest not in chosen:  # it replaces its nearest neighbor, but never the first or the last
        inner = chosen[1:-1]
        chosen[1 + int(np.abs(np.array(inner) - largest).argmin())] = largest
    return chosen


def _spread(indices: NDArray[np.int_], most: int) -> list[int]:
    if len(indices) <= most:
        return [int(k) for k in indices]
    return [int(indices[round(place)]) for place in np.linspace(0, len(indices) - 1, most)]


def _grid(result: Result, limits: tuple[float, float]) -> Picture:
    shown = shown_slices(result)
    columns = min(len(shown), 5 if len(shown) > 12 else 4)
    mask = marked_mask(result)
    tiles = [_slice_picture(result.scan, mask, k, limits) for k in shown]
    height, width = tiles[0].shape[:2]
    rows = -(-len(shown) // columns)
    grid = _ground(rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for place, (k, tile) in enumerate(zip(shown, tiles, strict=True)):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = write_text(mark_sides(tile, result.scan), f"slice {k}", _SMALL)
    return grid


def _planes(result: Result, limits: tuple[float, float], width: int) -> Picture:
    """Three planes through the center of the largest lesion, side by side at one scale."""
    center = result.lesions[0].centroid_index
    views = [scan for scan in (_cut(result.scan, name) for name in PLANES.values()) if scan is not None]
    sizes = [_size_mm(scan) for scan in views]
    room = width - len(views) * (2 * _MARGIN + 1)  # the 1 is for rounding
    scale = min(room / sum(w for _, w in sizes), _TALLEST_PLANE / max(h for h, _ in sizes))
    mask = marked_mask(result)
    panels = [_panel(scan, mask, center, limits, scale) for scan in views]
    row = _ground(max(panel.shape[0] for panel in panels), width)
    spare = (width - sum(panel.shape[1] for panel in panels)) // (len(panels) + 1)
    left = spare
    for panel in panels:
        top = (len(row) - len(panel)) // 2
        row[top : top + len(panel), left : left + panel.shape[1]] = panel
        left += panel.shape[1] + spare
    return row


def _cut(scan: Scan, name: str) -> Scan | None:
    """The scan in a plane, or None where the volume is only one voxel thick in it."""
    try:
        return scan.with_plane(name)
    except InputError:
        return None


def _panel(
    scan: Scan, mask: Picture, center: tuple[float, ...], limits: tuple[float, float], px_per_mm: float
) -> Picture:
    """One plane through the center, with letters around it and ticks that point to the center."""
    index = min(max(round(center[scan.slice_axis]), 0), scan.n_slices - 1)
    height, width = (max(1, round(mm * px_per_mm)) for mm in _size_mm(scan))
    picture = draw_slice(scan, mask, index, limits, (height, width))
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
    panel = _ground(height + 2 * _MARGIN, width + 2 * _MARGIN)
    panel[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = picture
    half = _MARGIN // 2
    _letters(panel, f"{scan.plane} {index}", None, half)
    left, right, top, bottom = BORDERS[str(scan.plane)]
    _letters(panel, left, half, _MARGIN + height // 2)
    _letters(panel, right, panel.shape[1] - half, _MARGIN + height // 2)
    _letters(panel, top, _MARGIN + width // 2, half)
    _letters(panel, bottom, _MARGIN + width // 2, panel.shape[0] - half)
    return panel


def _slice_picture(scan: Scan, mask: Picture, index: int, limits: tuple[float, float]) -> Picture:
    rows, columns = scan.slice(index).shape[:2]
    height, width = rows * scan.pixel_aspect, float(columns)
    scale = _TILE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    tile = _ground(max(_LEAST_SIDE, size[0]), max(_LEAST_SIDE, size[1]))
    top, left = (len(tile) - size[0]) // 2, (tile.shape[1] - size[1]) // 2
    tile[top : top + size[0], left : left + size[1]] = draw_slice(scan, mask, index, limits, size)
    return tile


def _size_mm(scan: Scan) -> tuple[float, float]:
    """Height and width of a slice in mm, or in pixels where their size is not known."""
    rows, columns = scan.slice(0).shape[:2]
    spacing = scan.slice_spacing_mm or (1.0, 1.0)
    return rows * spacing[0], columns * spacing[1]


def _title(result: Result, width: int) -> Picture:
    return write_text(_ground(36, width), caption(result), _LARGE)


def _centered(part: Picture, width: int) -> Picture:
    line = _ground(len(part) + 2 * _GAP, width)
    left = (width - part.shape[1]) // 2
    line[_GAP:-_GAP, left : left + part.shape[1]] = part
    return line


def _ground(height: int, width: int) -> Picture:
    return np.full((height, width, 3), _GROUND, np.uint8)


def _letters(picture: Picture, text: str, x: int | None, y: int) -> None:
    """Write text into the margin, centered on `x`, or from the left margin on where `x` is None."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), _ = cv2.getTextSize(text, font, _MEDIUM, 1)
    left = _MARGIN if x is None else x - width // 2
    cv2.putText(picture, text, (left, y + height // 2), font, _MEDIUM, _TEXT, 1, cv2.LINE_AA)
