"""Prediction sets: the classes that remain possible for a slice at a promised error rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList

LEVEL = 0.95


def fit_thresholds(
    probabilities_nc: NDArray[np.float32], labels_n: NDArray[np.int64], level: float = LEVEL
) -> list[float | None]:
    """The lowest probability with which each class belongs to the set, from validation slices.

    Split conformal prediction within each class (M. Sadinle, J. Lei and L. Wasserman, JASA 2019; V. Vovk, 2012): at
    least the share `level` of a class's slices have their own class in the set, however good the network is. The
    promise holds for slices drawn like those of the validation patients. Slices of one patient are alike, so with few
    patients the coverage on others varies more than the number of slices suggests.

    Args:
        probabilities_nc: ``(n, c)``, calibrated.
        labels_n: ``(n,)``.
        level: Wanted coverage.

    Returns:
        A number per class; None for a class that no slice shows. It is in a set only as the likeliest.
    """
    thresholds: list[float | None] = []
    for c in range(probabilities_nc.shape[1]):
        own = np.sort(probabilities_nc[labels_n == c, c])
        rank = int(np.floor((1 - level) * (len(own) + 1) + 1e-9))  # rank - 1 slices may be left out
        thresholds.append(None if not len(own) else float(own[rank - 1]) if rank else 0.0)
    return thresholds


def prediction_sets(probabilities_nc: NDArray[np.float32], thresholds: Sequence[float | None]) -> NDArray[np.bool_]:
    """The classes in each slice's set, ``(n, c)`` bool. The likeliest is always among them."""
    least = np.array([np.inf if t is None else t for t in thresholds])
    sets = probabilities_nc >= least
    sets[np.arange(len(sets)), probabilities_nc.argmax(axis=1)] = True
    return sets


def coverage_report(
    sets_nc: NDArray[np.bool_],
    labels_n: NDArray[np.int64],
    patients: Sequence[str],
    seed: int = 0,
    classes: ClassList = SHIPPED_CLASSES,
) -> dict[str, Any]:
    """Share of the sets that hold the true class, over all slices and per class, with intervals over patients.

    Also the sets' mean size and the share of sets with a single class.

    Args:
        sets_nc: ``(n, c)`` bool from `prediction_sets`.
        labels_n: ``(n,)``.
        patients: ``(n,)``.
        seed: Of the intervals.
        classes: The classes of the columns.
    """
    inside = sets_nc[np.arange(len(labels_n)), labels_n].astype(float)
    size = sets_nc.sum(axis=1)
    every = np.ones(len(labels_n))
    return {
        "level": LEVEL,
        "n": len(labels_n),
        "coverage": weighted_mean(inside, every, patients, seed),
        "coverage_by_class": {
            classes.names[c]: weighted_mean(inside, (labels_n == c).astype(float), patients, seed)
            for c in sorted(set(labels_n))
        },
        "mean_size": weighted_mean(size.astype(float), every, patients, seed),
        "single": weighted_mean((size == 1).astype(float), every, patients, seed),
    }
