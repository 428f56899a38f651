"""Percentiles of pictures by counting or sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_COUNTED = 2**24  # OpenCV counts in float32


def percentiles(
    values: NDArray[Any], shares: Sequence[float], axis: int | None = None, where: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Percentiles of finite numbers, to the last bit as `numpy.percentile` computes them.

    They are interpolated linearly (R. Hyndman and Y. Fan, Sample Quantiles in Statistical Packages, 1996, type 7).
    NumPy selects values for them. Sorting uses vector instructions and takes an eighth of the time for a slice.
    The bytes of a slice are counted instead, in a tenth of that.

    Args:
        values: Any shape, not empty.
        shares: Percentages, 0 to 100.
        axis: The axis along which to sort, or none for all values.
        where: The values that count, a mask of the same shape, for all values only.

    Returns:
        ``(len(shares), ...)``: one percentile for each share, along the first axis.
    """
    if axis is None and values.dtype == np.uint8 and values.ndim == 2 and values.size < _MOST_COUNTED:
        mask = None if where is None else np.ascontiguousarray(where).view(np.uint8)
        counts = cv2.calcHist([np.ascontiguousarray(values)], [0], mask, [256], [0, 256])
        ends = np.cumsum(counts, dtype=np.int64)
        return _interpolated(shares, int(ends[-1]) - 1, lambda k: np.float64(np.searchsorted(ends, k, side="right")))
    if axis is None:
        values, axis = (values if where is None else values[where]).reshape(-1), 0
    ordered = np.sort(values, axis=axis)
    if ordered.dtype.kind != "f":  # the difference of integers may be too large for their type
        return _interpolated(shares, ordered.shape[axis] - 1, lambda k: ordered.take(k, axis).astype(np.float64))
    return _interpolated(shares, ordered.shape[axis] - 1, lambda k: ordered.take(k, axis))


def _interpolated(shares: Sequence[float], last: int, ordered: Callable[[int], Any]) -> NDArray[np.float64]:
    """Percentiles of values by their places in order, the `last` of which is that of the largest."""
    results = []
    for share in shares:
        place = last * (np.float64(share) / 100)
        below = int(np.floor(place))
        part = np.float64(place - below)
        low, high = ordered(below), ordered(min(below + 1, last))
        results.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
    return np.array(results, np.float64)
