"""Stage two alone measured on slices whose lesion is known: cases, figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Swept
from tumorlens.data.datasets.truth import TrueRegions
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR, TUMOR, outline_of
from tumorlens.data.masks.regions import Regions
from tumorlens.data.plotting import plain
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.base import Evaluation, SliceCase, batches
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.tables import Table, cell, listing
from tumorlens.pipeline.evaluation.worst_cases import WorstCase, plot_worst
from tumorlens.segmentation.evaluation.boxes import BOX_TITLES, BoxScores, box_report, box_scores
from tumorlens.segmentation.evaluation.metrics import (
    AGREEMENT,
    SliceScores,
    segmentation_report,
    slice_scores,
    volume_dice,
)
from tumorlens.segmentation.evaluation.plots import plot_dice_by_size
from tumorlens.segmentation.evaluation.regions import Regional, region_figures, region_scores
from tumorlens.segmentation.predict import Segmenter

_BATCH = 16

EMPTY_CASES = (
    "truth and mask empty: Dice, IoU and NSD 1, HD95 0; one of them empty: Dice, IoU and NSD 0, HD95 the slice's "
    "diagonal; no slice is dropped; HD95 in pixels of the source, NSD at 2 pixels"
)

REGION_POLICY = (
    "; where a mask tells regions apart, a lesion is what lies in one of them, and each has a Dice of its own, by the "
    "same policy for empty masks"
)
_IN_ROWS = ("dice", "hd95", "truth_px", "guess_px")  # of each region

_AGREEMENT = {"dice": "Dice", "iou": "IoU", "hd95": "HD95, pixels", "nsd": "NSD at 2 pixels"}

_OTHERS = {
    "dice_tumor_median": "Dice, tumor slices, median",
    "lesion_recall": "lesions found",
    "false_lesions": "false lesions per slice",
    "missed": "tumor slices without a mask",
    "false_masks": "tumor-free slices with a mask",
}


MASK_TITLES = {"dice_tumor": "Dice, tumor slices", "false_masks": "tumor-free slices with a mask"}


@dataclass(frozen=True)
class SegmentationCase(SliceCase):
    """One slice and how the segmenter's mask agrees with the truth.

    Attributes:
        scores: On the grid of the file.
        boxes: Where the truth is boxes, how these agree with those around the mask; then `scores` mean nothing.
        regions: The scores of each region; empty where the truth tells none apart.
    """

    scores: SliceScores
    boxes: BoxScores | None = None
    regions: Regional = field(default_factory=dict)


class SegmentationEvaluation(Evaluation[SegmentationCase]):
    """Measures segmenters, a part of the data at a time. Protocol P4 adds Dice over each patient's stacked slices.

    Args:
        protocol: The classes that count.
        seed: Of the bootstrap.
        outline: What all masks outline, one of `data.labels.OUTLINES`; None takes what the sequence of each slice
            calls for, as a run does.
    """

    headline: ClassVar[dict[str, str]] = {
        "slice.dice_all": "Dice, all slices",
        "slice.dice_tumor": "Dice, tumor slices",
        "slice.dice_tumor_median": "Dice, tumor slices, median",
        "slice.iou_tumor": "IoU, tumor slices",
        "slice.hd95_tumor": "HD95, tumor slices",
        "slice.nsd_tumor": "NSD, tumor slices",
        "slice.lesion_recall": "lesions found",
        "slice.false_lesions": "false lesions per slice",
        "slice.missed": "tumor slices without a mask",
        "slice.false_masks": "tumor-free slices with a mask",
        "patient.dice_all": "Dice per patient, all slices",
        "patient.dice_tumor": "Dice per patient, tumor slices",
        "patient.lesion_recall": "lesions found per patient",
        "patient.false_lesions": "false lesions per slice, mean of patients",
        **{f"boxes.{key}": title for key, title in BOX_TITLES.items()},
        "volume.mean": "Dice of volumes, mean",
        "volume.median": "Dice of volumes, median",
    }

    group_titles: ClassVar[dict[str, str]] = MASK_TITLES

    def __init__(self, protocol: Protocol, seed: int, outline: str | None = None) -> None:
        super().__init__(protocol, seed)
        self.outline = outline

    @property
    def policy(self) -> str:
        text = f"every slice through the segmenter alone, its mask compared on the source's own grid; {EMPTY_CASES}"
        if any(case.boxes is not None for case in self.cases):
            text += "; a box is not the truth of a mask: boxes are compared with those around the mask's parts"
        if self.outline is not None:
            text += f"; every mask from the segmenter's layer for the outline {self.outline!r}"
        text += REGION_POLICY if self.regions else ""
        if self.protocol.id == "p4":
            text += "; Dice of a volume counts the pixels of all slices of a patient"
        return text + "; intervals are 95 %, by bootstrap over patients"

    @property
    def titles(self) -> dict[str, str]:
        return self.headline | region_titles(self.regions)

    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Draw every slice's mask once and compare; see `Evaluation.measure`."""
        segmenter: Segmenter = models["segmentation"]
        if self.outline is not None and self.outline not in segmenter.outlines:
            raise InputError(f"the segmenter has no layer for --outline {self.outline}; leave the option out")
        self.regions = segmenter.regions
        preprocess, truths = Preprocess(segmenter.input_size), TrueRegions(segmenter.regions)
        for batch in batches(samples, preprocess, _BATCH, progress):
            self._compare(segmenter, preprocess, batch, fold, truths)

    def _compare(
        self, segmenter: Segmenter, preprocess: Preprocess, batch: list[Swept], fold: int | None, truths: TrueRegions
    ) -> None:
        outlines = [self.outline or outline_of(swept.reading.sample.sequence) for swept in batch]
        channels = [segmenter.channel_of(outline) for outline in outlines]
        images = np.stack([swept.prepared.image for swept in batch])
        maps, parts = segmenter.predict_parts(images, channels)
        for swept, map_hw, parts_chw, known in zip(batch, maps, parts, self.knows(images), strict=True):
            reading, placement = swept.reading, swept.prepared.placement
            guess = preprocess.mask_to_source(map_hw, placement, segmenter.mask_threshold)
            bits = truths.of(reading.sample)
            truth = np.zeros_like(guess) if reading.mask is None else reading.mask
            truth = truth if bits is None else (bits != 0).astype(np.uint8)
            boxes = box_scores(guess, truth) if reading.sample.weak else None
            on_source = [preprocess.map_to_source(part, placement) for part in parts_chw]
            regions = region_scores(segmenter.paint(guess, on_source), bits, self.regions)
            case = SegmentationCase(reading.sample, fold, slice_scores(guess, truth), boxes, regions, known=bool(known))
            self.cases.append(case)
            if boxes is None and case.scores.dice < 1:
                title = mask_title(case.sample.label, case.scores, regions=case.regions)
                shown = WorstCase(reading.image, title, case.patient, truth, guess, reading.aspect)
                self.worst.offer(badness(case.scores), shown)

    def figures_of(self, cases: Sequence[SegmentationCase]) -> dict[str, Any]:
        """The `segmentation_report` of the outlined slices, Dice of their volumes by P4; the `box_report` of others."""
        figures = box_figures([(c.boxes, c.patient) for c in cases], self.seed)
        counts = {"n": len(cases), "n_patients": len({c.patient for c in cases})}
        cases = _outlined(cases)
        scores, patients = [c.scores for c in cases], [c.patient for c in cases]
        report = segmentation_report(scores, [c.sample.label for c in cases], patients, self.seed)
        if figures and not report["n_tumor"]:  # only that tumor-free slices have no mask, which `false_masks` says
            for part in (report["slice"], report["patient"]):
                part |= {f"{name}_all": None for name in AGREEMENT}
        figures |= report | (counts if figures else {})
        figures |= region_figures([[c.regions] for c in cases], [c.patient for c in cases], self.seed)
        return figures | ({"volume": volume_dice(scores, patients, self.seed)} if self.protocol.id == "p4" else {})

    def group_figures(self, cases: Sequence[SegmentationCase]) -> dict[str, Any]:
        """Dice of the tumor slices, and the share of the others with a mask."""
        outlined = _outlined(cases)
        return mask_figures([c.scores for c in outlined], [c.patient for c in outlined], self.seed)

    def rows_of(self, case: SegmentationCase) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for each slice."""
        if case.boxes is not None:
            return [case.row | box_row(case.boxes)]
        return [case.row | asdict(case.scores) | region_row(case.regions)]

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Dice by lesion size and the lowest Dice."""
        cases = _outlined(self.cases)
        scores, labels = [c.scores for c in cases], [c.sample.label for c in cases]
        plots: dict[str, Callable[[Path], None]] = {}
        if any(s.truth_px for s in scores):
            plots |= size_plot(scores, labels, [c.patient for c in cases])
        if worst := self.worst.items:
            plots["worst.png"] = lambda path: plot_worst(worst, path, "lowest Dice")
        return plots

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """Tables of the masks, after those of the boxes and of the volumes."""
        if "boxes" in figures and not figures["n_tumor"]:
            return box_tables(figures, figures["slice"]["false_masks"])
        volumes = box_tables(figures)
        volumes += [listing("Dice of volumes, one per patient", figures["volume"])] if "volume" in figures else []
        return volumes + mask_tables(figures) + region_tables(figures, "slices")


