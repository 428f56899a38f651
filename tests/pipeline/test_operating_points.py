"""What a training run measures and chooses on its validation slices: quick metrics, thresholds, smallest lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorlens.classification.evaluation.metrics import classification_metrics, gate_metrics
from tumorlens.classification.trust.operating_point import (
    choose_threshold,
    choose_volume_threshold,
    enough,
    threshold_of_each,
)
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation.evaluation.metrics import segmentation_metrics
from tumorlens.segmentation.operating_point import choose_operating_point, score_points
from tumorlens.segmentation.postprocess import clean_mask


def fake_set(labels, masks=None, patients=None):
    patients = patients or [f"p{i}" for i in range(len(labels))]
    samples = [Sample(Path(f"{i}.png"), CLASSES[c], p) for i, (c, p) in enumerate(zip(labels, patients, strict=True))]
    masks = np.zeros((len(labels), 8, 8), np.uint8) if masks is None else masks
    return PreparedSet(samples, np.zeros_like(masks), masks, np.array(labels))


def test_metrics_per_slice_and_per_patient():
    part = fake_set([1, 1, 1, 2], patients=["a", "a", "a", "b"])
    p = np.array([[0, 0.9, 0.1, 0], [0, 0.4, 0.6, 0], [0, 0.8, 0.2, 0], [0, 0.1, 0.9, 0]], np.float32)
    metrics = classification_metrics(part, p)
    assert metrics["slice"]["accuracy"] == 0.75
    assert metrics["patient"]["accuracy"] == 1.0
    assert metrics["slice"]["recall"] == pytest.approx({"glioma": 2 / 3, "meningioma": 1.0})


def test_tumor_free_slices_do_not_make_a_patient_healthy():
    part = fake_set([0, 0, 0, 1], patients=["a"] * 4)
    p = np.array([[0.1, 0.9, 0, 0]] * 4, np.float32)
    assert classification_metrics(part, p)["patient"]["accuracy"] == 1


def tumor_probability(*told):
    """Probabilities ``(n, 4)`` of runs of slices with one tumor probability each, ``(number, probability)``."""
    tumor = np.concatenate([np.full(n, p) for n, p in told])
    return np.stack([1 - tumor, tumor, 0 * tumor, 0 * tumor], 1).astype(np.float32)


def test_threshold_lets_nearly_all_tumors_through():
    labels = np.array([0] * 100 + [1] * 100)
    p = tumor_probability((100, 0.5), (2, 0.55), (98, 0.75))
    threshold = choose_threshold(labels, p)
    assert threshold == 0.55  # no healthy slice is lost by letting the last two through
    assert gate_metrics(labels, p, threshold) == {"sensitivity": 1, "specificity": 1, "accuracy": 1}
    p = tumor_probability((96, 0.4), (4, 0.6), (2, 0.5), (98, 0.75))
    assert choose_threshold(labels, p) == 0.75  # those two would cost four
    p = tumor_probability((60, 0.4), (40, 0.6), (3, 0.5), (97, 0.75))
    assert choose_threshold(labels, p) == 0.5  # but a third tumor may not be missed, whatever it costs
    assert choose_threshold(labels, tumor_probability((200, 0.01))) == 0.3
    assert choose_threshold(labels, tumor_probability((100, 0.0), (100, 1.0))) == 0.95


def test_volumes_have_a_threshold_of_their_own_where_enough_slices_tell():
    labels = np.array([0] * 100 + [1] * 30)
    p = tumor_probability((95, 0.395), (5, 0.8), (5, 0.5), (25, 0.85))
    assert choose_volume_threshold(labels, p) == 0.4  # one in twenty is let through, and no tumor lost for it
    p = tumor_probability((94, 0.295), (6, 0.795), (5, 0.5), (25, 0.85))
    assert choose_volume_threshold(labels, p) == 0.8  # six are too many, whatever tumors that costs
    assert choose_volume_threshold(labels, tumor_probability((130, 1.0))) == 0.95
    assert choose_volume_threshold(labels[:110], p[:110]) is None
    assert choose_volume_threshold(labels[:0], p[:0]) is None
    assert enough(labels)
    assert not enough(labels[:110])


def test_slices_of_volumes_and_pictures_are_judged_by_their_own_thresholds():
    labels = np.array([0, 1, 0, 1])
    p = tumor_probability((4, 0.6))
    cut = np.array([False, False, True, True])
    thresholds = threshold_of_each(cut, 0.5, 0.7)
    assert gate_metrics(labels, p, thresholds) == {"sensitivity": 0.5, "specificity": 0.5, "accuracy": 0.5}
    assert gate_metrics(labels, p, threshold_of_each(cut, 0.5, None))["sensitivity"] == 1


def test_segmentation_metrics_count_false_masks_and_misses():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:2, :4] = 1
    guess = truth.copy()
    guess[1] = 0
    guess[3, 0, 0] = 1
    metrics = segmentation_metrics(fake_set([1, 1, 0, 0], truth), guess)
    assert (metrics["missed"], metrics["false_masks"]) == (0.5, 0.5)
    assert metrics["dice_all"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert metrics["dice_tumor"] == 0.5


def test_specks_are_dropped_and_the_operating_point_finds_them():
    truth = np.zeros((3, 32, 32), np.uint8)
    truth[:, 5:15, 5:15] = 1
    maps = truth * np.uint8(200)
    maps[:, 25:28, 25:28] = 200
    assert clean_mask(maps[0], 0.5, 15).sum() == 100
    assert clean_mask(maps[0], 0.5, 0).sum() == 109
    assert choose_operating_point(score_points(maps, truth))["min_lesion_px"] > 9


def test_slices_without_a_lesion_do_not_cost_small_tumors():
    """The gate keeps them back; only where no slice shows a lesion have they a say."""
    truth = np.zeros((5, 32, 32), np.uint8)
    truth[0, 5:9, 5:10] = 1
    maps = truth * np.uint8(200)
    maps[1:, 5:9, 5:10] = 200
    assert choose_operating_point(score_points(maps, truth))["min_lesion_px"] <= 15
    assert {score.n for score in score_points(maps, truth)} == {1}
    assert choose_operating_point(score_points(maps[1:], truth[1:]))["min_lesion_px"] > 20
