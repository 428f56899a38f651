"""Both networks in the planes of a scan, and the suspicions that all planes share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.data.labels import outline_of
from tumorlens.pipeline.case import Case, prepare_slices, share_time
from tumorlens.pipeline.gate import Scores, Screening
from tumorlens.pipeline.measurements.brain import BrainRegion, find_brain
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.volumes.planes import PlaneAnswer, fuse, is_isotropic, on_grid, slices_across, step_of
from tumorlens.pipeline.volumes.rule import Suspicion, suspicions_of
from tumorlens.segmentation.postprocess import threshold_u8
from tumorlens.segmentation.predict import Segmenter

# Smaller connected lesions of a volume count as noise: a ball of 5.8 mm. In a volume kept out of training (BraTS) the 6
# of 18 pieces below it were all false. A higher limit would drop more of those, and small tumors with them.
MIN_LESION_MM3 = 100.0

# In the other planes the classifier sees every n-th of the segmenter's slices: it only says how likely a tumor is.
_CLASSIFIED = 2
_UNSEEN = np.float32(np.nan)  # probability in slices that the classifier did not see

Answers = list[PlaneAnswer]  # of each plane; the first is the plane in which the scan was prepared


def ask_planes(
    cases: Sequence[Case],
    scores: Sequence[Scores],
    screenings: Sequence[Screening],
    classifier: Classifier,
    segmenter: Segmenter,
) -> list[Answers]:
    """What the networks say of the suspicious slices of each scan. The slices of all scans share batches.

    Near isotropic volumes with a suspicion are then cut in the two other planes, where it lies.

    Args:
        cases: The prepared scans.
        scores: The classifier's answer for each.
        screenings: The slices of each that go on to the segmenter.
        classifier: Stage one.
        segmenter: Stage two.
    """
    begun = time.perf_counter()
    channels = [segmenter.channel_of(outline_of(one.sequence[0] if one.sequence else None)) for one in scores]
    steps = [step_of(case.scan) if is_isotropic(case.measured) else None for case in cases]
    slices = [
        {int(k): case.slice_at(int(k), segmenter.input_size) for k in on_grid(one.suspicious, step or 1)}
        for case, one, step in zip(cases, screenings, steps, strict=True)
    ]
    counts = [len(of_scan) for of_scan in slices]
    images = [p.image for of_scan in slices for p in of_scan.values()]
    every = [channel for channel, n in zip(channels, counts, strict=True) for _ in range(n)]
    drawn: tuple[Any, Any] = segmenter.predict_parts(np.stack(images), every) if images else ([], [])
    ends = np.cumsum(counts)[:-1]
    maps, regions = (np.split(part, ends) for part in drawn)
    answers = []
    for case, one, step, of_scan, own, parts in zip(cases, scores, steps, slices, maps, regions, strict=True):
        probabilities = np.where(case.used[:, None], one.probabilities, _UNSEEN)
        answers.append([PlaneAnswer.of_slices(case.scan, of_scan, own, parts, probabilities, step or 1)])
    share_time("segment", time.perf_counter() - begun, cases, counts)
    for case, of_case, step, channel in zip(cases, answers, steps, channels, strict=True):
        if step and of_case[0].maps:
            begun = time.perf_counter()
            of_case += _ask_other_planes(case, of_case[0], channel, classifier, segmenter)
            case.timings_s["segment"] += time.perf_counter() - begun
    return answers


def _ask_other_planes(
    case: Case, first: PlaneAnswer, channel: int, classifier: Classifier, segmenter: Segmenter
) -> Answers:
    """The answers in the two other planes of a volume, the second of them where the first two agree on a suspicion."""
    answers = [first]
    threshold = threshold_u8(segmenter.mask_threshold)
    for axis in (a for a in range(3) if a != case.scan.slice_axis):
        across = case.scan.in_plane(axis)
        indices = slices_across(axis, answers, segmenter.input_size, threshold, MIN_LESION_MM3)
        slices = prepare_slices(across, segmenter.input_size, indices)
        probabilities = np.full((across.n_slices, len(classifier.classes)), _UNSEEN)
        drawn: tuple[Any, Any] = [], []
        if slices:
            images = np.stack([p.image for p in slices.values()])
            drawn = segmenter.predict_parts(images, [channel] * len(slices))
            seen = list(slices)[::_CLASSIFIED]
            to_classify = slices
            if segmenter.input_size != classifier.input_size:
                to_classify = prepare_slices(across, classifier.input_size, np.array(seen))
            probabilities[seen] = classifier.predict(np.stack([to_classify[k].image for k in seen]))
        answers.append(PlaneAnswer.of_slices(across, slices, *drawn, probabilities, step_of(across)))
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


def find_suspicions(case: Case, answers: Answers, segmenter: Segmenter) -> Findings:
    """The pieces of the fused map on the scan's own grid that lie in the brain, and what the rule knows of each.

    Args:
        case: The prepared scan.
        answers: Of each plane.
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


def paint_regions(mask: NDArray[np.uint8], answers: Answers, segmenter: Segmenter) -> NDArray[np.uint8] | None:
    """The value of each voxel's region, 0 outside of the mask; None where the segmenter tells no regions apart.

    The maps of a region are fused like those of the whole lesion, one region after the other.

    Args:
        mask: The final mask, 0 and 1, in the scan's array order.
        answers: Of each plane.
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
