"""Agreement of masks with true boxes."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.segmentation.evaluation.boxes import box_report, box_scores


def grid(*boxes):
    mask = np.zeros((40, 40), np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def test_the_box_around_a_mask_is_compared():
    ring = grid((10, 10, 20, 30))
    ring[12:28, 12:18] = 0
    scores = box_scores(ring, grid((10, 10, 20, 30)))
    assert (scores.iou, scores.boxes, scores.hit, scores.false_boxes, scores.missed) == (1, 1, 1, 0, False)


def test_hits_and_false_boxes():
    truth = grid((0, 0, 10, 10), (20, 20, 30, 30))
    guess = grid((0, 0, 10, 6), (22, 22, 25, 25), (35, 0, 39, 4))
    scores = box_scores(guess, truth)
    assert (scores.boxes, scores.hit, scores.false_boxes) == (2, 1, 1)
    assert scores.iou == pytest.approx((60 + 9) / (200 + 16))
    missed = box_scores(guess * 0, truth)
    assert (missed.iou, missed.hit, missed.false_boxes, missed.missed) == (0, 0, 0, True)


def test_a_report_counts_boxes_and_patients():
    truth = grid((0, 0, 10, 10), (20, 20, 30, 30))
    scores = [box_scores(truth, truth), box_scores(truth * 0, grid((5, 5, 9, 9)))]
    report = box_report(scores, ["a", ""])
    assert [report[name] for name in ("n", "n_patients", "n_boxes")] == [2, 2, 3]
    assert report["iou"]["value"] == report["missed"]["value"] == 0.5
    assert report["hit_rate"]["value"] == pytest.approx(2 / 3)
    assert report["false_boxes"]["value"] == 0
