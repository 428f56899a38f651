"""Calibration and prediction sets: they recover what is known, and keep what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.classification.evaluation.metrics import expected_calibration_error
from tumorlens.classification.trust.calibration import calibrated, fit_temperature
from tumorlens.classification.trust.conformal import coverage_report, fit_thresholds, prediction_sets


def draws(n, seed=0, temperature=1.0):
    """Logits, and labels drawn with the very probabilities that the logits mean."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2.5, (n, 4))
    sums = calibrated(true.astype(np.float32)).cumsum(axis=1)
    labels = (rng.uniform(0, 1, (n, 1)) > sums[:, :3]).sum(axis=1)
    return (true * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature):
    logits, labels = draws(6000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


def test_calibration_lowers_the_error_on_other_slices_and_changes_no_label():
    logits, labels = draws(6000, 1, temperature=3.0)
    other, truth = draws(6000, 2, temperature=3.0)
    after = calibrated(other, fit_temperature(logits, labels))
    assert expected_calibration_error(truth, calibrated(other)) > 0.1
    assert expected_calibration_error(truth, after) < 0.02
    assert (after.argmax(axis=1) == other.argmax(axis=1)).all()


def test_probabilities_are_a_softmax():
    np.testing.assert_allclose(calibrated(np.log(np.array([[1, 2, 3, 4]], np.float32))), [[0.1, 0.2, 0.3, 0.4]], 1e-6)
    assert calibrated(np.full((1, 4), 1000, np.float32)).tolist() == [[0.25] * 4]
    assert calibrated(np.zeros((0, 4), np.float32)).shape == (0, 4)
    sure = calibrated(np.array([[900, 0, 0, -900]], np.float32), 0.05)
    assert np.isfinite(sure).all()


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_sets_hold_their_promise_in_every_class(level):
    """On slices drawn like those it was fitted on, for any shares of the classes and any quality of the network."""
    logits, labels = draws(4000, 3)
    other, truth = draws(20_000, 4)
    keep = (labels != 2) | (np.arange(len(labels)) % 5 == 0)  # a rare class
    sets = prediction_sets(calibrated(other), fit_thresholds(calibrated(logits[keep]), labels[keep], level))
    for c in range(4):
        assert sets[truth == c, c].mean() == pytest.approx(level, abs=0.03)


def test_thresholds_are_the_ranks_of_the_theory():
    """With 19 slices of a class and 95 %, the least of them is the threshold; with 18 there is none to leave out."""
    p = np.zeros((19, 4), np.float32)
    p[:, 1] = np.linspace(0.5, 0.95, 19)
    assert fit_thresholds(p, np.ones(19, int)) == [None, pytest.approx(0.5), None, None]
    assert fit_thresholds(p[:18], np.ones(18, int))[1] == 0.0


def test_a_set_is_never_empty_and_an_unknown_class_only_in_it_as_the_likeliest():
    p = np.array([[0.3, 0.3, 0.4, 0.0], [0.9, 0.1, 0.0, 0.0]], np.float32)
    sets = prediction_sets(p, [0.5, 0.5, None, 0.0])
    assert sets.tolist() == [[False, False, True, True], [True, False, False, True]]


def test_coverage_is_counted_per_class():
    sets = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], bool)
    report = coverage_report(sets, np.array([0, 1, 2, 2]), ["a", "b", "c", "c"])
    assert report["coverage"]["value"] == 0.75
    assert {k: v["value"] for k, v in report["coverage_by_class"].items()} == {
        "no_tumor": 1.0,
        "glioma": 1.0,
        "meningioma": 0.5,
    }
    assert (report["mean_size"]["value"], report["single"]["value"]) == (1.25, 0.75)
