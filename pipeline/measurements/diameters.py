"""Diameters of a mask's outline: the longest one, and the longest chord that crosses it at a right angle."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_TIE = (
    1e-6  # lengths that differ by less of themselves are equal: rounding must not choose between a square's diagonals
)


@dataclass(frozen=True)
class Diameters:
    """The two diameters of the bidimensional measurement, in the unit of the spacing that was given.

    Attributes:
        longest: Largest distance between two pixel centres, plus one pixel.
        perpendicular: Longest chord of the convex hull at a right angle to it, plus one pixel.
    """

    longest: float
    perpendicular: float


def longest_diameter(mask_hw: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Largest distance between two pixel centres of a mask, plus the width of one pixel (maximum Feret diameter).

    Args:
        mask_hw: A non-empty mask.
        spacing: Size of a pixel along the rows' and the columns' axis, in the unit of the result.
    """
    return diameters(mask_hw, spacing).longest


def diameters(mask_hw: NDArray[np.bool_], spacing: tuple[float, float], along: bool = False) -> Diameters:
    """Longest diameter and the longest chord perpendicular to it.

    Both are measured between pixel centres and made longer by one pixel. Where several diameters are equally long, the
    one with the longest perpendicular counts.

    Args:
        mask_hw: A non-empty mask.
        spacing: Size of a pixel along the rows' and the columns' axis, in the unit of the result.
        along: Add the pixel's size along each diameter, and not its mean size: only so do pixels that are far from
            square, as in a plane cut across thick slices, not lengthen all that runs along their short side.
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

    Between two neighbouring vertices the chord's length changes linearly as the line moves sideways, so that one of the
    longest chords begins at a vertex: it is enough to look there, and the result is exact.

    Args:
        polygon: ``(n, 2)`` vertices in order; two for a line, one for a point.
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
    # A vertex lies on its own line. An edge along the line has both of its ends there, and its neighbours find them.
    highest = np.where(crossed, hits, -np.inf).max(axis=1, initial=-np.inf)
    lowest = np.where(crossed, hits, np.inf).min(axis=1, initial=np.inf)
    return float((np.maximum(highest, along) - np.minimum(lowest, along)).max())


def _hull(mask_hw: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Vertices of the convex hull of the pixel centres, ``(n, 2)`` rows and columns, in order."""
    rows = np.flatnonzero(mask_hw.any(axis=1))
    lines = mask_hw[rows]
    first, last = lines.argmax(axis=1), mask_hw.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([rows, first]), np.column_stack([rows, last])])  # a row's others lie between
    return cv2.convexHull(ends.astype(np.int32).reshape(-1, 1, 2)).reshape(-1, 2)


def _pixel(directions: NDArray[np.float64], size: NDArray[np.float64], along: bool) -> NDArray[np.float64]:
    """What one pixel adds to a distance between centres, for unit vectors ``(..., 2)``."""
    if not along:
        return np.full(directions.shape[:-1], size.mean())
    return np.linalg.norm(directions * size, axis=-1)
