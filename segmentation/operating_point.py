"""From which probability on a pixel is lesion, and how small a lesion may be: chosen on patients not learnt from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.training.out_of_fold import fold_runs, mean_and_deviation
from tumorlens.segmentation.evaluation.metrics import dice_scores
from tumorlens.segmentation.postprocess import clean_mask

POINTS = "operating_points.csv"
WEIGHTS = "segmenter.safetensors"
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
_AREAS_PX = (0, 15, 30, 60)


@dataclass(frozen=True)
class PointScore:
    """What an operating point is worth.

    Attributes:
        threshold: Probability from which a pixel is lesion.
        min_lesion_px: Smallest lesion, in pixels of the network's grid.
        dice: Mean over the slices that decide, 1 where mask and truth are empty.
        n: How many these are.
    """

    threshold: float
    min_lesion_px: int
    dice: float
    n: int


def score_points(maps_nhw: NDArray[np.uint8], truth_nhw: NDArray[np.uint8]) -> list[PointScore]:
    """Mean Dice of every threshold with every smallest lesion.

    Slices with a lesion decide, where there are any: the others seldom pass the gate, and would raise the smallest
    lesion at the cost of small tumors.

    Args:
        maps_nhw: ``(n, size, size)`` uint8, 255 is certain.
        truth_nhw: ``(n, size, size)`` 0 and 1.
    """
    sick = truth_nhw.any(axis=(1, 2))
    if sick.any():
        maps_nhw, truth_nhw = maps_nhw[sick], truth_nhw[sick]
    found = []
    for threshold in _THRESHOLDS:
        for area in _AREAS_PX:
            masks = np.stack([clean_mask(m, threshold, area) for m in maps_nhw])
            found.append(PointScore(threshold, area, float(dice_scores(masks, truth_nhw).mean()), len(maps_nhw)))
    return found


def choose_operating_point(scores: Sequence[PointScore]) -> dict[str, float]:
    """The point with the best mean Dice; scores of several folds are weighed by their slices."""
    total: dict[tuple[float, int], float] = {}
    slices: dict[tuple[float, int], int] = {}
    for score in scores:
        point = score.threshold, score.min_lesion_px
        total[point] = total.get(point, 0.0) + score.dice * score.n
        slices[point] = slices.get(point, 0) + score.n
    best: tuple[float, float, int] = (-1.0, 0.5, 0)
    for point in sorted(total):
        mean = total[point] / slices[point]
        if mean > best[0] + 1e-4:
            best = (mean, *point)
    return {"mask_threshold": best[1], "min_lesion_px": best[2]}


def write_points(path: Path, scores: Sequence[PointScore]) -> None:
    """One row per point."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["threshold", "min_lesion_px", "dice", "n"])
        writer.writerows([s.threshold, s.min_lesion_px, f"{s.dice:.6f}", s.n] for s in scores)


@dataclass(frozen=True)
class Evidence:
    """What a cross-validation says of operating points.

    Attributes:
        scores: Of every fold on its validation patients.
        patients: Whom the folds validated.
        figures: Mean and deviation of the folds' test figures, for a card.
    """

    scores: list[PointScore]
    patients: set[str]
    figures: dict[str, Any]


def read_evidence(folder: str | Path, recipe: Mapping[str, Any]) -> Evidence:
    """What the folds of a cross-validation measured.

    Args:
        folder: Of the cross-validation, with ``fold-0`` ... in it.
        recipe: Settings of the run on all patients.

    Raises:
        InputError: See `data.training.out_of_fold.fold_runs`.
    """
    runs = fold_runs(folder, WEIGHTS, "segmentation", recipe)
    scores: list[PointScore] = []
    patients: set[str] = set()
    for run in runs:
        patients |= {row["patient"] for row in run.rows("validation.csv") if row.get("patient")}
        try:
            scores += [
                PointScore(float(r["threshold"]), int(r["min_lesion_px"]), float(r["dice"]), int(r["n"]))
                for r in run.rows(POINTS)
            ]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{run.folder / POINTS}: no table of operating points") from None
    figures: dict[str, Any] = {}
    for name in ("dice_tumor", "dice_tumor_median", "false_masks"):
        figures[name] = mean_and_deviation([run.card["metrics"]["test"].get(name) for run in runs])
    return Evidence(scores, patients, {"crossval_test": figures})
