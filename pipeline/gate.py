"""The gate: which scans are refused, which slices the segmenter sees, and the label of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.sequence import likeliest_sequence
from tumorlens.data.labels import NO_TUMOR, SHIPPED_CLASSES, TUMOR, ClassList
from tumorlens.pipeline.case import Case

Possible = Callable[[NDArray[np.float32], int], NDArray[np.bool_] | None]
REFUSED = "refused"  # the label of a scan that is not judged
_DIGITS = 6  # of a probability: what is printed is what decides, so that the two cannot contradict each other

# The segmenter sees the slices of a volume from this tumor probability on, and those within a reach of them: the rule
# for volumes decides later, with the neighbors and the mask. A lesion's ends are fainter than its middle.
_SUSPICION = 0.3
_REACH_MM = 4.0

# A type is uncertain where so many remain possible, and the likeliest has less than this share of the tumor
# probability. Of BRISC's tumors 0.4 % are then unnamed, of other sources' 4 to 10 %, most of which would get a wrong
# name.
_MANY_TYPES = 2
_SURE_SHARE = 0.7


@dataclass(frozen=True)
class Scores:
    """The classifier's answer for the slices of a scan.

    Attributes:
        probabilities: ``(n_slices, c)`` of all classes; slices that are not judged count as
            free of tumor.
        strangeness: ``(n_judged,)`` score of the judged slices, see `classification.refusal`; None for weights that
            have no such score.
        sequences: ``(n_judged, 4)`` probability of each of `data.labels.SEQUENCES`; None for weights that do not name
            them.
    """

    probabilities: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None
    sequences: NDArray[np.float32] | None = None

    @property
    def sequence(self) -> tuple[str, float] | None:
        """The sequence of the scan and its probability."""
        return None if self.sequences is None else likeliest_sequence(self.sequences)


@dataclass(frozen=True)
class Screening:
    """What the classifier alone decides about a scan.

    Attributes:
        suspicious: ``(n_slices,)`` bool: the slices that the segmenter has to draw.
        refused: Whether the scan is not judged.
        doubt: Why the scan may not be an MRI of the brain, or None.
    """

    suspicious: NDArray[np.bool_]
    refused: bool = False
    doubt: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The decision about a scan.

    Attributes:
        label: The scan's class, `data.labels.TUMOR` where the type is uncertain, or `REFUSED`.
        probabilities: ``(c,)`` of all classes; all 0 for a refused scan. They have six decimals
            and sum to 1.
        positive: Whether the label is a tumor.
        possible: ``(c,)`` bool: the classes that remain possible; None for weights without such figures.
        doubt: Why the scan may not be an MRI of the brain, or None.
        classes: The classes of the probabilities.
    """

    label: str
    probabilities: NDArray[np.float32]
    positive: bool = False
    possible: NDArray[np.bool_] | None = None
    doubt: str | None = None
    classes: ClassList = SHIPPED_CLASSES

    @property
    def refused(self) -> bool:
        """Whether the scan is not judged."""
        return self.label == REFUSED

    @property
    def likeliest(self) -> int:
        """The index of the class that the label stands for: the likeliest type of a tumor."""
        return 1 + int(self.probabilities[1:].argmax()) if self.positive else NO_TUMOR

    @property
    def confidence(self) -> float:
        """Probability of the label: of any tumor where the type is uncertain."""
        if self.label == TUMOR:
            return float(1 - self.probabilities[NO_TUMOR])
        return float(self.probabilities[self.likeliest])


def screen(
    case: Case, scores: Scores, threshold: float, strangeness_limit: float | None, force: bool = False
) -> Screening:
    """Whether a scan looks like an MRI of the brain, and which of its slices may show a tumor.

    Args:
        case: The prepared scan.
        scores: The classifier's answer for it.
        threshold: Tumor probability from which a picture is positive.
        strangeness_limit: The highest score of a brain slice, or None for weights that have no such score.
        force: Judge the scan even if it does not look like an MRI of the brain.
    """
    scan = case.scan
    has_head = any(prepared.head_fraction > 0 for prepared in case.chosen)
    doubt = reason_to_refuse(has_head, scores.strangeness, strangeness_limit)
    if doubt and not force:
        return Screening(np.zeros(scan.n_slices, bool), True, doubt)
    tumor = 1 - scores.probabilities[:, NO_TUMOR]
    if scan.n_slices == 1:
        return Screening(np.array([as_printed(tumor[0]) >= threshold]), doubt=doubt)
    hot = case.used & (tumor >= min(_SUSPICION, threshold))
    spacing_mm = case.measured.spacing_mm
    spacing = None if spacing_mm is None else spacing_mm[scan.slice_axis]
    reach = 1 if not spacing else max(1, round(_REACH_MM / spacing))
    near = np.convolve(hot, np.ones(2 * reach + 1), mode="full")[reach : reach + len(hot)] > 0.5
    return Screening(near & case.used, doubt=doubt)


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


def as_printed(probability: float | np.floating) -> float:
    """The probability with the digits that are printed."""
    return round(float(probability), _DIGITS)


def judge(
    p_tumor: float,
    types: NDArray[np.floating],
    threshold: float,
    possible: Possible,
    doubt: str | None = None,
    classes: ClassList = SHIPPED_CLASSES,
) -> Verdict:
    """Verdict on a scan that is not refused: tumor from the threshold on, then its type.

    The probabilities are rounded first and decide afterwards. With a threshold of 0.5, the label is ``no_tumor`` if and
    only if ``p_no_tumor`` is printed as more than 0.5, and a type that is named is the likeliest class.

    Args:
        p_tumor: Tumor probability of the picture, or that of the volume by its rule.
        types: ``(c - 1,)`` how likely the tumor types are, on any scale.
        threshold: Tumor probability from which the scan is positive.
        possible: From probabilities and the index of the label to the classes that remain possible, or None.
        doubt: Why the scan may not be an MRI of the brain, or None.
        classes: The classes. Where "no tumor" is not among the answers, every scan is positive.
    """
    known = types if types.sum() > 0 else np.ones(len(classes.tumors))
    p_tumor = p_tumor if classes.gate else 1.0
    p_tumor = as_printed(p_tumor)
    # Rounding the sums and not the parts keeps the total.
    ends = np.round(p_tumor * np.cumsum(known, dtype=np.float64) / known.sum(dtype=np.float64), _DIGITS)
    probabilities = np.round([1 - p_tumor, *np.diff(ends, prepend=0.0)], _DIGITS).astype(np.float32)
    positive = p_tumor >= threshold
    likeliest = 1 + int(probabilities[1:].argmax()) if positive else NO_TUMOR
    remaining = possible(probabilities, likeliest)
    label = TUMOR if positive and is_type_uncertain(probabilities, remaining) else classes.names[likeliest]
    return Verdict(label, probabilities, bool(positive), remaining, doubt, classes)


def is_type_uncertain(probabilities: NDArray[np.float32], possible: NDArray[np.bool_] | None) -> bool:
    """Whether a tumor is called a tumor only, because it may be of a type that the classes lack, such as a metastasis.

    Args:
        probabilities: ``(c,)``.
        possible: ``(c,)`` the classes that remain possible, or None where that is not known.
    """
    many = possible is not None and int(possible[1:].sum()) >= _MANY_TYPES
    likeliest = float(probabilities[1:].max())
    divided = likeliest < _SURE_SHARE * float(probabilities[1:].sum())
    return (many and divided) or bool(likeliest <= probabilities[NO_TUMOR])
