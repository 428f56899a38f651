"""Percentiles by sorting are NumPy's, to the last bit: prepared slices must not change by a gray level."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.preprocessing.percentiles import percentiles


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_same_as_numpy(dtype, axis):
    rng = np.random.default_rng(0)
    for shape in ((256, 250), (3, 7), (1, 1), (17, 1)):
        for values in (rng.integers(0, 120, shape), 90 * rng.random(shape) ** 3, np.zeros(shape)):
            for shares in ((0.5, 99.5), (3, 97), (0, 50, 100), (1.0, 99.5)):
                expected = np.percentile(values.astype(dtype), shares, axis=axis)
                np.testing.assert_array_equal(percentiles(values.astype(dtype), shares, axis), expected)
