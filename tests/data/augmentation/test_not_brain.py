"""Drawn pictures that are not brains: of many kinds, and the same for the same seed."""

from __future__ import annotations

import numpy as np

from tumorlens.data.augmentation.not_brain import not_brains
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


def test_pictures_that_are_drawn_are_many_kinds_and_repeatable():
    brains = [Preprocess(96)(phantom_slice(k, "glioma").image).image for k in range(3)]
    first, again = (list(not_brains(brains, 28, seed=5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({p.tobytes() for p in first}) == 28
    assert all(p.dtype == np.uint8 and p.ndim == 2 for p in first)
    assert len(list(not_brains([], 20))) == 20
