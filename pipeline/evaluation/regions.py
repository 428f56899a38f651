"""The regions of lesions in the measurements of masks: their truth, the Dice of each, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import median, weighted_mean
from tumorlens.data.datasets.sample import Sample, open_cut
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import Regions
from tumorlens.data.masks.truth import read_regions, read_truth
from tumorlens.data.plotting import plain
from tumorlens.data.scan import Scan
from tumorlens.pipeline.evaluation.tables import Table, cell
from tumorlens.segmentation.evaluation.metrics import SliceScores, slice_scores, volume_dice

POLICY = (
    "; where a mask tells regions apart, a lesion is what lies in one of them, and each has a Dice of its own, by the "
    "same policy for empty masks"
)
_IN_ROWS = ("dice", "hd95", "truth_px", "guess_px")

# The scores of each region of a slice; empty where the truth tells no regions apart.
Regional = Mapping[str, SliceScores]


def true_regions(path: Path | None, scan: Scan, regions: Regions) -> NDArray[np.uint8] | None:
    """The true regions of a scan as bits, see `data.masks.truth.read_regions`; None where its mask tells none apart.

    Args:
        path: Its mask; None where there is no lesion.
        scan: The scan.
        regions: Of the segmenter.

    Raises:
        InputError: The mask cannot be read as a mask.
    """
    if path is None:
        return np.zeros(scan.voxels.shape if scan.volume else scan.voxels.shape[:2], np.uint8)
    lesion = read_truth(path, scan)
    try:
        bits = read_regions(path, scan, regions)
    except InputError:  # boxes, contours and gray levels are a lesion, and no regions
        return None
    return None if lesion.any() and not bits.any() else bits


class TrueRegions:
    """The true regions of slices. Those of a volume follow each other, so its mask is read once.

    Args:
        regions: Of the segmenter.
    """

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self._volume: tuple[Any, NDArray[np.uint8] | None] = (None, None)

    def of(self, sample: Sample) -> NDArray[np.uint8] | None:
        """Bits ``(rows, columns)``, or None, as `true_regions`."""
        if not self.regions or sample.image.suffix.lower() == ".mat":
            return None
        scan = open_cut(sample)
        if sample.mask is None or not scan.volume:
            bits = true_regions(sample.mask, scan, self.regions)
        else:
            key = (sample.image, sample.plane, sample.mask)
            if self._volume[0] != key:
                self._volume = (key, true_regions(sample.mask, scan, self.regions))
            bits = self._volume[1]
        return scan.view(bits, sample.slice_index or 0) if bits is not None and scan.volume else bits


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


def region_row(scores: Regional) -> dict[str, Any]:
    """The columns of ``cases.csv`` for the regions of a slice."""
    return {f"region_{name}_{key}": getattr(one, key) for name, one in scores.items() for key in _IN_ROWS}


def region_titles(regions: Regions, path: str = "", kind: str = "slices") -> dict[str, str]:
    """Dotted path of the headline figures of each region -> title.

    Args:
        regions: The regions.
        path: Of the figures that hold ``regions``, with a dot at its end.
        kind: What is counted.
    """
    return {
        f"{path}regions.{name}.{key}": f"Dice of {plain(name)}, {words}"
        for name in regions.names
        for key, words in (("dice_present", f"{kind} with it"), ("dice_all", f"all {kind}"))
    }


def region_words(scores: Regional) -> str:
    """The Dice of each region that a slice shows or should show, for a title, such as ``core 0.81, enhancing 0.60``."""
    shown = {name: one for name, one in scores.items() if one.truth_px or one.guess_px}
    return ", ".join(f"{plain(name)} {one.dice:.2f}" for name, one in shown.items())


def region_tables(figures: dict[str, Any], kind: str) -> list[Table]:
    """The ``regions`` among some figures as a table; none without them.

    Args:
        figures: With what `region_figures` returns.
        kind: What ``n`` counts: slices, or volumes.
    """
    if "regions" not in figures:
        return []
    several = kind != "slices"
    head = ["region", f"{kind} with it", f"Dice, {kind} with it", "median", f"Dice, all {kind}"]
    head += ["Dice, slices with it"] if several else []
    head += ["HD95, slices with it, pixels", "Dice per patient, over all pixels"]
    rows = []
    for name, part in figures["regions"].items():
        row = [plain(name), f"{part['n_present']} of {part['n']}"]
        row += [cell(part[key]) for key in ("dice_present", "dice_present_median", "dice_all")]
        row += [cell(part["slices"]["dice_present"])] if several else []
        rows.append([*row, cell(part["slices"]["hd95_present"]), cell(part["patient"]["mean"])])
    return [Table(f"Regions, {kind}", head, rows)]
