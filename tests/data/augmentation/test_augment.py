"""Augmentation: the same for the same seed, mask and picture together, never upside down."""

from __future__ import annotations

import numpy as np

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


def prepared():
    phantom = phantom_slice(3, "meningioma")
    p = Preprocess(224)(phantom.image)
    return p.image, Preprocess(224).mask_to_input(phantom.mask, p.placement)


def test_the_seed_decides_everything():
    image, mask = prepared()
    augment = Augment()
    first = augment(image, mask, 11)
    augment(image, mask, 12)
    again = augment(image, mask, 11)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != augment(image, mask, 12)[0]).any()


def test_mask_and_picture_move_together():
    image, mask = prepared()
    augment = Augment()
    brighter = 0
    for seed in range(40):
        moved, moved_mask = augment(image, mask, seed)
        assert set(np.unique(moved_mask)) <= {0, 1}
        assert 0.5 * mask.sum() < moved_mask.sum() < 1.8 * mask.sum()
        brighter += moved[moved_mask == 1].mean() > moved[(moved_mask == 0) & (moved > 20)].mean()
    assert brighter == 40  # the lesion is the brightest part wherever it went


def test_left_and_right_are_swapped_up_and_down_are_not():
    marker = np.zeros((224, 224), np.uint8)
    marker[20:60, 20:60] = 255
    marker[100:200, 60:160] = 60
    sides, heights = [], []
    for seed in range(60):
        moved, _ = Augment()(marker, np.zeros_like(marker), seed)
        rows, columns = np.nonzero(moved > 0.8 * moved.max())
        sides.append(columns.mean() < 112)
        heights.append(rows.mean() < 112)
    assert 15 < sum(sides) < 45
    assert all(heights)


def test_less_strength_changes_the_appearance_of_fewer_slices():
    image, mask = prepared()
    changed = [
        np.mean([Augment(s)(image, mask, k)[0].max() != image.max() for k in range(60)]) for s in (0.0, 0.5, 1.0)
    ]
    assert changed[0] < 0.05
    assert changed[0] < changed[1] < changed[2]
