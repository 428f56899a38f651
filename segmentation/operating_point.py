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
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation.config import SegmenterConfig
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
        channel: The convention of their outlines, or the region; empty where there is one without a name.
    """

    threshold: float
    min_lesion_px: int
    dice: float
    n: int
    channel: str = ""


def score_points(maps_nhw: NDArray[np.uint8], truth_nhw: NDArray[np.uint8], channel: str = "") -> list[PointScore]:
    """Mean Dice of every threshold with every smallest lesion.

    Slices with a lesion decide, if there are any. The others seldom pass the gate, and would raise the smallest lesion
    at the cost of small tumors.

    Args:
        maps_nhw: ``(n, size, size)`` uint8, 255 is certain.
        truth_nhw: ``(n, size, size)`` 0 and 1.
        channel: The convention of all slices, or the region.
    """
    sick = truth_nhw.any(axis=(1, 2))
    if sick.any():
        maps_nhw, truth_nhw = maps_nhw[sick], truth_nhw[sick]
    scores = []
    for threshold in _THRESHOLDS:
        for area in _AREAS_PX:
            masks = np.stack([clean_mask(m, threshold, area) for m in maps_nhw])
            scores.append(
                PointScore(threshold, area, float(dice_scores(masks, truth_nhw).mean()), len(maps_nhw), channel)
            )
    return scores


def choose_operating_point(
    scores: Sequence[PointScore], channels: Sequence[str] = (), each: str = "by_outline"
) -> dict[str, Any]:
    """The point of the first channel and, if there are several, an entry with that of each, for a card.

    Args:
        scores: Of one or several folds, which are weighted by their slices.
        channels: The names of the network's channels; empty for one without a name.
        each: The entry: ``"by_outline"`` or ``"by_region"``.
    """
    points = {name: _best_point([s for s in scores if s.channel == name]) for name in channels or ("",)}
    first: dict[str, Any] = dict(next(iter(points.values())))
    return first | ({each: points} if len(points) > 1 else {})


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
    config: SegmenterConfig,
    maps_nchw: NDArray[np.uint8],
    part: PreparedSet,
    table: Path,
    evidence: PointEvidence | None,
) -> dict[str, Any]:
    """The operating point of a trained network, for its card.

    Each channel is judged on the slices that teach it: of regions on all, else on those outlined by its convention.

    Args:
        config: The run's settings.
        maps_nchw: ``(n, c, size, size)`` maps of the validation slices.
        part: These slices.
        table: Where to write the scores, which a later run on all patients reads.
        evidence: Scores of a cross-validation, which replace those of the validation slices.
    """
    names, each = config.channel_names, "by_region" if config.region else "by_outline"
    if evidence is not None:
        return choose_operating_point(evidence.scores, names, each)
    planes = part.planes
    channels = np.array([config.channel_of(s.source, s.sequence) for s in part.samples])
    scores: list[PointScore] = []
    for channel, name in enumerate(names or ("",)):
        own = np.ones(len(part), bool) if config.region else channels == channel
        truth = planes[channel if config.region else 0]
        if own.any():
            scores += score_points(maps_nchw[own, channel], truth[own], name)
    write_points(table, scores, "region" if config.region else "outline")
    return choose_operating_point(scores, names, each)


def write_points(path: Path, scores: Sequence[PointScore], kind: str = "outline") -> None:
    """Write one row a point; the first column, ``outline`` or ``region``, names its channel."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([kind, "threshold", "min_lesion_px", "dice", "n"])
        writer.writerows([s.channel, s.threshold, s.min_lesion_px, f"{s.dice:.6f}", s.n] for s in scores)


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
                    float(r["threshold"]),
                    int(r["min_lesion_px"]),
                    float(r["dice"]),
                    int(r["n"]),
                    r.get("region") or r.get("outline", ""),
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
    of_folds = [fold.figures.get("by_region", {}) for fold in folds]
    if of_folds[0]:
        figures["by_region"] = {
            region: {"dice": mean_and_deviation([fold.get(region, {}).get("dice") for fold in of_folds])}
            for region in of_folds[0]
        }
    return PointEvidence(Path(folder), patients, {"held_out": figures}, len(folds) > 1, scores)
