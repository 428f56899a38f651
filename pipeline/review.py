"""Reasons why a person should look at a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.data.labels import NO_TUMOR, SEQUENCES
from tumorlens.data.plotting import plain
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.gate import Scores, Verdict
from tumorlens.pipeline.measurements.lesions import LOW_CONFIDENCE, Lesion
from tumorlens.pipeline.measurements.midline import no_sides

_SMALL_PX = 48  # the models never saw fewer pixels along a side
_SURE = 0.9  # probability from which a sequence contradicts a header, and a slice the label of its volume
_MANY_SLICES = 3
_BY_HEADER = {"T1": ("t1", "t1c"), "T2": ("t2", "flair")}  # headers call FLAIR a T2
_BY_AGENT = {True: ("t1c", "t2", "flair"), False: ("t1", "t2", "flair")}  # agent shows in T1 only


def reasons_to_review(
    case: Case,
    scores: Scores,
    verdict: Verdict,
    lesions: Sequence[Lesion],
    threshold: float | None = None,
) -> list[str]:
    """Reasons why a person should look at a scan: doubts about the answer and flaws of the scan.

    Args:
        case: The prepared scan.
        scores: The classifier's answer for it.
        verdict: The decision about it.
        lesions: The lesions of its mask.
        threshold: The user's own threshold, or None.
    """
    flaws = [*_flaws(case), *_sequence_doubts(case, scores.sequence)]
    if verdict.refused:
        return [f"refused: {verdict.doubt}; --force judges it all the same", *flaws]
    reasons = [f"{verdict.doubt}; judged all the same, as --force asked"] if verdict.doubt else []
    reasons += flaws
    if threshold is not None and verdict.positive != (1 - verdict.probabilities[NO_TUMOR] >= THRESHOLD):
        reasons.append(f"labeled by your threshold {threshold:g}")
    if verdict.classes.is_uncertain(verdict.label):
        reasons.append("type of tumor uncertain")
    if verdict.possible is not None and verdict.possible.sum() > 1:
        names = ", ".join(
            plain(name) for name, inside in zip(verdict.classes.names, verdict.possible, strict=True) if inside
        )
        reasons.append(f"cannot be told apart at 95 %: {names}")
    if verdict.confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({verdict.confidence:.2f})")
    doubtful = [lesion for lesion in lesions if lesion.doubtful]
    if doubtful and case.scan.n_slices > 1:
        named = ", ".join(f"{lesion.number} ({lesion.confidence:.2f})" for lesion in doubtful)
        reasons.append(f"doubtful of {len(lesions)} lesions: {named}")
    if verdict.positive and not lesions:
        reasons.append("classifier positive but mask empty")
    if any(lesion.centroid_ras_mm and lesion.side is None for lesion in lesions) and (reason := no_sides()):
        reasons.append(reason)
    tumor = 1 - scores.probabilities[case.used, NO_TUMOR]
    sick = int((tumor >= _SURE).sum())
    if not verdict.positive and case.scan.n_slices > 1 and sick >= _MANY_SLICES:
        reasons.append(f"{sick} slices look like a tumor (up to {tumor.max():.2f}), but no lesion is sure enough")
    return reasons


def _flaws(case: Case) -> list[str]:
    """Flaws of the scan itself, whatever it shows."""
    scan = case.scan
    reasons = list(scan.warnings)
    rows, columns = scan.slice(0).shape[:2]
    if min(rows, columns) < _SMALL_PX:
        reasons.append(f"slices of {rows} x {columns} pixels are too small to judge")
    if case.size_doubt:
        reasons.append(case.size_doubt)
    if scan.volume and scan.spacing_mm is None and not case.size_doubt:
        reasons.append("the file says nothing of size and orientation, so slices may be turned or stretched")
    elif scan.volume and scan.affine is None:
        reasons.append("the file says nothing of orientation, so slices may be turned, and no side is known")
    if _has_two_levels(scan.voxels):
        reasons.append("only two gray levels, perhaps a mask")
    if not any(p is not None and p.head_fraction > 0 for p in case.prepared):
        reasons.append("no head found")
    return reasons


def _sequence_doubts(case: Case, sequence: tuple[str, float] | None) -> list[str]:
    """What a DICOM header says that the picture contradicts, or that the models do not know."""
    if case.scan.dicom is None:
        return []
    weighting, contrast = (case.scan.dicom.facts[name] for name in ("weighting", "contrast_agent"))
    if sequence is None:
        return _other_than_t1c(weighting, contrast)
    if weighting not in (None, *_BY_HEADER):
        return [f"the header's weighting is {weighting}; the models know T1, T2 and FLAIR"]
    name, probability = sequence
    by_header = {
        name for name in _BY_HEADER.get(weighting, SEQUENCES) if contrast is None or name in _BY_AGENT[contrast]
    }
    if name in by_header or probability < _SURE:
        return []
    agent = {True: " after contrast agent", False: " without contrast agent", None: ""}[contrast]
    return [f"the header says {weighting or 'MR'}{agent}, but the picture looks like {name} ({probability:.2f})"]


def _other_than_t1c(weighting: str | None, contrast: bool | None) -> list[str]:
    """A warning of scans that models of one sequence do not know."""
    if weighting not in (None, "T1"):
        return [f"the header's weighting is {weighting}; the models know T1 after contrast agent"]
    if contrast is None:  # the standard requires the agent in the header whenever one was given
        return ["the header names no contrast agent; the models know tumors in T1 after contrast agent"]
    if not contrast:
        return ["the header says that no contrast agent was given; the models know tumors in T1 after contrast agent"]
    return []


def _has_two_levels(voxels: NDArray[Any]) -> bool:
    return bool(((voxels == voxels.min()) | (voxels == voxels.max())).all())
