"""Whether a scan is one that the models can judge at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES, NO_TUMOR

REFUSED = "refused"  # the label of a scan that is not judged


def reason_to_refuse(has_head: bool, strangeness: NDArray[np.float32] | None, limit: float | None) -> str | None:
    """Why a scan is taken for something else than an MRI of the brain, or none.

    Args:
        has_head: Whether a head stands out from the background in any slice.
        strangeness: ``(n,)`` score of the judged slices, see `classification.refusal`; none for weights without one.
        limit: The highest score of a brain slice. A volume is refused where more than half of its slices lie above,
            for the first and last ones of a head often do.
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


# A lesion shows in neighbouring slices, a vessel or an artefact in few. Over this many mm, and at least two slices, the
# slices' mean tumor probability has to reach the threshold. Chosen on volumes out of training (docs/experiments.md).
WINDOW_MM = 8.0

# Headers often say 1 mm where the true spacing was lost: the window is at most this share of the judged slices.
_MAX_WINDOW_SHARE = 1 / 8


@dataclass(frozen=True)
class Verdict:
    """What the classifier says of a scan.

    Attributes:
        label: The scan's class.
        probabilities: ``(4,)``, in the order of `data.labels.CLASSES`.
        positive: ``(n_slices,)`` bool: the slices that go on to the segmenter.
    """

    label: str
    probabilities: NDArray[np.float32]
    positive: NDArray[np.bool_]


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

    A window, `WINDOW_MM` thick, slides over the slices. The scan's tumor probability is the highest mean of a window,
    and the scan is positive where that reaches the threshold. Positive slices are those that reach the threshold
    themselves and lie in a window whose mean does. The type is the likeliest one on average over the positive slices.

    Args:
        probabilities_nc: ``(n_slices, 4)``; rows of unused slices do not matter.
        used: ``(n_slices,)`` bool: slices that show enough of the head to be judged.
        threshold: As in `judge_slice`.
        slice_spacing_mm: Distance of neighbouring slices, or none.
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
    scan = np.concatenate([[1 - p_tumor], p_tumor * share]).astype(np.float32)
    label = CLASSES[1 + int(share.argmax())] if positive.any() else CLASSES[NO_TUMOR]
    return Verdict(label, scan, positive)


def _window(n_used: int, n_slices: int, slice_spacing_mm: float | None) -> int:
    """Number of slices in the window."""
    wanted = 2 if not slice_spacing_mm else round(WINDOW_MM / slice_spacing_mm)
    return min(n_slices, max(2, min(wanted, int(n_used * _MAX_WINDOW_SHARE))))
