"""What boxes teach, and boxes around masks."""

from __future__ import annotations

import numpy as np

from tests.scans.phantoms import small_slice
from tumorlens.data.masks.boxes import LESION, UNKNOWN, box_truth, boxes_of, fill_boxes


def test_a_box_teaches_its_core_and_its_surroundings():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:40] = 1
    truth = box_truth(mask)
    assert truth[30, 30] == LESION
    assert np.isclose((truth == LESION).sum(), 0.36 * np.pi / 4 * 40 * 20, rtol=0.05)
    assert set(truth[mask == 0]) == {0}
    assert truth[10, 20] == truth[49, 39] == 0, "lesions are round"
    assert truth[10, 30] == truth[30, 20] == truth[49, 30] == truth[30, 39] == UNKNOWN, "the lesion touches the sides"
    np.testing.assert_array_equal(box_truth(mask[:, ::-1].copy()), truth[:, ::-1])
    mask[10, 20] = mask[49, 39] = 0
    assert (box_truth(mask) == LESION).sum() == (truth == LESION).sum(), "resampling takes corners off"


def test_where_boxes_overlap_only_the_outside_is_certain():
    mask = np.zeros((60, 60), np.uint8)
    mask[5:30, 5:30] = mask[20:50, 20:50] = 1
    np.testing.assert_array_equal(box_truth(mask), mask * np.uint8(UNKNOWN))
    mask[55:59, 2:8] = 1  # a box of its own
    assert (box_truth(mask)[55:59, 2:8] == LESION).any()


def test_the_truth_of_a_phantom_never_contradicts_its_box():
    phantom = small_slice(3)
    truth = box_truth(fill_boxes(phantom.mask))
    assert phantom.mask[truth == LESION].mean() > 0.95
    assert phantom.mask[truth == 0].mean() < 0.01
    assert not box_truth(np.zeros((9, 9), np.uint8)).any()


def test_boxes_around_the_parts_of_a_mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 3] = mask[3, 4] = mask[10:12, 20] = 1
    assert sorted(boxes_of(mask).tolist()) == [[3, 2, 5, 4], [20, 10, 21, 12]]
    assert fill_boxes(mask).sum() == 4 + 2
    assert boxes_of(mask * 0).shape == (0, 4)
