"""Both networks in the other planes of a volume, and the suspicions that all planes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.pipeline.case import Case, prepare_slices
from tumorlens.pipeline.measurements.brain import BrainRegion, find_brain
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.volumes.planes import PlaneAnswer, fuse, slices_across, step_of
from tumorlens.pipeline.volumes.rule import Suspicion, suspicions_of
from tumorlens.segmentation.postprocess import threshold_u8
from tumorlens.segmentation.predict import Segmenter

# Smaller connected lesions of a volume count as noise: a ball of 5.8 mm. In a volume kept out of training (BraTS) the 6
# of 18 pieces below it were all false. A higher limit would drop more of those, and small tumors with them.
MIN_LESION_MM3 = 100.0

# In the other planes the classifier sees every n-th of the segmenter's slices: it only says how likely a tumor is.
_CLASSIFIED = 2


def ask_other_planes(
    case: Case,
    first: PlaneAnswer,
    segmenter: Segmenter,
    classifier: Classifier,
    channel: int = 0,
) -> list[PlaneAnswer]:
    """What the networks say in the two other planes, the second of them where the first two agree on a suspicion.

    Args:
        case: A near isotropic volume.
        first: The answer in its plane of acquisition.
        segmenter: Stage two.
        classifier: Stage one.
        channel: Of the segmenter, see `segmentation.predict.Segmenter.channel_of`.
    """
    answers = [first]
    threshold = threshold_u8(segmenter.mask_threshold)
    for axis in (a for a in range(3) if a != case.scan.slice_axis):
        across = case.scan.in_plane(axis)
        indices = slices_across(axis, answers, segmenter.input_size, threshold, MIN_LESION_MM3)
        slices = prepare_slices(across, segmenter.input_size, indices)
        unseen = np.full((across.n_slices, len(classifier.classes)), np.nan, np.float32)
        answer = PlaneAnswer(across, {}, unseen, step_of(across))
        if slices:
            images = np.stack([p.image for p in slices.values()])
            maps, parts = segmenter.predict_parts(images, [channel] * len(slices))
            answer.maps.update({k: (m, p.placement) for (k, p), m in zip(slices.items(), maps, strict=True)})
            answer.regions.update(zip(slices, parts, strict=True))
            seen = list(slices)[::_CLASSIFIED]
            if segmenter.input_size != classifier.input_size:
                slices = prepare_slices(across, classifier.input_size, np.array(seen))
            answer.probabilities[seen] = classifier.predict(np.stack([slices[k].image for k in seen]))
        answers.append(answer)
    return answers[1:]


@dataclass(frozen=True)
class Findings:
    """What all planes together suspect in a scan.

    Attributes:
        numbers: The number of each voxel's piece of the fused map, 0 outside, in the scan's array order. The largest
            piece has number 1.
        fused: The map, 255 is certain, see `pipeline.volumes.planes.fuse`.
        suspicions: What the rule for volumes knows of the pieces; empty for a picture.
        no_brain: Why it is not known where the brain lies, so that pieces anywhere count; None where it is known, or
            nothing is suspected.
    """

    numbers: NDArray[np.uint16]
    fused: NDArray[np.uint8]
    suspicions: list[Suspicion]
    no_brain: str | None = None


def find_suspicions(case: Case, answers: Sequence[PlaneAnswer], segmenter: Segmenter) -> Findings:
    """The pieces of the fused map on the scan's own grid that lie in the brain, and what the rule knows of each.

    Args:
        case: The prepared scan.
        answers: Of each plane; the first is the plane of acquisition.
        segmenter: Stage two, which made the maps.
    """
    fused = fuse(answers, segmenter.input_size)
    numbers = number_lesions(fused >= threshold_u8(segmenter.mask_threshold), case.measured, MIN_LESION_MM3)
    if case.scan.n_slices == 1 or not numbers.any():
        return Findings(numbers, fused, [])
    brain = find_brain(case.measured)
    if isinstance(brain, BrainRegion):
        numbers = _inside(numbers, brain.mask)
    suspicions = suspicions_of(numbers, fused, answers, case.head_px)
    return Findings(numbers, fused, suspicions, brain if isinstance(brain, str) else None)


def paint_regions(
    mask: NDArray[np.uint8], answers: Sequence[PlaneAnswer], segmenter: Segmenter
) -> NDArray[np.uint8] | None:
    """The value of each voxel's region, 0 outside of the mask; None where the segmenter tells no regions apart.

    The maps of a region are fused like those of the whole lesion, one region after the other.

    Args:
        mask: The final mask, 0 and 1, in the scan's array order.
        answers: Of each plane; the first is the plane of acquisition.
        segmenter: Stage two, which made the maps.
    """
    channels = range(len(segmenter.regions))
    fused = (fuse([answer.of_region(k) for answer in answers], segmenter.input_size) for k in channels)
    return segmenter.paint(mask, fused)


def _inside(numbers: NDArray[np.uint16], region: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """The pieces of which at least half lies in a region, numbered anew, and whole: the border cuts no lesion."""
    sizes = np.bincount(numbers.ravel())
    kept = np.bincount(numbers[region], minlength=len(sizes)) >= sizes / 2
    kept[0] = False
    renumber = np.zeros(len(sizes), np.uint16)
    renumber[kept] = np.arange(1, kept.sum() + 1)
    return renumber[numbers]
