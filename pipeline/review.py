"""Why a person should look at a scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.gate import Verdict
from tumorlens.pipeline.result import LOW_CONFIDENCE

_SMALL_PX = 48  # the models never saw so few pixels a side


def review_verdict(case: Case, verdict: Verdict, mask: NDArray[np.uint8], possible: list[str]) -> list[str]:
    """Doubts about a scan that was judged.

    Args:
        case: The scan.
        verdict: What the gate says of it.
        mask: In the scan's array order.
        possible: The classes that cannot be told apart.
    """
    reasons = review_scan(case)
    if len(possible) > 1:
        reasons.append(f"cannot be told apart at 95 %: {', '.join(name.replace('_', ' ') for name in possible)}")
    confidence = float(verdict.probabilities[CLASSES.index(verdict.label)])
    if confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({confidence:.2f})")
    if verdict.positive.any() and not mask.any():
        reasons.append("classifier positive but mask empty")
    return reasons


def review_scan(case: Case) -> list[str]:
    """What is wrong with the scan itself, whatever is in it."""
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
        reasons.append("only two grey levels, perhaps a mask")
    if not any(p is not None and p.head_fraction > 0 for p in case.prepared):
        reasons.append("no head found")
    return reasons


def _has_two_levels(voxels: NDArray[Any]) -> bool:
    return bool(((voxels == voxels.min()) | (voxels == voxels.max())).all())
