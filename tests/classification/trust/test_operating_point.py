"""The tumor thresholds that validation slices choose."""

from __future__ import annotations

import numpy as np

from tumorlens.classification.evaluation.metrics import gate_metrics
from tumorlens.classification.trust.operating_point import (
    choose_threshold,
    choose_volume_threshold,
    has_enough_slices,
    threshold_of_each,
)


def tumor_probability(*runs):
    """Probabilities ``(n, 4)`` of runs of slices with one tumor probability each, ``(number, probability)``."""
    tumor = np.concatenate([np.full(n, p) for n, p in runs])
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


def test_volumes_have_a_threshold_of_their_own_if_enough_slices_decide():
    labels = np.array([0] * 100 + [1] * 30)
    p = tumor_probability((95, 0.395), (5, 0.8), (5, 0.5), (25, 0.85))
    assert choose_volume_threshold(labels, p) == 0.4  # one in twenty is let through, and no tumor lost for it
    p = tumor_probability((94, 0.295), (6, 0.795), (5, 0.5), (25, 0.85))
    assert choose_volume_threshold(labels, p) == 0.8  # six are too many, whatever tumors that costs
    assert choose_volume_threshold(labels, tumor_probability((130, 1.0))) == 0.95
    assert choose_volume_threshold(labels[:110], p[:110]) is None
    assert choose_volume_threshold(labels[:0], p[:0]) is None
    assert has_enough_slices(labels)
    assert not has_enough_slices(labels[:110])


def test_slices_of_volumes_and_pictures_are_judged_by_their_own_thresholds():
    labels = np.array([0, 1, 0, 1])
    p = tumor_probability((4, 0.6))
    cut = np.array([False, False, True, True])
    thresholds = threshold_of_each(cut, 0.5, 0.7)
    assert gate_metrics(labels, p, thresholds) == {"sensitivity": 0.5, "specificity": 0.5, "accuracy": 0.5}
    assert gate_metrics(labels, p, threshold_of_each(cut, 0.5, None))["sensitivity"] == 1
