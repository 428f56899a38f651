"""95 % intervals of figures by drawing patients, not slices: slices of one patient are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)  # percentiles
_NORMAL = 1.96  # standard deviations of the normal distribution that hold 95 %
Patients = Sequence[str] | NDArray[Any]


@dataclass(frozen=True)
class Draws:
    """Patients drawn with replacement, as many as there are, many times over.

    Attributes:
        patient_n: ``(n,)`` number of each slice's patient.
        times_rp: ``(r, p)`` how often each draw holds each patient; no draw of a single patient.
    """

    patient_n: NDArray[np.int64]
    times_rp: NDArray[np.float64]

    @classmethod
    def of(cls, patients: Patients, seed: int = 0) -> Draws:
        """The draws of these slices' patients; the same for equal patients and seed, whatever the figure.

        Args:
            patients: ``(n,)`` patient of each slice. Slices of unknown origin need a name each, or they count as one.
            seed: Of the draws.
        """
        names, patient_n = np.unique(np.asarray(patients), return_inverse=True)
        drawn_rp = _draw(len(names), seed, RESAMPLES)
        cells = drawn_rp + len(names) * np.arange(len(drawn_rp))[:, None]
        times = np.bincount(cells.ravel(), minlength=drawn_rp.size)
        return cls(patient_n, times.reshape(drawn_rp.shape).astype(float))

    def totals(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sum over the slices of each draw: ``(n,)`` gives ``(r,)``, ``(n, k)`` gives ``(r, k)``."""
        per_patient = np.zeros((self.times_rp.shape[1], *values.shape[1:]))
        np.add.at(per_patient, self.patient_n, values)
        return self.times_rp @ per_patient


def weighted_mean(values: ArrayLike, weights: ArrayLike, patients: Patients, seed: int = 0) -> dict[str, Any] | None:
    """Weighted mean over slices and its 95 % percentile interval over draws of patients with replacement
    (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993).

    Args:
        values: ``(n,)`` a figure of each slice. With weight 0 it may be anything, also NaN.
        weights: ``(n,)`` 0 or above; 1 and 0 choose slices.
        patients: ``(n,)`` patient of each slice.
        seed: Of the draws.

    Returns:
        ``{"value", "low", "high"}``, or None if the weights sum to 0. Draws without any weight are left out.
    """
    weight = np.asarray(weights, float)
    if not weight.sum():
        return None
    product = np.where(weight > 0, np.asarray(values, float), 0.0) * weight
    names, patient_n = np.unique(np.asarray(patients), return_inverse=True)
    above, below = np.bincount(patient_n, product), np.bincount(patient_n, weight)
    drawn_rp = _draw(len(names), seed, RESAMPLES)
    means = ratio(above[drawn_rp].sum(axis=1), below[drawn_rp].sum(axis=1))
    return with_bounds(above.sum() / below.sum(), means)


def median(values: NDArray[Any], chosen: NDArray[np.bool_], patients: Patients, seed: int = 0) -> dict[str, Any] | None:
    """Median over the chosen slices and its interval, see `interval`.

    Args:
        values: ``(n,)`` a figure of each slice.
        chosen: ``(n,)`` the slices that count.
        patients: ``(n,)`` patient of each slice.
        seed: Of the draws.
    """

    def statistic(indices: NDArray[np.int64]) -> float | None:
        counted = values[indices][chosen[indices]]
        return float(np.median(counted)) if len(counted) else None

    return interval(statistic, patients, seed)


