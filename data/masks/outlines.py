"""Masks as polygons and back, for formats that keep outlines.

Outlines run along the borders of pixels, not through their centers: pixel ``(row, column)`` is the square from
``(x, y) = (column, row)`` to ``(column + 1, row + 1)``. So no polygon is thinner than its pixels, a single pixel has an
area, and a mask comes back exactly. `cv2.findContours`, which joins pixel centers, does neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]  # (n, 2): x and y of the corners in order; the last is joined to the first
_Point = tuple[int, int]


@dataclass(frozen=True)
class Outline:
    """One connected part of a mask.

    Attributes:
        exterior: Its outer border, with positive area in the formula of Gauss.
        holes: The borders of its holes, with negative area.
    """

    exterior: Ring
    holes: tuple[Ring, ...] = ()

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The outer border and those of the holes."""
        return (self.exterior, *self.holes)


def outlines_of(mask_hw: NDArray[np.generic]) -> list[Outline]:
    """The outlines of a mask's parts. Pixels that share only a corner are two parts.

    Each outline is a valid polygon of OGC's Simple Features: no ring touches itself, and rings touch in points only.
    """
    import cv2

    count, parts, boxes, _ = cv2.connectedComponentsWithStats((mask_hw != 0).astype(np.uint8), connectivity=4)
    outlines = []
    for part in range(1, count):
        x, y, width, height = (int(n) for n in boxes[part][:4])
        rings = [ring + np.array((x, y)) for ring in _rings(parts[y : y + height, x : x + width] == part)]
        exterior = next(ring for ring in rings if _area(ring) > 0)
        outlines.append(Outline(exterior, tuple(ring for ring in rings if ring is not exterior)))
    return outlines


def single_ring(outline: Outline) -> Ring:
    """An outline as one ring, for formats without holes: a cut of no width leads from the border to each hole."""
    ring = [_as_point(point) for point in outline.exterior]
    for hole in sorted(outline.holes, key=lambda hole: tuple(hole[_first(hole)])):
        start = _first(hole)
        inner = [_as_point(point) for point in np.roll(hole, -start, axis=0)]
        place, landing = _left_of(ring, inner[0])
        ring[place + 1 : place + 1] = [landing, *inner, inner[0], landing]
    return np.array(ring, float)


def fill(rings: Iterable[NDArray[np.generic]], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask, 0 and 1, of the pixels whose centers lie inside an odd number of rings."""
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.uint8)
    centers = np.arange(rows) + 0.5
    for ring in rings:
        points = np.asarray(ring, float)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crossed = np.flatnonzero((centers >= min(y0, y1)) & (centers < max(y0, y1)))
            if len(crossed):
                x = x0 + (centers[crossed] - y0) * (x1 - x0) / (y1 - y0)
                crossings[crossed, np.clip(np.ceil(x - 0.5), 0, columns).astype(int)] ^= 1
    return np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]


def _rings(part: NDArray[np.bool_]) -> list[Ring]:
    """The rings around a connected part, which lies to the right of each step (as seen with y down)."""
    padded = np.pad(part, 1)
    inside = padded[1:-1, 1:-1]
    # For each side of a pixel: the pixel beyond it, and start and end of the step along it, from the pixel's corner.
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    steps: dict[_Point, list[_Point]] = defaultdict(list)
    for beyond, start, end in sides:
        for row, column in np.argwhere(inside & ~beyond).tolist():
            steps[column + start[0], row + start[1]].append((column + end[0], row + end[1]))
    rings = []
    while steps:
        start = here = next(iter(steps))
        points: list[_Point] = []
        while not points or here != start:
            ends = steps[here]
            # Where two pixels of the part share only this corner, the ring goes on to the other pixel (a turn to the
            # left): what they enclose is a hole, and the ring does not touch itself.
            ahead = max(ends, key=lambda end: _turn(points[-1], here, end)) if points else ends[0]
            ends.remove(ahead)
            if not ends:
                del steps[here]
            points.append(here)
            here = ahead
        corners = zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True)
        rings.append(np.array([point for before, point, after in corners if _turn(before, point, after)], float))
    return rings


def _turn(before: _Point, here: _Point, after: _Point) -> int:
    """Positive for a turn to the left (as seen with y down), 0 straight on."""
    return (here[1] - before[1]) * (after[0] - here[0]) - (here[0] - before[0]) * (after[1] - here[1])


def _area(ring: Ring) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _first(ring: Ring) -> int:
    """The corner farthest to the left, and of these the uppermost."""
    return int(np.lexsort((ring[:, 1], ring[:, 0]))[0])


def _left_of(ring: list[_Point], point: _Point) -> tuple[int, _Point]:
    """The nearest upright side to the left of a point: the index of its first corner, and the point at that height."""
    x, y = point
    sides = zip(ring, ring[1:] + ring[:1], strict=True)
    met = [
        (a[0], index)
        for index, (a, b) in enumerate(sides)
        if a[0] == b[0] <= x and min(a[1], b[1]) <= y <= max(a[1], b[1])
    ]
    nearest, index = max(met)
    return index, (nearest, y)


def _as_point(corner: NDArray[np.float64]) -> _Point:
    return int(corner[0]), int(corner[1])
