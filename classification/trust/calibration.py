"""Calibration of probabilities: temperature scaling on validation patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES

TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits_nc: NDArray[np.float32], labels_n: NDArray[np.int64]) -> float:
    """The temperature with the lowest log-loss (C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017).

    One number cannot overfit a few hundred slices. It changes neither the ranking nor the likeliest class.

    Args:
        logits_nc: ``(n, 4)`` of slices that the network has not learned from.
        labels_n: ``(n,)`` index into `data.labels.CLASSES`.
    """
    from scipy.optimize import minimize_scalar

    low, high = np.log(TEMPERATURES)
    best = minimize_scalar(
        lambda t: _log_loss(calibrated(logits_nc, float(np.exp(t))), labels_n), bounds=(low, high), method="bounded"
    )
    return round(float(np.exp(best.x)), 4)


def calibrated(logits_nc: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Class probabilities ``(n, 4)``: the softmax of the logits divided by the temperature."""
    if not len(logits_nc):
        return np.zeros((0, len(CLASSES)), np.float32)
    scaled = logits_nc.astype(np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def _log_loss(probabilities_nc: NDArray[np.float32], labels_n: NDArray[np.int64]) -> float:
    true = probabilities_nc[np.arange(len(labels_n)), labels_n]
    return float(-np.log(np.maximum(true, 1e-12)).mean())
