"""Reasons why a person should look at a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES, NO_TUMOR, TUMOR
from tumorlens.data.plotting import plain
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.gate import OPERATING_POINT, Verdict
from tumorlens.pipeline.measurements.lesions import LOW_CONFIDENCE, Lesion

_SMALL_PX = 48  # the models never saw fewer pixels along a side


def reasons_to_review(
    case: Case,
    verdict: Verdict,
    lesions: Sequence[Lesion],
    threshold: float | None = None,
    problem: str | None = None,
) -> list[str]:
    """Reasons why a person should look at a scan: doubts about the answer and flaws of the scan.

    Args:
        case: The prepared scan.
        verdict: The decision about it.
        lesions: The lesions of its mask.
        threshold: The user's own threshold, or None.
        problem: Why an explanation could not be drawn, or None.
    """
    if verdict.refused:
        return [f"refused: {verdict.doubt}; --force judges it all the same", *_flaws(case)]
    reasons = [f"{verdict.doubt}; judged all the same, as --force asked"] if verdict.doubt else []
    reasons += _flaws(case)
    if threshold is not None and verdict.positive != (1 - verdict.probabilities[NO_TUMOR] >= OPERATING_POINT):
        reasons.append(f"labeled by your threshold {threshold:g}")
    if verdict.label == TUMOR:
        reasons.append("type of tumor uncertain")
    if verdict.possible is not None and verdict.possible.sum() > 1:
        names = ", ".join(plain(name) for name, inside in zip(CLASSES, verdict.possible, strict=True) if inside)
        reasons.append(f"cannot be told apart at 95 %: {names}")
    if verdict.confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({verdict.confidence:.2f})")
    doubtful = [lesion for lesion in lesions if lesion.doubtful]
    if doubtful and case.scan.n_slices > 1:
        named = ", ".join(f"{lesion.number} ({lesion.confidence:.2f})" for lesion in doubtful)
        reasons.append(f"doubtful of {len(lesions)} lesions: {named}")
    if verdict.positive and not lesions:
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