def _outlined(cases: Sequence[SegmentationCase]) -> list[SegmentationCase]:
    return [case for case in cases if case.boxes is None]


def box_figures(cases: Sequence[tuple[BoxScores | None, str]], seed: int) -> dict[str, Any]:
    """The `box_report` of the cases whose truth is boxes, as ``boxes``; empty where there are none.

    Args:
        cases: Scores, or None, and patient of each.
        seed: Of the bootstrap.
    """
    boxed = [(boxes, patient) for boxes, patient in cases if boxes is not None]
    return {"boxes": box_report([b for b, _ in boxed], [p for _, p in boxed], seed)} if boxed else {}


def box_row(boxes: BoxScores) -> dict[str, Any]:
    """The columns of ``cases.csv`` for truth that is boxes."""
    return {"box_iou": boxes.iou, "boxes": boxes.boxes, "boxes_hit": boxes.hit, "false_boxes": boxes.false_boxes}


def box_tables(figures: dict[str, Any], false_masks: Any = None) -> list[Table]:
    """The ``boxes`` among some figures as a table, with the share of tumor-free slices that have a mask; none without
    boxes."""
    if "boxes" not in figures:
        return []
    boxes = figures["boxes"]
    rows = [(title, cell(boxes[key])) for key, title in BOX_TITLES.items()]
    rows += [] if false_masks is None else [(MASK_TITLES["false_masks"], cell(false_masks))]
    return [Table(f"Boxes: {boxes['n']} slices, {boxes['n_boxes']} boxes; no Dice", ("", "value"), rows)]


