"""Calibration of probabilities on patients that the network has not learned from: a temperature and a tumor bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.probabilities import has_gate, softmax
from tumorlens.data.labels import NO_TUMOR

THRESHOLD = 0.5  # calibrated tumor probability from which a slice is positive
TEMPERATURES = (0.05, 20.0)
BIASES = (-6.0, 6.0)
RULE = "0.5 of the calibrated tumor probability, where tumor and no tumor are equally frequent and no data set prevails"


@dataclass(frozen=True)
class Calibration:
    """From logits to probabilities, of which a slice with a tumor has at least `THRESHOLD`.

    Temperature scaling (C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017), and one bias for all tumor
    classes. The bias changes neither the ranking of slices nor that of tumor types, but it says how frequent tumors
    are. So the label and the printed probabilities cannot contradict each other.

    Attributes:
        temperature: The logits' divisor.
        tumor_bias: Added to the log-odds of a tumor.
    """

    temperature: float = 1.0
    tumor_bias: float = 0.0

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> Calibration:
        """The calibration on a classifier's card. A threshold on the card other than `THRESHOLD` becomes a bias."""
        facts = card.get("calibration", {})
        threshold = min(max(float(card["operating_point"]["tumor_threshold"]), 1e-6), 1 - 1e-6)
        shift = float(np.log(threshold / (1 - threshold)))
        return cls(float(facts.get("temperature", 1.0)), float(facts.get("tumor_bias", 0.0)) - shift)

    def __call__(self, logits_nc: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities ``(n, c)`` of uncalibrated logits."""
        return softmax(self._shifted(logits_nc.astype(np.float64) / self.temperature, self.tumor_bias))

    def logits(self, probabilities_nc: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The uncalibrated logits ``(n, c)`` of probabilities, up to a constant for each slice."""
        logs = np.log(np.maximum(probabilities_nc.astype(np.float64), _LEAST))
        return np.asarray(self._shifted(logs, -self.tumor_bias) * self.temperature, np.float32)

    @staticmethod
    def _shifted(logs_nc: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
        """Logits after a change of the tumor's log-odds."""
        shifted = logs_nc + bias
        shifted[:, NO_TUMOR] -= bias
        return shifted


_LEAST = 1e-38  # stands for a probability that float32 wrote as 0, so that it has a logarithm


def fit_calibration(
    logits_nc: NDArray[np.float32], labels_n: NDArray[np.int64], sources_n: NDArray[np.int64]
) -> Calibration:
    """The calibration with the lowest log-loss on a mixture in which no data set and no answer prevails.

    Two numbers cannot overfit a few hundred slices. Slices with and without a tumor weigh the same, and among each of
    them all data sets that have any.

    Args:
        logits_nc: ``(n, c)`` of slices that the network has not learned from.
        labels_n: ``(n,)`` number of each label, see `data.labels.ClassList.index`.
        sources_n: ``(n,)`` number of each slice's data set.
    """
    from scipy.optimize import minimize

    weights = balanced_weights(labels_n, sources_n)

    def loss(parameters: NDArray[np.float64]) -> float:
        calibration = Calibration(float(np.exp(parameters[0])), float(parameters[1]))
        return float((weights * log_losses(calibration(logits_nc), labels_n)).sum())

    bounds = [tuple(np.log(TEMPERATURES)), BIASES]
    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-4, "fatol": 1e-7})
    bias = round(float(best.x[1]), 4) if has_gate(logits_nc) else 0.0  # no bias changes a certainty
    return Calibration(round(float(np.exp(best.x[0])), 4), bias)


def balanced_weights(labels_n: NDArray[np.int64], sources_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights ``(n,)`` that sum to 1: a half for tumor and for no tumor, each shared evenly by the data sets."""
    sick = labels_n != NO_TUMOR
    groups, of_slice, sizes = np.unique(2 * sources_n + sick, return_inverse=True, return_counts=True)
    n_sets = np.bincount(groups % 2, minlength=2)
    return np.asarray(1 / sizes[of_slice] / n_sets[sick.astype(int)] / np.count_nonzero(n_sets), np.float64)


def log_losses(probabilities_nc: NDArray[np.float32], labels_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log of the true label's probability, ``(n,)``; of a tumor of unknown type, of all tumors together."""
    untyped = labels_n == probabilities_nc.shape[1]
    of_class = probabilities_nc[np.arange(len(labels_n)), np.where(untyped, NO_TUMOR, labels_n)]
    true = np.where(untyped, 1 - probabilities_nc[:, NO_TUMOR].astype(np.float64), of_class)
    return -np.log(np.maximum(true, 1e-12))
