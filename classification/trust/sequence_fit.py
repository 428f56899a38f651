"""Teaches the sequence head (`classification.sequence`), at the end of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.network import TorchNetwork
from tumorlens.classification.refusal import Refusal
from tumorlens.classification.sequence import SequenceHead
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.labels import SEQUENCES
from tumorlens.data.training.prepared import PreparedSet

_MOST = 400  # slices of a sequence and source: more of the same scanner teach little
_LEAST = 20  # slices of a sequence; rarer ones are not learned
_STRENGTH = 0.003  # of the regression (scikit-learn's C)


def has_sequence(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Index of each sample's sequence in `data.labels.SEQUENCES`, ``(n,)``; -1 where it is not known."""
    return np.array([SEQUENCES.index(s.sequence) if s.sequence else -1 for s in samples], np.int64)


def fit_sequence_head(
    network: TorchNetwork, refusal: Refusal, train: PreparedSet, seed: int = 0
) -> SequenceHead | None:
    """The head that a multinomial logistic regression learns; None where fewer than two sequences are known.

    Args:
        network: The trained network.
        refusal: Names the layer and standardizes its features.
        train: Training slices. Those whose sequence is known teach.
        seed: Of the choice among many slices.
    """
    from sklearn.linear_model import LogisticRegression

    truth = has_sequence(train.samples)
    sources = np.array([sample.source for sample in train.samples], np.int64)
    order = np.random.default_rng(seed).permutation(len(train))
    chosen: list[int] = []
    for name in range(len(SEQUENCES)):
        if (truth == name).sum() < _LEAST:
            continue
        for source in sorted(set(sources[truth == name].tolist())):
            chosen += order[(truth == name)[order] & (sources == source)[order]][:_MOST].tolist()
    if len(set(truth[chosen].tolist())) < 2:
        return None
    _, features = network.predict_with_features(train.images[chosen], refusal.layer)
    regression = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=2000)
    regression.fit(refusal.standardize(features), truth[chosen])
    # The regression of two sequences has one row, of the second against the first.
    rows = regression.coef_ if len(regression.classes_) > 2 else np.stack([-regression.coef_[0], regression.coef_[0]])
    levels = (
        regression.intercept_
        if len(rows) == len(regression.intercept_)
        else [-regression.intercept_[0], regression.intercept_[0]]
    )
    weight = np.zeros((len(SEQUENCES), features.shape[1]), np.float32)
    bias = np.full(len(SEQUENCES), -1e4, np.float32)  # a sequence that nothing showed is never named
    for row, level, name in zip(rows, levels, regression.classes_, strict=True):
        weight[name], bias[name] = row, level
    return SequenceHead(weight, bias)


def sequence_figures(probabilities_ns: NDArray[np.float32], samples: Sequence[Sample]) -> dict[str, Any]:
    """Share of slices whose sequence is named rightly, for each sequence that is known; with their numbers."""
    truth = has_sequence(samples)
    right = probabilities_ns.argmax(axis=1) == truth
    return {
        name: {"n": int((truth == k).sum()), "recall": round(float(right[truth == k].mean()), 4)}
        for k, name in enumerate(SEQUENCES)
        if (truth == k).any()
    }