def mask_figures(scores: Sequence[SliceScores], patients: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of `MASK_TITLES` with intervals over patients, and the number of tumor slices."""
    sick = np.array([s.truth_px > 0 for s in scores], bool)
    dice, marked = np.array([s.dice for s in scores]), np.array([s.guess_px > 0 for s in scores], bool)
    return {
        "n_tumor_slices": int(sick.sum()),
        "dice_tumor": weighted_mean(dice, sick, patients, seed),
        "false_masks": weighted_mean(marked, ~sick, patients, seed),
    }


def badness(scores: SliceScores) -> tuple[float, ...]:
    """The key of a slice in `pipeline.evaluation.worst_cases.Worst`: lowest Dice, then most wrong pixels."""
    return (scores.dice, 2.0 * scores.overlap_px - scores.truth_px - scores.guess_px)


def mask_title(
    label: str, scores: SliceScores, place: str = "", answer: str = "", regions: Regional | None = None
) -> str:
    """The title of one of the worst slices: its truth, then what was answered.

    Args:
        label: The true label of the scan. A slice on which the true mask is empty has no tumor, whatever the scan has.
        scores: Of the slice.
        place: The slice of a volume, or empty.
        answer: The label that was answered; empty where only a mask was.
        regions: The scores of its regions, or None.
    """
    true = plain(label or TUMOR) if scores.truth_px else plain(CLASSES[NO_TUMOR])
    masks = f"Dice {scores.dice:.2f}" if scores.truth_px else "false mask" if scores.guess_px else ""
    lines = [f"true: {true}{place}", ", ".join(filter(None, (plain(answer), masks))), region_words(regions or {})]
    return "\n".join(lines if lines[2] else lines[:2])


def size_plot(
    scores: Sequence[SliceScores], labels: Sequence[str], patients: Sequence[str]
) -> dict[str, Callable[[Path], None]]:
    """Dice by lesion size: file name -> the function that writes the picture."""
    title = f"tumor slices, n = {sum(s.truth_px > 0 for s in scores)}"
    return {"dice_by_size.png": lambda path: plot_dice_by_size(scores, labels, path, title, patients)}


def mask_tables(figures: dict[str, Any], title: str = "Masks") -> list[Table]:
    """The figures of a `segmentation_report` as a table: agreement and lesions per slice and per patient."""
    per_slice, per_patient = figures["slice"], figures["patient"]
    rows = [
        (f"{name}, {words}", cell(per_slice[f"{key}_{part}"]), cell(per_patient[f"{key}_{part}"]))
        for key, name in _AGREEMENT.items()
        for part, words in (("all", "all slices"), ("tumor", "tumor slices"))
    ]
    rows += [
        (name, cell(per_slice[key]), cell(per_patient[key]) if key in per_patient else "")
        for key, name in _OTHERS.items()
    ]
    rows += [(f"Dice, {label}", cell(dice), "") for label, dice in per_slice["dice_by_label"].items()]
    about = f"{title}: {figures['n']} slices, {figures['n_tumor']} with a tumor, {figures['n_lesions']} lesions"
    return [Table(about, ("", "per slice", "per patient"), rows)]


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
