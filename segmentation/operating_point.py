"""The operating point: mask threshold and smallest lesion, chosen on patients that the network has not learned from."""

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
from tumorlens.data.training.out_of_fold import Evidence, finished_folds, mean_and_deviation
from tumorlens.segmentation.evaluation.metrics import dice_scores
from tumorlens.segmentation.postprocess import clean_mask

POINTS = "operating_points.csv"
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
_AREAS_PX = (0, 15, 30, 60)
_SPARED = 0.002  # of the Dice, which hardly depends on the threshold: a higher one draws tighter and less often


@dataclass(frozen=True)
class PointScore:
    """The score of an operating point.

    Attributes:
        threshold: Lowest probability of a lesion's pixel.
        min_lesion_px: Smallest lesion, in pixels of the network's grid.
        dice: Mean over the slices that decide, 1 where mask and truth are empty.
        n: Number of these slices.
        outline: Their convention; empty where the network has one without a name.
    """

    threshold: float
    min_lesion_px: int
    dice: float
    n: int
    outline: str = ""


def score_points(maps_nhw: NDArray[np.uint8], truth_nhw: NDArray[np.uint8], outline: str = "") -> list[PointScore]:
    """Mean Dice of every threshold with every smallest lesion.

    Slices with a lesion decide, if there are any. The others seldom pass the gate, and would raise the smallest lesion
    at the cost of small tumors.

    Args:
        maps_nhw: ``(n, size, size)`` uint8, 255 is certain.
        truth_nhw: ``(n, size, size)`` 0 and 1.
        outline: The convention of all slices.
    """
    sick = truth_nhw.any(axis=(1, 2))
    if sick.any():
        maps_nhw, truth_nhw = maps_nhw[sick], truth_nhw[sick]
    scores = []
    for threshold in _THRESHOLDS:
        for area in _AREAS_PX:
            masks = np.stack([clean_mask(m, threshold, area) for m in maps_nhw])
            scores.append(
                PointScore(threshold, area, float(dice_scores(masks, truth_nhw).mean()), len(maps_nhw), outline)
            )
    return scores


def choose_operating_point(scores: Sequence[PointScore], outlines: Sequence[str] = ()) -> dict[str, Any]:
    """The point of the first convention and, if there are several, ``"by_outline"`` with that of each, for a card.

    Args:
        scores: Of one or several folds, which are weighted by their slices.
        outlines: The conventions of the network's channels; empty for one without a name.
    """
    points = {name: _best_point([s for s in scores if s.outline == name]) for name in outlines or ("",)}
    first: dict[str, Any] = dict(next(iter(points.values())))
    return first | ({"by_outline": points} if len(points) > 1 else {})


def _best_point(scores: Sequence[PointScore]) -> dict[str, float]:
    """The highest threshold that costs hardly any Dice, with its best smallest lesion.

    Without scores, the usual point.
    """
    total: dict[tuple[float, int], float] = {}
    slices: dict[tuple[float, int], int] = {}
    for score in scores:
        point = score.threshold, score.min_lesion_px
        total[point] = total.get(point, 0.0) + score.dice * score.n
        slices[point] = slices.get(point, 0) + score.n
    best: dict[float, tuple[float, int]] = {}  # threshold -> Dice, smallest lesion
    for threshold, area in sorted(total):
        mean = total[threshold, area] / slices[threshold, area]
        if threshold not in best or mean > best[threshold][0] + 1e-4:
            best[threshold] = (mean, area)
    if not best:
        return {"mask_threshold": 0.5, "min_lesion_px": 0}
    least = max(mean for mean, _ in best.values()) - _SPARED
    threshold = max(t for t, (mean, _) in best.items() if mean >= least)
    return {"mask_threshold": threshold, "min_lesion_px": best[threshold][1]}


def fit_operating_point(
    maps_nchw: NDArray[np.uint8],
    truth_nhw: NDArray[np.uint8],
    channels: Sequence[int],
    outlines: Sequence[str],
    table: Path,
    evidence: PointEvidence | None,
) -> dict[str, Any]:
    """The operating point of a trained network, for its card.

    Args:
        maps_nchw: ``(n, c, size, size)`` maps of the validation slices.
        truth_nhw: ``(n, size, size)`` their masks, 0 and 1.
        channels: ``n`` channels of their outlines.
        outlines: The conventions of the channels; empty for one without a name.
        table: Where to write the scores, which a later run on all patients reads.
        evidence: Scores of a cross-validation, which replace those of the validation slices.
    """
    if evidence is not None:
        return choose_operating_point(evidence.scores, outlines)
    scores: list[PointScore] = []
    for channel, name in enumerate(outlines or ("",)):
        own = np.array(channels) == channel
        if own.any():
            scores += score_points(maps_nchw[own, channel], truth_nhw[own], name)
    write_points(table, scores)
    return choose_operating_point(scores, outlines)


def write_points(path: Path, scores: Sequence[PointScore]) -> None:
    """Write one row a point."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["outline", "threshold", "min_lesion_px", "dice", "n"])
        writer.writerows([s.outline, s.threshold, s.min_lesion_px, f"{s.dice:.6f}", s.n] for s in scores)


@dataclass(frozen=True)
class PointEvidence(Evidence):
    """Scores of operating points in a cross-validation.

    Attributes:
        scores: The scores of every fold on its validation patients.
    """

    scores: list[PointScore]


def read_evidence(folder: str | Path, recipe: Mapping[str, Any]) -> PointEvidence:
    """The operating points of every fold of a cross-validation.

    Args:
        folder: The cross-validation's folder, with ``fold-0`` ... in it.
        recipe: Settings of the run on all patients.

    Raises:
        InputError: See `data.training.out_of_fold.finished_folds`, or a table that holds no operating points.
    """
    folds = finished_folds(folder, "segmentation", recipe)
    scores: list[PointScore] = []
    patients: set[str] = set()
    for fold in folds:
        patients |= {row["patient"] for row in fold.rows("validation.csv") if row.get("patient")}
        try:
            scores += [
                PointScore(
                    float(r["threshold"]), int(r["min_lesion_px"]), float(r["dice"]), int(r["n"]), r.get("outline", "")
                )
                for r in fold.rows(POINTS)
            ]
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{fold.folder / POINTS}: this is not a table of operating points; train this fold again"
            ) from None
    figures: dict[str, Any] = {}
    for name in ("dice_tumor", "dice_tumor_median", "false_masks"):
        figures[name] = mean_and_deviation([fold.figures.get(name) for fold in folds])
    return PointEvidence(Path(folder), patients, {"held_out": figures}, len(folds) > 1, scores)
