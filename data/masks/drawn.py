"""Checks of drawings that come from other programs: their errors, their sizes and their polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.masks.outlines import Ring


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn every error that the content of a file causes into an `InputError` of one sentence that names the file.

    Args:
        path: The file.
        what: What it should be, with its article: ``"a COCO file"``.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        raise InputError(f"{path}: this is not {what}, or it is damaged") from None


def check_size(size_hw: Iterable[Any], shape_hw: tuple[int, int]) -> None:
    """Check the size that a file gives before any memory is taken for it.

    Raises:
        InputError: It is not that of the picture.
    """
    size = tuple(size_hw)
    if size != shape_hw:
        known = len(size) == 2 and all(isinstance(n, int | float) for n in size)
        shape = f"shape ({size[0]:.10g}, {size[1]:.10g})" if known else "no size"
        raise InputError(f"the mask has {shape}, its image {shape_hw}")


def ring_of(points: Any, shape_hw: tuple[int, int]) -> Ring:
    """The corners of a polygon, ``(n, 2)``: x and y.

    Raises:
        InputError: It has no area, lies outside of the picture, or reaches out of it by more than the picture's size.
    """
    ring: Ring = np.array(points, float)
    if ring.size == 0:
        raise InputError("a shape has no points")
    if ring.ndim != 2 or ring.shape[1] < 2:
        raise ValueError("points have x and y")
    ring = ring[:, :2]
    size = np.array(shape_hw[::-1], float)
    if not np.isfinite(ring).all() or (ring < -size).any() or (ring > 2 * size).any():
        raise InputError("a shape has corners far outside of its picture")
    if np.linalg.matrix_rank(ring - ring[0]) < 2:
        raise InputError("a shape has no area; a polygon needs three corners that are not in line")
    if (ring.max(axis=0) <= 0).any() or (ring.min(axis=0) >= size).any():
        raise InputError("a shape lies outside of its picture")
    return ring


def check_inside(corner: NDArray[np.float64], part_hw: tuple[int, int], shape_hw: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a mask within a picture, as whole numbers.

    Raises:
        InputError: The mask reaches out of the picture.
    """
    if not np.isfinite(corner).all() or (corner < 0).any() or (corner + part_hw[::-1] > shape_hw[::-1]).any():
        raise InputError("a mask reaches out of its picture")
    left, top = (int(n) for n in corner)
    return left, top
