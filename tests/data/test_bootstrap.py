"""Intervals over patients: against a loop, a known distribution, and on sets that leave figures undefined."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.bootstrap import Draws, interval, ratio, sum_of_magnitudes, weighted_mean, with_bounds


@pytest.fixture(scope="module")
def slices():
    """300 slices of 40 patients: a figure that depends on the patient, a weight that is sometimes 0."""
    random = np.random.default_rng(3)
    patients = np.array([f"p{k:02}" for k in random.integers(0, 40, 300)])
    effect = {name: random.normal() for name in np.unique(patients)}
    values = np.array([effect[p] for p in patients]) + random.normal(0, 0.1, 300)
    return values, random.integers(0, 3, 300).astype(float), patients


def by_loop(values, weights, patients, seed=0):
    """Draw patients one by one and average what they bring."""
    names = sorted(set(patients))
    drawn = np.random.default_rng(seed).integers(0, len(names), (1000, len(names)))
    means = []
    for row in drawn:
        kept = np.concatenate([np.flatnonzero(patients == names[p]) for p in row])
        if weights[kept].sum() > 0:
            means.append(np.average(values[kept], weights=weights[kept]))
    low, high = np.percentile(means, (2.5, 97.5))
    return {"value": np.average(values, weights=weights), "low": low, "high": high}


def test_weighted_mean_equals_a_plain_loop(slices):
    values, weights, patients = slices
    assert weighted_mean(values, weights, patients, seed=5) == pytest.approx(by_loop(values, weights, patients, 5))


def test_interval_of_a_mean_equals_weighted_mean(slices):
    values, _, patients = slices
    estimate = interval(lambda indices: float(values[indices].mean()), patients, seed=2)
    assert estimate == pytest.approx(weighted_mean(values, np.ones(len(values)), patients, seed=2))


def test_patients_not_slices_are_drawn(slices):
    """Ten copies of every slice are not new evidence."""
    values, weights, patients = slices
    once = weighted_mean(values, weights, patients)
    copied = weighted_mean(np.repeat(values, 10), np.repeat(weights, 10), np.repeat(patients, 10))
    assert copied == pytest.approx(once)
    apart = weighted_mean(values, weights, np.arange(len(values)).astype(str))
    assert once["high"] - once["low"] > 1.5 * (apart["high"] - apart["low"])


def test_width_is_that_of_the_normal_distribution():
    random = np.random.default_rng(0)
    values = random.normal(size=400)
    estimate = weighted_mean(values, np.ones(400), np.arange(400).astype(str))
    assert estimate["high"] - estimate["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_order_and_names_of_patients_keep_the_figure_and_seed_decides(slices):
    values, weights, patients = slices
    order = np.random.default_rng(9).permutation(len(values))
    assert weighted_mean(values[order], weights[order], list(patients[order])) == pytest.approx(
        weighted_mean(values, weights, patients)
    )
    assert weighted_mean(values, weights, patients, seed=1) != weighted_mean(values, weights, patients, seed=0)


def test_values_without_weight_may_be_anything():
    estimate = weighted_mean([1.0, np.nan, 3.0, np.inf], [1, 0, 1, 0], ["a", "a", "b", "b"])
    assert estimate == {"value": 2.0, "low": 1.0, "high": 3.0}


def test_draws_without_weight_are_left_out():
    """One patient in three carries weight; three draws in ten lack it, and say nothing."""
    estimate = weighted_mean([7.0, 0.0, 0.0], [1.0, 0.0, 0.0], ["a", "b", "c"])
    assert estimate == {"value": 7.0, "low": 7.0, "high": 7.0}


@pytest.mark.parametrize("weights", [np.zeros(3), np.zeros(0)])
def test_no_weight_has_no_mean(weights):
    assert weighted_mean(np.ones(len(weights)), weights, ["a"] * len(weights)) is None


def test_one_patient_says_nothing_about_others():
    """An interval without width would look like certainty."""
    assert weighted_mean([1.0, 0.0], [1.0, 1.0], ["a", "a"]) == {"value": 0.5, "low": None, "high": None}
    assert interval(lambda indices: float(len(indices)), ["a", "a"]) == {"value": 2, "low": None, "high": None}
    assert Draws.of(["a", "a"]).totals(np.ones((2, 3))).shape == (0, 3)


def test_undefined_statistics():
    """A range that needs patient a is defined in the draws that hold it."""
    patients = ["a", "b", "b", "c"]

    def only_with_a(indices):
        return float(len(indices)) if 0 in indices else None

    estimate = interval(only_with_a, patients)
    assert estimate["value"] == 4 and 3 <= estimate["low"] <= estimate["high"] <= 5
    assert interval(lambda indices: None, patients) is None
    assert interval(lambda indices: float("nan"), patients) is None
    assert interval(lambda indices: 1.0, []) is None


def test_a_figure_that_no_draw_defines_has_no_bounds():
    assert with_bounds(0.5, np.full(10, np.nan)) == {"value": 0.5, "low": None, "high": None}
    assert with_bounds(None, np.ones(10)) is None


def test_fewer_draws_are_the_first_of_them():
    seen = []
    interval(lambda indices: seen.append(1) or 0.0, ["a", "b"], resamples=50)
    assert len(seen) == 51


def test_totals_count_a_slice_as_often_as_its_patient_is_drawn():
    draws = Draws.of(np.array(["b", "a", "b"]))
    assert (draws.times_rp.sum(axis=1) == 2).all()
    values = np.array([[1.0, 10], [2, 20], [3, 30]])
    expected = draws.times_rp[:, [1, 0, 1]] @ values
    assert np.array_equal(draws.totals(values), expected)
    assert np.array_equal(draws.totals(values[:, 0]), expected[:, 0])


def test_a_quotient_by_zero_is_undefined():
    assert np.array_equal(ratio(np.array([1.0, 2.0]), np.array([0.0, 4.0])), [np.nan, 0.5], equal_nan=True)


def made_up_errors(seed, gap, bins=15, n=150):
    """Signed errors of `bins` bins and their draws over patients; the true sum of their magnitudes is `gap`."""
    random = np.random.default_rng(seed)
    noise = np.eye(bins)[random.integers(0, bins, n)] * random.normal(gap, 0.4, n)[:, None]
    return noise.sum(axis=0) / n, Draws.of(np.arange(n).astype(str), seed).totals(noise) / n


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1, 0.5])
def test_the_interval_of_a_sum_of_magnitudes_holds_the_truth_and_the_figure(gap):
    """Where the truth is small, the percentiles of the draws miss it, and the figure as well."""
    holds_truth, by_percentiles = [], []
    for seed in range(100):
        parts, draws = made_up_errors(seed, gap)
        value = float(abs(parts).sum())
        estimate = sum_of_magnitudes(value, parts, draws)
        assert 0 <= estimate["low"] <= value <= estimate["high"]
        holds_truth.append(estimate["low"] <= gap <= estimate["high"])
        low, high = np.percentile(abs(draws).sum(axis=1), (2.5, 97.5))
        by_percentiles.append(low <= gap <= high)
    assert np.mean(holds_truth) >= 0.93
    if gap == 0:
        assert np.mean(by_percentiles) == 0


def test_an_interval_always_holds_its_figure():
    draws = np.linspace(0.3, 0.6, 1000)
    assert with_bounds(0.45, draws) == {"value": 0.45, "low": pytest.approx(0.3075), "high": pytest.approx(0.5925)}
    below, above = with_bounds(0.1, draws), with_bounds(0.9, draws)
    assert below["low"] == 0.1 and above["high"] == 0.9
    assert below["high"] > 0.45 and above["low"] < 0.45  # and the middle of the draws
