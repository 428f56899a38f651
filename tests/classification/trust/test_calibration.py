"""Calibration and prediction sets: they recover what is known, and keep what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorlens.classification.evaluation.metrics import expected_calibration_error
from tumorlens.classification.predict import Classifier
from tumorlens.classification.probabilities import softmax
from tumorlens.classification.trust.calibration import Calibration, balanced_weights, fit_calibration
from tumorlens.classification.trust.conformal import (
    conformal_facts,
    coverage_report,
    fit_thresholds,
    least_slices,
    prediction_sets,
)
from tumorlens.data.labels import SHIPPED_CLASSES


def draws(n, seed=0, temperature=1.0):
    """Logits, and labels drawn with the very probabilities that the logits mean."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2.5, (n, 4))
    sums = softmax(true.astype(np.float32)).cumsum(axis=1)
    labels = (rng.uniform(0, 1, (n, 1)) > sums[:, :3]).sum(axis=1)
    return (true * temperature).astype(np.float32), labels


def one_set(labels):
    return np.zeros(len(labels), int)


@pytest.mark.parametrize(("temperature", "bias"), [(0.4, 0.0), (1.0, 0.8), (3.0, -0.5)])
def test_temperature_and_bias_are_recovered(temperature, bias):
    """Logits of a network that is over- or underconfident, and sees tumors too often or too seldom."""
    logits, labels = draws(8000)
    logits[:, 1:] -= bias
    half = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels != 0)[: (labels == 0).sum()]])
    prior = np.log((labels == 0).sum() / (labels != 0).sum())  # of equally many slices with and without a tumor
    fitted = fit_calibration(logits[half] * temperature, labels[half], one_set(half))
    assert fitted.temperature == pytest.approx(temperature, rel=0.08)
    assert fitted.tumor_bias == pytest.approx(bias + prior, abs=0.15)
    every = fit_calibration(logits * temperature, labels, one_set(labels))
    assert every.tumor_bias == pytest.approx(fitted.tumor_bias, abs=0.1)  # how many there are does not matter


def test_calibration_lowers_the_error_on_other_slices_and_changes_no_type():
    logits, labels = draws(6000, 1, temperature=3.0)
    other, truth = draws(6000, 2, temperature=3.0)
    after = fit_calibration(logits, labels, one_set(labels))(other)
    assert expected_calibration_error(truth, softmax(other)) > 0.1
    assert expected_calibration_error(truth, after) < 0.06  # there are three times as many tumors as it assumes
    assert (after[:, 1:].argmax(axis=1) == other[:, 1:].argmax(axis=1)).all()


def test_a_tumor_of_unknown_type_counts_by_the_sum():
    logits, labels = draws(6000, 5, temperature=2.0)
    untyped = np.where((labels > 0) & (np.arange(6000) % 2 == 0), SHIPPED_CLASSES.untyped, labels)
    fitted = fit_calibration(logits, untyped, one_set(labels))
    whole = fit_calibration(logits, labels, one_set(labels))
    assert fitted.temperature == pytest.approx(whole.temperature, rel=0.1)
    assert fitted.tumor_bias == pytest.approx(whole.tumor_bias, abs=0.1)


def test_no_data_set_prevails():
    weights = balanced_weights(np.array([0, 0, 1, 2, 0, 3]), np.array([0, 0, 0, 0, 1, 2]))
    np.testing.assert_allclose(weights, [1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4])
    only_tumors = balanced_weights(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(only_tumors, [1 / 2, 1 / 4, 1 / 8, 1 / 8])  # as many tumors as none


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_a_threshold_on_the_card_becomes_a_half(threshold):
    card = {"operating_point": {"tumor_threshold": threshold}, "calibration": {"temperature": 2.0}}
    calibration = Calibration.of_card(card)
    logits, _ = draws(500, 6)
    plain = softmax(logits / 2)
    np.testing.assert_array_equal(1 - calibration(logits)[:, 0] >= 0.5, 1 - plain[:, 0] >= threshold)
    assert (calibration(logits)[:, 1:].argmax(axis=1) == plain[:, 1:].argmax(axis=1)).all()


def test_logits_come_back():
    logits, _ = draws(200, 7)
    calibration = Calibration(0.7, 0.4)
    again = calibration.logits(calibration(logits))
    np.testing.assert_allclose(softmax(again), softmax(logits), atol=1e-5)


def test_probabilities_are_a_softmax():
    np.testing.assert_allclose(softmax(np.log(np.array([[1, 2, 3, 4]], np.float32))), [[0.1, 0.2, 0.3, 0.4]], 1e-6)
    assert softmax(np.full((1, 4), 1000, np.float32)).tolist() == [[0.25] * 4]
    assert softmax(np.zeros((0, 4), np.float32)).shape == (0, 4)
    sure = Calibration(0.05)(np.array([[900, 0, 0, -900]], np.float32))
    assert np.isfinite(sure).all()


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_sets_hold_their_promise_in_every_class(level):
    """On slices drawn like those it was fitted on, for any shares of the classes and any quality of the network."""
    logits, labels = draws(4000, 3)
    other, truth = draws(20_000, 4)
    keep = (labels != 2) | (np.arange(len(labels)) % 5 == 0)  # a rare class
    sets = prediction_sets(softmax(other), fit_thresholds(softmax(logits[keep]), labels[keep], level))
    for c in range(4):
        assert sets[truth == c, c].mean() == pytest.approx(level, abs=0.03)


def test_thresholds_are_the_ranks_of_the_theory():
    """With 19 slices of a class and 95 %, the least of them is the threshold; with 18 there is none to leave out."""
    p = np.zeros((19, 4), np.float32)
    p[:, 1] = np.linspace(0.5, 0.95, 19)
    assert fit_thresholds(p, np.ones(19, int)) == [None, pytest.approx(0.5), None, None]
    assert fit_thresholds(p[:18], np.ones(18, int))[1] == 0.0


def test_the_fewest_slices_are_those_of_the_theory():
    for level, least in ((0.95, 19), (0.9, 9), (0.8, 4)):
        assert least_slices(level) == least
        p = np.full((least, 4), 0.7, np.float32)
        assert fit_thresholds(p, np.ones(least, int), level)[1] > 0
        assert fit_thresholds(p[1:], np.ones(least - 1, int), level)[1] == 0


def test_a_card_says_that_slices_are_too_few_instead_of_listing_every_class():
    labels = np.repeat([0, 1, 2], [40, 19, 18])
    facts = conformal_facts(fit_thresholds(np.full((77, 4), 0.25, np.float32), labels), labels)
    assert facts == {
        "level": 0.95,
        "too_few": "validation slices: 18 of meningioma; sets at 95% need 19 of each class that there is",
    }
    labels = np.repeat([0, 1], [40, 19])
    facts = conformal_facts(fit_thresholds(np.full((59, 4), 0.25, np.float32), labels), labels)
    assert facts["thresholds"] == {"no_tumor": 0.25, "glioma": 0.25, "meningioma": None, "pituitary": None}
    few = Classifier(lambda images: None, {"conformal": {"level": 0.95, "too_few": "x"}}, Path("x"))
    assert few.prediction_sets(np.full((2, 4), 0.25, np.float32)) is None


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
