"""Drawn pictures that are not brains: of many kinds, and the same for the same seed."""

from __future__ import annotations

import numpy as np

from tumorlens.data.augmentation.not_brain import in_outline, not_brains
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


def test_pictures_that_are_drawn_are_many_kinds_and_repeatable():
    brains = [Preprocess(96)(phantom_slice(k, "glioma").image).image for k in range(3)]
    first, again = (list(not_brains(brains, 32, seed=5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({p.tobytes() for p in first}) == 32
    assert all(p.dtype == np.uint8 and p.ndim == 2 for p in first)
    assert len(list(not_brains([], 20))) == 20


def test_a_picture_in_a_head_outline():
    picture = np.full((40, 90), 200, np.uint8)
    cut, again, other = (in_outline(picture, seed) for seed in (1, 1, 2))
    assert np.array_equal(cut, again)
    assert not np.array_equal(cut, other)
    assert set(np.unique(cut)) == {0, 200}
    assert 0.15 < (cut > 0).mean() < 0.75
