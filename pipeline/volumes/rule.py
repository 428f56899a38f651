"""The one decision about a volume: how sure each suspicion is, from its map, its slices, its size and its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR
from tumorlens.pipeline.measurements.lesions import boxes_of, slice_areas_px
from tumorlens.pipeline.volumes.planes import PlaneAnswer

_MOST = 32  # suspicions that are judged, largest first: a map of noise falls into thousands
_MOST_SLICES = 4  # a lesion of more slices is not surer
_LEAST = 1e-9  # the least confidence: the weights of an average must not all be 0
_MOST_LOG_ODDS = 4.0  # of a slice: 0.98, beyond which networks exaggerate


@dataclass(frozen=True)
class Features:
    """What the rule knows of a suspicion.

    Attributes:
        map: Its mean lesion probability, 0..1.
        slices: Log-odds of a tumor in the slices that it lies in, by its area in each, averaged over the planes; within
            4 on both sides.
        both: Product of the two: a sure map in slices without a tumor says little.
        size: Logarithm of its largest area in a slice as a share of the largest head in a slice. Shares do not need a
            spacing, which headers often lack or invent.
        depth: Number of slices that it spans, 4 at most.
    """

    map: float
    slices: float
    both: float
    size: float
    depth: float


@dataclass(frozen=True)
class Rule:
    """A logistic regression on the features of a suspicion.

    The defaults are for cards without a ``lesion_rule``; they were fitted on the shipped weights of version 0.1.

    Attributes:
        bias: Log-odds that all features share.
        map: Weight of `Features.map`, and so on.
        nothing: Tumor probability of a volume without any suspicion.
    """

    bias: float = -2.85
    map: float = 3.14
    slices: float = -0.58
    both: float = 1.57
    size: float = 0.21
    depth: float = 0.28
    nothing: float = 0.02

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Rule:
        """The rule on a classifier's card, or the default."""
        return cls(**{key: float(value) for key, value in card.get("lesion_rule", {}).items() if key in _KEYS})

    def confidence(self, features: Features) -> float:
        """Probability that a suspicion is a lesion."""
        log_odds = self.bias + sum(getattr(self, name) * value for name, value in asdict(features).items())
        return float(1 / (1 + np.exp(-log_odds)))


_KEYS = tuple(Rule.__dataclass_fields__)


@dataclass(frozen=True)
class Suspicion:
    """A connected piece of a fused map.

    Attributes:
        features: What the rule knows of it.
        voxels: Its number of voxels.
        types: ``(c - 1,)`` mean probability of each tumor type in the slices that it lies in.
    """

    features: Features
    voxels: int
    types: NDArray[np.float64]


def suspicions_of(
    numbers: NDArray[np.uint16], fused: NDArray[np.uint8], answers: Sequence[PlaneAnswer], head_px: float
) -> list[Suspicion]:
    """The numbered pieces of a fused map, at most the 32 largest.

    Args:
        numbers: The number of each voxel's piece, 0 outside, in the array order of the scan.
        fused: Lesion probability of each voxel, 255 is certain.
        answers: Of each plane; the first is the plane of acquisition.
        head_px: Largest area of the head in a slice of the plane of acquisition, in pixels.
    """
    found = []
    for number, box in enumerate(boxes_of(numbers)[:_MOST], start=1):
        member = numbers[box] == number
        areas = [slice_areas_px(member, answer.scan) for answer in answers]
        odds, types = [], []
        for answer, area in zip(answers, areas, strict=True):
            start = box[answer.scan.slice_axis].start
            rows = answer.probabilities[start : start + len(area)].astype(np.float64)
            known = (area > 0) & ~np.isnan(rows[:, NO_TUMOR])
            if known.any():
                odds.append(float(np.average(_log_odds(rows[known]), weights=area[known])))
                types.append(np.average(rows[known, 1:], weights=area[known], axis=0))
        certainty = float(fused[box][member].mean()) / 255
        tumor = float(np.mean(odds)) if odds else 0.0
        features = Features(
            map=certainty,
            slices=tumor,
            both=certainty * tumor,
            size=float(np.mean([np.log(area.max()) for area in areas]) - np.log(max(head_px, 1.0))),
            depth=min(float(_MOST_SLICES), float(np.count_nonzero(areas[0]))),
        )
        voxels = int(np.count_nonzero(member))
        found.append(
            Suspicion(
                features, voxels, np.mean(types, axis=0) if types else np.zeros(answers[0].probabilities.shape[1] - 1)
            )
        )
    return found


def types_of(
    suspicions: Sequence[Suspicion], confidences: Sequence[float], judged_nc: NDArray[np.float32]
) -> NDArray[np.floating]:
    """How likely each tumor type is: by the volume of the suspicions that may be lesions, or else by all slices."""
    if not suspicions:
        return judged_nc.sum(axis=0)
    weights = [s.voxels * max(p, _LEAST) for s, p in zip(suspicions, confidences, strict=True)]
    return np.average([s.types for s in suspicions], axis=0, weights=weights)


def _log_odds(probabilities_nc: NDArray[np.float64]) -> NDArray[np.float64]:
    free = np.clip(probabilities_nc[:, NO_TUMOR], 1e-9, 1 - 1e-9)
    return np.clip(np.log((1 - free) / free), -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
