"""Agreement of masks with true boxes: a box is not the truth of a mask, so the boxes around masks are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.masks.boxes import boxes_of, fill_boxes

_HIT = 0.5  # least IoU of two boxes that mean one object (M. Everingham et al., PASCAL VOC, IJCV 2010)
BOX_TITLES = {
    "iou": "overlap of boxes (IoU)",
    "hit_rate": "boxes hit (IoU of 0.5 and more)",
    "missed": "slices with boxes without a mask",
    "false_boxes": "false boxes per slice with boxes",
}


@dataclass(frozen=True)
class BoxScores:
    """Agreement of the boxes around one slice's mask with the true ones.

    Attributes:
        iou: Intersection over union of all boxes' areas, 0 to 1.
        boxes: True boxes. Those that overlap or touch count as the one around them.
        hit: Number of these with a predicted box of the same place and size.
        false_boxes: Predicted boxes that touch no true one.
        missed: Whether the mask is empty.
    """

    iou: float
    boxes: int
    hit: int
    false_boxes: int
    missed: bool


def box_scores(guess_hw: NDArray[Any], truth_hw: NDArray[Any]) -> BoxScores:
    """Scores of a predicted mask against true boxes, of which there is one or more.

    Args:
        guess_hw: ``(rows, columns)`` predicted mask, non-zero is lesion.
        truth_hw: ``(rows, columns)`` true boxes, filled.
    """
    guessed, true = fill_boxes(guess_hw) != 0, fill_boxes(truth_hw) != 0
    guess_boxes, true_boxes = boxes_of(guess_hw), boxes_of(truth_hw)
    overlap_nm = _overlaps(true_boxes, guess_boxes)
    return BoxScores(
        iou=np.count_nonzero(guessed & true) / max(int(np.count_nonzero(guessed | true)), 1),
        boxes=len(true_boxes),
        hit=int((overlap_nm >= _HIT).any(axis=1).sum()),
        false_boxes=int((overlap_nm == 0).all(axis=0).sum()),
        missed=not guessed.any(),
    )


def _overlaps(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each of ``n`` with each of ``m`` boxes, ``(n, m)``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def box_report(scores: Sequence[BoxScores], patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Counts ``n``, ``n_patients`` and ``n_boxes``, and the figures of `BOX_TITLES` with 95 % intervals over patients.

    Args:
        scores: Of each slice with boxes.
        patients: Patient of each slice. An unknown one, ``""``, counts as a patient of its own.
        seed: Of the bootstrap.
    """
    names = [patient or f"slice-{i}" for i, patient in enumerate(patients)]
    boxes = np.array([s.boxes for s in scores], float)
    every = np.ones(len(scores))
    return {
        "n": len(scores),
        "n_patients": len(set(names)),
        "n_boxes": int(boxes.sum()),
        "iou": weighted_mean([s.iou for s in scores], every, names, seed),
        "hit_rate": weighted_mean([s.hit / max(s.boxes, 1) for s in scores], boxes, names, seed),
        "missed": weighted_mean([float(s.missed) for s in scores], every, names, seed),
        "false_boxes": weighted_mean([float(s.false_boxes) for s in scores], every, names, seed),
    }
