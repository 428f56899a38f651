"""The longest diameter of a mask, and the longest chord at a right angle to it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# Lengths that differ by a smaller share count as equal: rounding must not choose between the diagonals of a square.
_TIE = 1e-6


@dataclass(frozen=True)
class Diameters:
    """The two diameters of the bidimensional measurement, in the unit of the spacing.

    Attributes:
        longest: Largest distance between two pixel centers, plus one pixel (maximum Feret diameter).
        perpendicular: Longest chord of the convex hull at a right angle to it, plus one pixel.
    """

    longest: float
    perpendicular: float


def diameters(mask_hw: NDArray[np.bool_], spacing: tuple[float, float], along: bool = False) -> Diameters:
    """The longest diameter and the longest chord perpendicular to it.

    Both are measured between pixel centers and extended by one pixel. Of several diameters of equal length, the one
    with the longest perpendicular counts.

    Args:
        mask_hw: A non-empty mask.
        spacing: Size of a pixel along the rows' and the columns' axis, in the unit of the result.
        along: Extend by the pixel's size along each diameter instead of its mean size. Use it for pixels that are far
            from square, as in a plane cut across thick slices: the mean would lengthen diameters along the short side.
    """
    size = np.array(spacing, np.float64)
    hull = _hull(mask_hw) * size
    a, b = np.triu_indices(len(hull), 1)
    if not len(a):
        return Diameters(float(size.mean()), float(size.mean()))
    vectors = hull[b] - hull[a]
    distances = np.linalg.norm(vectors, axis=1)
    directions = vectors / distances[:, None]
    lengths = distances + _pixel(directions, size, along)
    longest = float(lengths.max())
    best = 0.0
    for direction in directions[lengths >= longest * (1 - _TIE)]:
        across = np.array([-direction[1], direction[0]])
        best = max(best, longest_chord(hull, across) + float(_pixel(across, size, along)))
    return Diameters(longest, best)


def longest_chord(polygon: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
    """Length of the longest chord of a convex polygon in a direction.

    Between two neighboring vertices the length of the chord changes linearly as the line moves sideways. One of the
    longest chords therefore begins at a vertex, and trying all vertices gives the exact result.

    Args:
        polygon: ``(n, 2)`` vertices in order: two of them are a line, one is a point.
        direction: ``(2,)`` unit vector.
    """
    along = polygon @ direction
    sideways = polygon @ np.array([-direction[1], direction[0]])
    next_along, next_sideways = np.roll(along, -1), np.roll(sideways, -1)
    at = sideways[:, None]
    crossed = (np.minimum(sideways, next_sideways) <= at) & (at <= np.maximum(sideways, next_sideways))
    step = next_sideways - sideways
    share = np.divide(at - sideways, step, out=np.zeros(crossed.shape), where=step != 0)
    hits = along + share * (next_along - along)
    # A vertex lies on its own line. The neighbors of an edge that runs along the line find both of its ends.
    highest = np.where(crossed, hits, -np.inf).max(axis=1, initial=-np.inf)
    lowest = np.where(crossed, hits, np.inf).min(axis=1, initial=np.inf)
    return float((np.maximum(highest, along) - np.minimum(lowest, along)).max())


def _hull(mask_hw: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Vertices of the convex hull of the pixel centers, ``(n, 2)`` rows and columns, in order."""
    rows = np.flatnonzero(mask_hw.any(axis=1))
    lines = mask_hw[rows]
    first, last = lines.argmax(axis=1), mask_hw.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    # The other pixels of a row lie between its first and its last one.
    ends = np.concatenate([np.column_stack([rows, first]), np.column_stack([rows, last])])
    return cv2.convexHull(ends.astype(np.int32).reshape(-1, 1, 2)).reshape(-1, 2)


def _pixel(directions: NDArray[np.float64], size: NDArray[np.float64], along: bool) -> NDArray[np.float64]:
    """Length that one pixel adds to a distance between centers, for unit vectors ``(..., 2)``."""
    if not along:
        return np.full(directions.shape[:-1], size.mean())
    return np.linalg.norm(directions * size, axis=-1)
