"""The mask of a scan: what is sure enough of all that the networks suspect, and how large it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.pipeline.case import Case
from tumorlens.pipeline.measurements.lesions import Lesion, measure_lesions, slice_areas_px
from tumorlens.pipeline.measurements.regions import RegionSize, measure_regions
from tumorlens.pipeline.volumes.ask import Answers, Findings, paint_regions
from tumorlens.segmentation.predict import Segmenter


@dataclass(frozen=True)
class Measurements:
    """The mask of a scan and its measurements.

    Attributes:
        mask: uint8, 0 and 1, in the array order of the scan.
        lesions: Connected lesions, largest first.
        areas_px: ``(n_slices,)`` mask pixels of each slice.
        shown_slice: The slice in which the largest lesion is largest; without lesions, the middle of the judged slices.
        no_brain: See `pipeline.volumes.ask.Findings`.
        lesion_map: See `pipeline.result.Result`; None unless you ask for it.
        region_mask: See `pipeline.result.Result`.
        region_sizes: The size of each region.
    """

    mask: NDArray[np.uint8]
    lesions: list[Lesion]
    areas_px: NDArray[np.int64]
    shown_slice: int
    no_brain: str | None
    lesion_map: NDArray[np.uint8] | None
    region_mask: NDArray[np.uint8] | None
    region_sizes: list[RegionSize]


def measure(
    case: Case,
    findings: Findings,
    confidences: Sequence[float],
    threshold: float,
    answers: Answers,
    segmenter: Segmenter,
    maps: bool,
) -> Measurements:
    """The mask of the suspicions that are sure enough, and its measurements.

    Args:
        case: The prepared scan.
        findings: What the networks suspect in it.
        confidences: Of the suspicions, in the order of their numbers. Those without one do not count.
        threshold: The confidence from which a suspicion is a lesion.
        answers: The networks' maps, which tell the regions of lesions apart.
        segmenter: Stage two, which made them.
        maps: Keep the map of the whole lesion.
    """
    kept = [number for number, p in enumerate(confidences, start=1) if p >= threshold]
    renumber = np.zeros(int(findings.numbers.max()) + 1, np.uint16)
    renumber[kept] = np.arange(1, len(kept) + 1)
    numbers = renumber[findings.numbers]
    lesions = measure_lesions(numbers, case.measured, [confidences[number - 1] for number in kept])
    mask = (numbers != 0).astype(np.uint8)
    judged = np.flatnonzero(case.used)
    shown_slice = lesions[0].slice_index if lesions else int(judged[len(judged) // 2])
    region_mask = paint_regions(mask, answers, segmenter)
    return Measurements(
        mask,
        lesions,
        slice_areas_px(mask, case.scan),
        shown_slice,
        findings.no_brain if lesions else None,
        findings.fused if maps else None,
        region_mask,
        measure_regions(region_mask, segmenter.regions, numbers, case.measured, shown_slice),
    )
