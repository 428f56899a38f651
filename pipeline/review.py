"""Reasons why a person should look at a scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES
from tumorlens.data.plotting import plain
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.gate import Verdict
from tumorlens.pipeline.result import LOW_CONFIDENCE

_SMALL_PX = 48  # the models never saw fewer pixels along a side


def reasons_to_review(
    case: Case, verdict: Verdict, mask: NDArray[np.uint8], prediction_set: list[str], problem: str | None = None
) -> list[str]:
    """Reasons why a person should look at a scan: doubts about the answer and flaws of the scan.

    Args:
        case: The prepared scan.
        verdict: The gate's decision about it.
        mask: In the scan's array order.
        prediction_set: The classes that remain possible.
        problem: Why an explanation could not be drawn, or None.
    """
    if verdict.refused:
        return [f"refused: {verdict.doubt}; --force judges it all the same", *_flaws(case)]
    reasons = [f"{verdict.doubt}; judged all the same, as --force asked"] if verdict.doubt else []
    reasons += _flaws(case)
    if len(prediction_set) > 1:
        reasons.append(f"cannot be told apart at 95 %: {', '.join(plain(name) for name in prediction_set)}")
    confidence = float(verdict.probabilities[CLASSES.index(verdict.label)])
    if confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({confidence:.2f})")
    if verdict.positive.any() and not mask.any():
        reasons.append("classifier positive but mask empty")
    if problem is not None:
        reasons.append(f"no explanation: {problem}")
    return reasons


def _flaws(case: Case) -> list[str]:
    """Flaws of the scan itself, whatever it shows."""
    scan = case.scan
    reasons = list(scan.warnings)
    rows, columns = scan.slice(0).shape[:2]
    if min(rows, columns) < _SMALL_PX:
        reasons.append(f"slices of {rows} x {columns} pixels are too small to judge")
    if scan.volume and scan.spacing_mm is None:
        reasons.append("the file says nothing of size and orientation, so slices may be turned or stretched")
    elif scan.volume and scan.affine is None:
        reasons.append("the file says nothing of orientation, so slices may be turned, and no side is known")
    if _has_two_levels(scan.voxels):
        reasons.append("only two gray levels, perhaps a mask")
    if not any(p is not None and p.head_fraction > 0 for p in case.prepared):
        reasons.append("no head found")
    return reasons


def _has_two_levels(voxels: NDArray[Any]) -> bool:
    return bool(((voxels == voxels.min()) | (voxels == voxels.max())).all())
