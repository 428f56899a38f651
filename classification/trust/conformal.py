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
        A number per class; None for a class that no slice shows. It is in a set only as the likeliest. A class with
        fewer slices than `least_slices` has 0, so that it is in every set: nothing can be excluded at that level.
    """
    thresholds: list[float | None] = []
    for c in range(probabilities_nc.shape[1]):
        own = np.sort(probabilities_nc[labels_n == c, c])
        rank = int(np.floor((1 - level) * (len(own) + 1) + 1e-9))  # rank - 1 slices may be left out
        thresholds.append(None if not len(own) else float(own[rank - 1]) if rank else 0.0)
    return thresholds


def least_slices(level: float = LEVEL) -> int:
    """The number of validation slices of a class from which on a set can leave the class out: 19 for 95 %.

    Of n slices and a new one, each is the least likely of all with a probability of 1 in n + 1. So a threshold at the
    least likely of n slices is missed that often, and a set that is to miss 1 - level at most needs n + 1 slices of it
    (V. Vovk, Conditional validity of inductive conformal predictors, 2012).
    """
    return int(np.ceil(1 / (1 - level) - 1e-9)) - 1


def conformal_facts(
    thresholds: Sequence[float | None],
    labels_n: NDArray[np.int64],
    classes: ClassList = SHIPPED_CLASSES,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The card's entry for prediction sets: the thresholds, or why there are none.

    Args:
        thresholds: From `fit_thresholds`.
        labels_n: ``(n,)`` labels of the slices that they were fitted on.
        classes: The classes of the thresholds.
        level: Their coverage.
    """
    counts = {name: int((labels_n == c).sum()) for c, name in enumerate(classes.names)}
    few = [f"{n} of {name}" for name, n in counts.items() if 0 < n < least_slices(level)]
    if few:
        needed = f"sets at {level:.0%} need {least_slices(level)} of each class that there is"
        return {"level": level, "too_few": f"validation slices: {', '.join(few)}; {needed}"}
    rounded = [None if t is None else round(t, 6) for t in thresholds[classes.offset :]]
    return {"level": level, "thresholds": dict(zip(classes.outputs, rounded, strict=True))}


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
