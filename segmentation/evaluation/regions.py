"""Agreement of the regions of predicted lesions with the true ones: per slice, per scan and per patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import median, weighted_mean
from tumorlens.data.masks.regions import Regions
from tumorlens.segmentation.evaluation.metrics import SliceScores, slice_scores, volume_dice

# The scores of each region of a slice; empty where the truth tells no regions apart.
Regional = Mapping[str, SliceScores]


def region_scores(
    labels_hw: NDArray[np.uint8] | None, truth_hw: NDArray[np.uint8] | None, regions: Regions
) -> dict[str, SliceScores]:
    """The scores of each region of a slice.

    Args:
        labels_hw: Predicted, as `Regions.paint` makes it; None where the segmenter tells no regions apart.
        truth_hw: True, as bits; None where the truth does not.
        regions: The regions.
    """
    if labels_hw is None or truth_hw is None:
        return {}
    pairs = zip(regions.names, regions.planes(regions.bits(labels_hw)), regions.planes(truth_hw), strict=True)
    return {name: slice_scores(guess, truth) for name, guess, truth in pairs}


def region_dice(slices: Sequence[Regional]) -> dict[str, float]:
    """Dice of each region over all voxels of a scan, from the scores of its slices; two empty masks give 1."""
    dice = {}
    for name in slices[0] if slices else ():
        total = sum(one[name].truth_px + one[name].guess_px for one in slices)
        dice[name] = 2 * sum(one[name].overlap_px for one in slices) / total if total else 1.0
    return dice


def region_figures(cases: Sequence[Sequence[Regional]], patients: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of each region over scans, as ``regions``; empty where no truth tells regions apart.

    Args:
        cases: The scores of the slices of each scan; a picture has one slice.
        patients: Patient of each scan.
        seed: Of the bootstrap.

    Returns:
        Of each name ``n``, ``n_present`` (scans that truly show it), and with intervals ``dice_all``, ``dice_present``
        (of these) and its median; ``slices``: the same, and ``hd95_present`` in pixels, of all slices; ``patient``: the
        `volume_dice` of all slices.
    """
    known = [(case, patient) for case, patient in zip(cases, patients, strict=True) if case and case[0]]
    of_scan = [region_dice(case) for case, _ in known]
    scan_patients = [patient for _, patient in known]
    slice_patients = [patient for case, patient in known for _ in case]
    figures = {}
    for name in of_scan[0] if of_scan else ():
        slices = [one[name] for case, _ in known for one in case]
        in_scan = [any(one[name].truth_px for one in case) for case, _ in known]
        in_slice = np.array([one.truth_px > 0 for one in slices])
        figures[name] = {
            **_agreement([dice[name] for dice in of_scan], in_scan, scan_patients, seed),
            "slices": {
                **_agreement([one.dice for one in slices], in_slice, slice_patients, seed),
                "hd95_present": weighted_mean([one.hd95 for one in slices], in_slice, slice_patients, seed),
            },
            "patient": volume_dice(slices, slice_patients, seed),
        }
    return {"regions": figures} if figures else {}


def _agreement(dice: Sequence[float], present: Any, patients: Sequence[str], seed: int) -> dict[str, Any]:
    there = np.array(present, bool)
    return {
        "n": len(dice),
        "n_present": int(there.sum()),
        "dice_all": weighted_mean(dice, np.ones(len(dice)), patients, seed),
        "dice_present": weighted_mean(dice, there, patients, seed),
        "dice_present_median": median(np.array(dice), there, patients, seed),
    }
