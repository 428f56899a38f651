"""The tumor thresholds of the gate, chosen on patients that the network has not learned from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR

SENSITIVITY = 0.98  # share of the tumor slices that the gate must let through: a screening tool may miss few
VOLUME_SPECIFICITY = 0.95  # share of the tumor-free slices of volumes that it must stop
_THRESHOLDS = np.arange(30, 96) / 100  # a few hundred slices say little about lower and higher ones
_LEAST = 20  # tumor slices, and tumor-free ones, that can decide a threshold
RULE = f"Youden's index where {SENSITIVITY:.0%} of the tumor slices are positive (or the lowest, {_THRESHOLDS[0]:g})"
VOLUME_RULE = f"the lowest at which {VOLUME_SPECIFICITY:.0%} of the tumor-free slices of volumes are negative"


def choose_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    """The threshold of single pictures: the best sum of sensitivity and specificity (W. Youden, Cancer 1950).

    Only thresholds at which `SENSITIVITY` of the tumor slices are positive compete; of equal ones the highest wins.

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

    For a picture the rule limits missed tumors, for a volume false alarms: a volume has a hundred slices without a
    tumor for a few that show one, and a lesion shows in several.

    Args:
        labels: ``(n,)`` class index of volumes' slices.
        probabilities: ``(n, 4)``, calibrated.

    Returns:
        The threshold; None if too few slices show a tumor, or too few show none.
    """
    if not has_enough_slices(labels):
        return None
    _, specificity = _rates(labels, probabilities)
    free = np.flatnonzero(specificity >= VOLUME_SPECIFICITY - 1e-9)
    return float(_THRESHOLDS[free[0] if len(free) else -1])


def threshold_of_each(from_volumes_n: NDArray[np.bool_], pictures: float, volumes: float | None) -> NDArray[np.float32]:
    """The tumor threshold of each slice, ``(n,)``.

    Args:
        from_volumes_n: ``(n,)`` whether each is a slice of a volume.
        pictures: Threshold of pictures.
        volumes: Threshold of volumes' slices; None takes that of pictures.
    """
    return np.where(from_volumes_n, pictures if volumes is None else volumes, pictures).astype(np.float32)


def has_enough_slices(labels: NDArray[np.int64]) -> bool:
    """Whether slices with these labels can decide a threshold."""
    sick = int((labels != NO_TUMOR).sum())
    return min(sick, len(labels) - sick) >= _LEAST


def _rates(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sensitivity and specificity at each threshold; 1 where no slice could be wrong."""
    tumor = 1 - probabilities[:, NO_TUMOR]
    positive = tumor[None] >= _THRESHOLDS[:, None].astype(np.float32)
    sick = labels != NO_TUMOR
    sensitivity = positive[:, sick].mean(axis=1) if sick.any() else np.ones(len(_THRESHOLDS))
    specificity = (~positive[:, ~sick]).mean(axis=1) if not sick.all() else np.ones(len(_THRESHOLDS))
    return sensitivity, specificity


def _best(score: NDArray[np.float64]) -> float:
    return float(_THRESHOLDS[np.flatnonzero(score >= score.max() - 1e-9)[-1]])
