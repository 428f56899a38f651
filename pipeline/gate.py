"""The gate: which scans are refused, which are positive, and which of their slices the segmenter sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.pipeline.case import Case

REFUSED = "refused"  # the label of a scan that is not judged

# A lesion shows in neighboring slices, a vessel or an artifact in few. The mean tumor probability over this many mm,
# and over at least two slices, has to reach the threshold. Chosen on volumes outside training
# (docs/notebook/experiments.md).
WINDOW_MM = 8.0

# Headers often say 1 mm where the true spacing was lost: the window is at most this share of the judged slices.
_MAX_WINDOW_SHARE = 1 / 8


@dataclass(frozen=True)
class Scores:
    """The classifier's answer for the slices of a scan.

    Attributes:
        probabilities: ``(n_slices, 4)``, in the order of `data.labels.CLASSES`; slices that are not judged count as
            free of tumor.
        strangeness: ``(n_judged,)`` score of the judged slices, see `classification.refusal`; None for weights that
            have no such score.
    """

    probabilities: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None


@dataclass(frozen=True)
class Verdict:
    """The decision about a scan.

    Attributes:
        label: The scan's class, or `REFUSED`.
        probabilities: ``(4,)``, in the order of `data.labels.CLASSES`; all 0 for a refused scan.
        positive: ``(n_slices,)`` bool: the slices that go on to the segmenter.
        doubt: Why the scan may not be an MRI of the brain, or None.
    """

    label: str
    probabilities: NDArray[np.float32]
    positive: NDArray[np.bool_]
    doubt: str | None = None

    @property
    def refused(self) -> bool:
        """Whether the scan is not judged."""
        return self.label == REFUSED


def judge(
    case: Case, scores: Scores, threshold: float, strangeness_limit: float | None, force: bool = False
) -> Verdict:
    """Verdict on a scan: refused where it does not look like an MRI of the brain, else judged as a picture or a volume.

    Args:
        case: The prepared scan.
        scores: The classifier's answer for it.
        threshold: Tumor probability from which a slice is positive.
        strangeness_limit: The highest score of a brain slice, or None for weights that have no such score.
        force: Judge the scan even if it does not look like an MRI of the brain.
    """
    scan = case.scan
    has_head = any(prepared.head_fraction > 0 for prepared in case.chosen)
    doubt = reason_to_refuse(has_head, scores.strangeness, strangeness_limit)
    if doubt and not force:
        return Verdict(REFUSED, np.zeros(len(CLASSES), np.float32), np.zeros(scan.n_slices, bool), doubt)
    if scan.n_slices == 1:
        verdict = judge_slice(scores.probabilities[0], threshold)
    else:
        spacing = None if scan.spacing_mm is None else scan.spacing_mm[scan.slice_axis]
        verdict = judge_volume(scores.probabilities, case.used, threshold, spacing)
    return replace(verdict, doubt=doubt)


def reason_to_refuse(has_head: bool, strangeness: NDArray[np.float32] | None, limit: float | None) -> str | None:
    """Why a scan does not look like an MRI of the brain, or None if it does.

    Args:
        has_head: Whether a head stands out from the background in any slice.
        strangeness: ``(n,)`` score of the judged slices, see `classification.refusal`; None for weights that have no
            such score.
        limit: The highest score of a brain slice. A volume is refused where more than half of its slices lie above it,
            because the first and last slices of a head often do.
    """
    if not has_head:
        return "no head stands out from the background"
    if strangeness is None or limit is None or not len(strangeness):
        return None
    beyond = strangeness > limit
    if 2 * int(beyond.sum()) <= len(beyond):
        return None
    score = f"score {float(np.median(strangeness)):.2f}, at most {limit:.2f} in brains"
    if len(beyond) == 1:
        return f"does not look like an MRI of the brain ({score})"
    return f"{int(beyond.sum())} of {len(beyond)} slices do not look like an MRI of the brain ({score})"


def judge_slice(probabilities: NDArray[np.float32], threshold: float) -> Verdict:
    """Verdict on a single picture: positive from the threshold on, then the likeliest tumor type.

    Args:
        probabilities: ``(4,)``.
        threshold: Tumor probability (1 - p_no_tumor) from which the slice is positive.
    """
    positive = bool(1 - probabilities[NO_TUMOR] >= threshold)
    label = CLASSES[1 + int(probabilities[1:].argmax())] if positive else CLASSES[NO_TUMOR]
    return Verdict(label, probabilities, np.array([positive]))


def judge_volume(
    probabilities_nc: NDArray[np.float32],
    used: NDArray[np.bool_],
    threshold: float,
    slice_spacing_mm: float | None = None,
) -> Verdict:
    """Verdict on a volume.

    A window of `WINDOW_MM` slides over the slices. The scan's tumor probability is the highest mean of a window, and
    the scan is positive where that reaches the threshold. A slice is positive where it reaches the threshold itself and
    lies in a window whose mean does. The type is the likeliest one on average over the positive slices.

    Args:
        probabilities_nc: ``(n_slices, 4)``; rows of unused slices do not matter.
        used: ``(n_slices,)`` bool: slices that show enough of the head to be judged.
        threshold: As in `judge_slice`.
        slice_spacing_mm: Distance between neighboring slices, or None.
    """
    tumor = np.where(used, 1 - probabilities_nc[:, NO_TUMOR].astype(np.float64), 0.0)
    width = _window(int(used.sum()), len(used), slice_spacing_mm)
    means = np.lib.stride_tricks.sliding_window_view(tumor, width).mean(axis=1)
    starts = np.flatnonzero(means >= threshold)
    inside = np.zeros(len(used), bool)
    inside[(starts[:, None] + np.arange(width)).ravel()] = True
    positive = used & inside & (tumor >= threshold)
    p_tumor = float(means.max())
    if not positive.any():
        p_tumor = min(p_tumor, float(np.nextafter(np.float32(threshold), np.float32(0))))
    weights = probabilities_nc[positive if positive.any() else used, 1:].sum(axis=0)
    share = weights / weights.sum() if weights.sum() else np.full(len(CLASSES) - 1, 1 / (len(CLASSES) - 1))
    probabilities = np.concatenate([[1 - p_tumor], p_tumor * share]).astype(np.float32)
    label = CLASSES[1 + int(share.argmax())] if positive.any() else CLASSES[NO_TUMOR]
    return Verdict(label, probabilities, positive)


def _window(n_used: int, n_slices: int, slice_spacing_mm: float | None) -> int:
    """Number of slices in the window."""
    width = 2 if not slice_spacing_mm else round(WINDOW_MM / slice_spacing_mm)
    return min(n_slices, max(2, min(width, int(n_used * _MAX_WINDOW_SHARE))))
