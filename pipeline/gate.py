"""The gate between the stages, and the rule that makes one label of a volume's many slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.labels import CLASSES, NO_TUMOR

# A lesion shows in neighbouring slices, a bright vessel or an artefact mostly in one. Over this many mm the slices'
# tumor probabilities are averaged before the threshold is applied; at least three slices.
WINDOW_MM = 9.0


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

    The tumor probability of each slice is averaged with its neighbours' over `WINDOW_MM`; the scan is positive where
    the highest average reaches the threshold. Positive slices are those that reach the threshold themselves and lie
    in a window that does. The type is the likeliest one on average over the positive slices.

    Args:
        probabilities_nc: ``(n_slices, 4)``; rows of unused slices do not matter.
        used: ``(n_slices,)`` bool: slices that show enough of the head to be judged.
        threshold: As in `judge_slice`.
        slice_spacing_mm: Distance of neighbouring slices, or none.
    """
    tumor = np.where(used, 1 - probabilities_nc[:, NO_TUMOR], 0.0)
    average = _window_mean(tumor, used, _window(slice_spacing_mm))
    positive = used & (tumor >= threshold) & (average >= threshold)
    p_tumor = float(average.max(initial=0.0))
    if not positive.any():
        p_tumor = min(p_tumor, float(np.nextafter(np.float32(threshold), np.float32(0))))
        weights = probabilities_nc[used, 1:] if used.any() else np.ones((1, len(CLASSES) - 1))
    else:
        weights = probabilities_nc[positive, 1:]
    share = weights.sum(axis=0) / max(float(weights.sum()), 1e-9)
    scan = np.concatenate([[1 - p_tumor], p_tumor * share]).astype(np.float32)
    label = CLASSES[1 + int(share.argmax())] if positive.any() else CLASSES[NO_TUMOR]
    return Verdict(label, scan, positive)


def _window(slice_spacing_mm: float | None) -> int:
    """An odd number of slices, three at least."""
    wanted = 3 if not slice_spacing_mm else round(WINDOW_MM / slice_spacing_mm)
    return max(3, wanted | 1)


def _window_mean(values: NDArray[np.float64], used: NDArray[np.bool_], window: int) -> NDArray[np.float64]:
    """Mean over the used slices of a centred window. Beyond the ends of the scan counts as not used, but at least
    three slices are averaged over, so that one slice at the rim cannot speak for itself."""
    kernel = np.ones(window)
    total = np.convolve(np.where(used, values, 0.0), kernel, mode="same")[: len(values)]
    count = np.convolve(used.astype(float), kernel, mode="same")[: len(values)]
    return total / np.maximum(count, min(3, max(1, int(used.sum()))))