def interval(
    statistic: Callable[[NDArray[np.int64]], float | None],
    patients: Patients,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """Any statistic of a set of slices, and its 95 % percentile interval over draws of patients with replacement
    (B. Efron and R. Tibshirani, 1993).

    The statistic is called once a draw. What is a function of sums over slices is much faster by `Draws.totals`.

    Args:
        statistic: Takes indices into the slices, some of them several times; None or NaN where it is undefined.
        patients: ``(n,)`` patient of each slice.
        seed: Of the draws.
        resamples: Number of draws; fewer for a statistic that is slow.

    Returns:
        ``{"value", "low", "high"}``, or None if the statistic of all slices is undefined. Draws in which it is
        undefined are left out of the interval.
    """
    names, patient_n = np.unique(np.asarray(patients), return_inverse=True)
    if not len(names):
        return None
    value = statistic(np.arange(len(patient_n)))
    if value is None or not np.isfinite(value):
        return None
    members = np.split(np.argsort(patient_n, kind="stable"), np.cumsum(np.bincount(patient_n))[:-1])
    drawn_rp = _draw(len(names), seed, resamples)
    figures = (statistic(np.concatenate([members[p] for p in row])) for row in drawn_rp)
    return with_bounds(value, np.array([np.nan if f is None else f for f in figures], float))


def with_bounds(value: float | None, draws_r: NDArray[np.float64]) -> dict[str, Any] | None:
    """A figure with its 95 % interval, which holds the figure.

    It is the percentile interval, which takes for granted that the draws lie around the figure. Where they do not, it
    is the figure and 1.96 times the root mean square distance of the draws from it, to both sides, as far as the draws
    and the figure reach. That distance is made of the standard error and the bias of the draws (B. Efron and R.
    Tibshirani 1993, chapter 10).

    Args:
        value: The figure on all slices; None where it is undefined.
        draws_r: The same figure in each draw; NaN where it is undefined there.

    Returns:
        ``{"value", "low", "high"}`` (the bounds None if no draw defines the figure, as of a single patient), or None
        without a value.
    """
    if value is None or not np.isfinite(value):
        return None
    defined = draws_r[np.isfinite(draws_r)]
    if not len(defined):
        return {"value": float(value), "low": None, "high": None}
    low, high = np.percentile(defined, _INTERVAL).tolist()
    if not low <= value <= high:
        around = _NORMAL * float(np.sqrt(np.mean((defined - value) ** 2)))
        low = max(value - around, min(float(defined.min()), value))
        high = min(value + around, max(float(defined.max()), value))
    return {"value": float(value), "low": low, "high": high}


def sum_of_magnitudes(value: float, parts_k: NDArray[Any], draws_rk: NDArray[Any]) -> dict[str, Any]:
    """A figure from 0 to 1 that is a sum of magnitudes, such as ECE, with a 95 % interval, which holds the figure.

    Drawing adds noise to each part, and noise makes a magnitude larger where it is near 0. So the figure itself is too
    large (R. Roelofs et al., Mitigating Bias in Calibration Error Estimation, AISTATS 2022), and its draws are larger
    still: their percentiles may miss the figure, and the truth. Here

    - the true sum is less than the figure by at most the sum of the parts' errors (triangle inequality). The lower
      bound is the figure less the 97.5th percentile of that sum in the draws, at least 0;
    - the figure is too large on average, so 1.96 standard errors above it suffice for the upper bound.

    Args:
        value: The sum of the magnitudes of the parts.
        parts_k: ``(k,)`` the parts, with their signs.
        draws_rk: ``(r, k)`` the same in each draw; a row of NaN where they are undefined.
    """
    defined = draws_rk[np.isfinite(draws_rk).all(axis=1)]
    if not len(defined):
        return {"value": float(value), "low": None, "high": None}
    errors = abs(defined - parts_k).sum(axis=1)
    low = max(value - float(np.percentile(errors, _INTERVAL[1])), 0.0)
    high = min(value + _NORMAL * float(abs(defined).sum(axis=1).std()), 1.0)
    return {"value": float(value), "low": low, "high": high}


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, or NaN, which intervals leave out, where the denominator is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def _draw(n_patients: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """``(r, p)`` the patients of each draw. There is none of a single patient, who says nothing about others."""
    return np.random.default_rng(seed).integers(0, max(n_patients, 1), (resamples if n_patients > 1 else 0, n_patients))
