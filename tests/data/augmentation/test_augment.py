"""Augmentation: the same for the same seed, mask and picture together, never upside down."""

from __future__ import annotations

import cv2
import numpy as np

from tumorlens.data.augmentation.augment import Augment, _cut_field, _without_rim
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
    _, mask = prepared()
    augment = Augment()
    for seed in range(60):
        moved, moved_mask = augment(mask * 255, mask, seed)
        assert set(np.unique(moved_mask)) <= {0, 1}
        assert 0.5 * mask.sum() < moved_mask.sum() < 1.8 * mask.sum()
        middle = cv2.erode(moved_mask, np.ones((5, 5), np.uint8)) > 0
        beside = (cv2.dilate(moved_mask, np.ones((15, 15), np.uint8)) > 0) & (moved_mask == 0)
        assert np.median(moved[middle]) > np.median(moved[beside])  # the lesion is where its mask went


def test_sequences_differ_but_air_stays_air():
    image, _ = prepared()
    white, gray = image > 150, (image > 60) & (image < 110)
    tables = [Augment()._gray_levels(np.random.default_rng(seed)) for seed in range(200)]
    assert max(int(table[0]) for table in tables) == 0
    turned = [np.median(table[image[white]]) < np.median(table[image[gray]]) for table in tables]
    assert 5 < sum(turned) < 40  # what is dark in one sequence is bright in another, in a few


def test_a_lesion_survives_every_cut():
    image, mask = prepared()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for cut in (_without_rim, _cut_field):
            np.testing.assert_array_equal(cut(image, mask, rng)[mask > 0], image[mask > 0])


def test_left_and_right_are_swapped_up_and_down_are_not():
    marker = np.zeros((224, 224), np.uint8)
    marker[20:60, 20:60] = 255
    marker[100:200, 60:160] = 60
    sides, heights = [], []
    for seed in range(60):
        _, moved = Augment()(marker, (marker == 255).astype(np.uint8), seed)
        rows, columns = np.nonzero(moved)
        sides.append(columns.mean() < 112)
        heights.append(rows.mean() < 112)
    assert 15 < sum(sides) < 45
    assert all(heights)


def test_less_strength_changes_the_appearance_of_fewer_slices():
    levels = [
        np.mean([Augment(s)._gray_levels(np.random.default_rng(k))[128] != 128 for k in range(100)])
        for s in (0.0, 0.5, 1.0)
    ]
    assert levels[0] == 0
    assert 0 < levels[1] < levels[2] - 0.1
