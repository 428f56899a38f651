"""From which tumor probability on a slice is positive: chosen on patients that the network has not learnt from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR

# Share of the tumor slices that the gate has to let through: what a tool for screening may miss is fixed first.
SENSITIVITY = 0.98

# Share of the tumor-free slices of volumes that it has to stop.
VOLUME_SPECIFICITY = 0.95

# A few hundred slices say little about the far ends.
_THRESHOLDS = np.arange(30, 96) / 100
_LEAST = 20  # tumor slices, and tumor-free ones, for a threshold of their own
RULE = f"Youden's index where {SENSITIVITY:.0%} of the tumor slices are positive (or the lowest, {_THRESHOLDS[0]:g})"
VOLUME_RULE = f"the lowest at which {VOLUME_SPECIFICITY:.0%} of the tumor-free slices of volumes are negative"


def choose_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    """The threshold of single pictures: of those at which `SENSITIVITY` of the tumor slices are positive, the one with
    the best sum of sensitivity and specificity (W. Youden, Cancer 1950); the highest of equal ones.

    Args:
        labels: ``(n,)`` class index.
        probabilities: ``(n, 4)``, calibrated.
    """
    sensitivity, specificity = _rates(labels, probabilities)
    allowed = sensitivity >= SENSITIVITY - 1e-9
    if not allowed.any():
        return float(_THRESHOLDS[0])
    return _best(np.where(allowed, sensitivity + specificity, -1.0))


def choose_volume_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float | None:
    """The threshold of volumes' slices: the lowest at which `VOLUME_SPECIFICITY` of the tumor-free ones are negative.

    Of a picture, what may be missed is fixed first; of a volume, what may be marked. It has a hundred slices without a
    tumor for a few that show one, and a lesion shows in more than one.

    Args:
        labels: ``(n,)`` class index of volumes' slices.
        probabilities: ``(n, 4)``, calibrated.

    Returns:
        None where there are too few slices with a tumor, or without one.
    """
    if not enough(labels):
        return None
    _, specificity = _rates(labels, probabilities)
    free = np.flatnonzero(specificity >= VOLUME_SPECIFICITY - 1e-9)
    return float(_THRESHOLDS[free[0] if len(free) else -1])


def threshold_of_each(from_volumes_n: NDArray[np.bool_], pictures: float, volumes: float | None) -> NDArray[np.float32]:
    """The threshold that each slice is judged by, ``(n,)``: that of volumes' slices, where there is one, or that of
    pictures."""
    return np.where(from_volumes_n, pictures if volumes is None else volumes, pictures).astype(np.float32)


def enough(labels: NDArray[np.int64]) -> bool:
    """Whether slices with these labels can decide a threshold of their own."""
    sick = int((labels != NO_TUMOR).sum())
    return min(sick, len(labels) - sick) >= _LEAST


def _rates(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sensitivity and specificity at each threshold; 1 where there is nothing to get wrong."""
    tumor = 1 - probabilities[:, NO_TUMOR]
    positive = tumor[None] >= _THRESHOLDS[:, None].astype(np.float32)
    sick = labels != NO_TUMOR
    sensitivity = positive[:, sick].mean(axis=1) if sick.any() else np.ones(len(_THRESHOLDS))
    specificity = (~positive[:, ~sick]).mean(axis=1) if not sick.all() else np.ones(len(_THRESHOLDS))
    return sensitivity, specificity


def _best(score: NDArray[np.float64]) -> float:
    return float(_THRESHOLDS[np.flatnonzero(score >= score.max() - 1e-9)[-1]])
