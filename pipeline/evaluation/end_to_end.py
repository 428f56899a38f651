"""End to end on labeled scans: source files in, label and mask against the truth in the source's own geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.evaluation.metrics import decision_report, has_known_type
from tumorlens.classification.evaluation.plots import plot_confusion
from tumorlens.data.bootstrap import median, weighted_mean
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.truth import true_label
from tumorlens.data.labels import NO_TUMOR, TUMOR, TUMOR_FREE, ClassList
from tumorlens.data.masks.truth import read_truth
from tumorlens.data.plotting import plain
from tumorlens.pipeline.evaluation.base import Evaluation, LabeledScan, scan_batches
from tumorlens.pipeline.evaluation.classification import DECISION_TITLES, DECISIONS
from tumorlens.pipeline.evaluation.protocols import Progress
from tumorlens.pipeline.evaluation.segmentation import (
    EMPTY_CASES,
    MASK_TITLES,
    REGION_POLICY,
    badness,
    box_figures,
    box_row,
    box_tables,
    mask_tables,
    mask_title,
    region_row,
    region_tables,
    region_titles,
    size_plot,
)
from tumorlens.pipeline.evaluation.tables import Table, cell
from tumorlens.pipeline.evaluation.worst_cases import WorstCase, plot_worst
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.result import Result
from tumorlens.segmentation.evaluation.boxes import BOX_TITLES, BoxScores, box_scores
from tumorlens.segmentation.evaluation.metrics import SliceScores, segmentation_report, slice_scores
from tumorlens.segmentation.evaluation.regions import Regional, region_dice, region_figures, region_scores

_FIGURES = {
    **{key: title for key, title in DECISIONS.items() if key != "log_loss"},
    "dice_all": "Dice, all scans",
    "dice_tumor": "Dice, scans with a tumor",
    "dice_tumor_median": "Dice, scans with a tumor, median",
    "false_masks": "tumor-free slices with a mask",
}
_BOX_FIGURES = {f"boxes.{key}": title for key, title in BOX_TITLES.items()}


@dataclass(frozen=True)
class ScanCase:
    """One scan's truth and the pipeline's answer.

    Attributes:
        scan: The file's name.
        patient: Its patient.
        volume: Several slices, judged as one scan.
        label: The true label.
        guess: The pipeline's label: one of these, or ``refused``.
        dice: Over all voxels of the scan; both masks empty 1, one of them empty 0. None if the true mask is not known.
        free_slices: Slices without tumor.
        free_marked: Slices without tumor on which the pipeline drew a mask.
        scores: Of each slice, in order; empty if the true mask is not known.
        fold: The fold that it belongs to, or None.
        file: Its path.
        probabilities: Class -> probability of the scan; empty for a refused one.
        source: Number of its data set.
        sequence: Its MRI sequence, empty where it is not known.
        boxes: Where the truth is boxes, how these agree with those around the mask.
        known: Of each judged slice, whether the weights have learned from it, or from a copy.
        regions: The scores of the regions of each slice, in order; empty where the truth tells none apart.
    """

    scan: str
    patient: str
    volume: bool
    label: str
    guess: str
    dice: float | None
    free_slices: int
    free_marked: int
    scores: tuple[SliceScores, ...] = ()
    fold: int | None = None
    file: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    source: int = 0
    sequence: str = ""
    boxes: BoxScores | None = None
    known: tuple[bool, ...] = ()
    regions: tuple[Regional, ...] = ()

    @property
    def n_known(self) -> tuple[int, int]:
        """How many of its judged slices the weights know, and of how many."""
        return sum(self.known), len(self.known)

    @property
    def tumor(self) -> float:
        """The tumor probability; NaN for a refused scan."""
        return 1 - self.probabilities.get(TUMOR_FREE, 0.0) if self.probabilities else float("nan")

    @property
    def slice_labels(self) -> list[str]:
        """The class of each slice: that of the scan where it shows a lesion."""
        return [self.label if s.truth_px else TUMOR_FREE for s in self.scores]


class PipelineEvaluation(Evaluation[ScanCase]):
    """Measures both stages together, a part of the data at a time.

    A tumor that the classifier missed has Dice 0; so has a mask on a scan without tumor. A refused scan is wrong. The
    answer ``tumor``, of no type, finds the tumor and has the wrong type.
    """

    headline: ClassVar[dict[str, str]] = {
        f"{kind}.{key}": f"{title} ({kind})"
        for kind in ("slices", "volumes")
        for key, title in (_FIGURES | _BOX_FIGURES).items()
    }
    group_titles: ClassVar[dict[str, str]] = DECISION_TITLES | MASK_TITLES | {"dice_tumor": "Dice, scans with a tumor"}

    @property
    def titles(self) -> dict[str, str]:
        kinds = ("slices", "volumes")
        return self.headline | {
            k: v for kind in kinds for k, v in region_titles(self.regions, f"{kind}.", kind).items()
        }

    @property
    def policy(self) -> str:
        return (
            "source file in, label and mask out, as `tumorlens run` does it; a tumor that the classifier missed or "
            "refused has Dice 0, so has a mask on a tumor-free slice; a refused scan has a wrong label and an empty "
            "mask, ranks behind all others in the AUC, and has no part in the ECE; the answer tumor without a type is "
            "a tumor, with the wrong type; tumors of unknown type count for presence only; all classes can be "
            f"answered; {EMPTY_CASES}{REGION_POLICY if self.regions else ''}; intervals are 95 %, by bootstrap over "
            "patients"
        )

    @property
    def _classes(self) -> ClassList:
        return self.protocol.class_list

    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Run every scan once, as `tumorlens run` would, and compare; see `Evaluation.measure`.

        Slices of one volume are judged together.
        """
        pipeline: Pipeline = models["pipeline"]
        by_scan: dict[tuple[Path, int | None], list[Sample]] = {}
        for sample in samples:
            by_scan.setdefault((sample.image, sample.channel), []).append(sample)
        size, done = pipeline.classifier.input_size, 0
        self.regions = pipeline.segmenter.regions
        for group in scan_batches(by_scan.values(), size, self.regions):
            decisions = pipeline.decide([opened.case for opened in group])
            for opened, decision in zip(group, decisions, strict=True):
                result = pipeline.conclude(opened.case, decision)
                self.cases.append(self._judge(opened, result, fold))
                done += 1
                if progress:
                    progress(done, len(by_scan))

    def _judge(self, opened: LabeledScan, result: Result, fold: int | None) -> ScanCase:
        first, scan, truth = opened.members[0], opened.case.scan, opened.truth
        label = true_label(opened.members)
        patient = first.patient or (scan.annotation.patient if scan.annotation else "") or str(first.image)
        views = (
            () if truth is None else [(scan.view(truth, k), scan.view(result.mask, k)) for k in range(scan.n_slices)]
        )
        scores = [slice_scores(guess_hw, true_hw) for true_hw, guess_hw in views]
        regions = self._regions(opened, result)
        self._offer(opened, result, label, patient, scores, regions)
        return ScanCase(
            scan=first.image.name,
            patient=patient,
            volume=scan.volume,
            label=label,
            guess=result.label,
            dice=None if truth is None else dice(result.mask, truth),
            free_slices=sum(s.truth_px == 0 for s in scores),
            free_marked=sum(s.truth_px == 0 and s.guess_px > 0 for s in scores),
            scores=tuple(scores),
            fold=fold,
            file=str(first.image),
            probabilities={name: float(p) for name, p in (result.probabilities or {}).items() if p is not None},
            source=first.source,
            sequence=first.sequence,
            boxes=box_scores(result.mask, read_truth(first.mask, scan)) if first.mask and first.weak else None,
            known=tuple(self.knows(np.stack([prepared.image for prepared in opened.case.chosen])).tolist()),
            regions=regions,
        )

    def _regions(self, opened: LabeledScan, result: Result) -> tuple[Regional, ...]:
        """The scores of the regions of each slice."""
        scan, bits, drawn = opened.case.scan, opened.regions, result.region_mask
        if bits is None or drawn is None:
            return ()
        return tuple(region_scores(scan.view(drawn, k), scan.view(bits, k), self.regions) for k in range(scan.n_slices))

    def _offer(
        self,
        opened: LabeledScan,
        result: Result,
        label: str,
        patient: str,
        scores: Sequence[SliceScores],
        regions: Sequence[Regional],
    ) -> None:
        """Offer a scan to the worst cases, unless it is right: its slice with the lowest Dice, or where no mask is
        known the slice that a run shows."""
        scan, truth = opened.case.scan, opened.truth
        if scores and truth is not None:
            k = min(range(len(scores)), key=lambda k: badness(scores[k]))
            if scores[k].dice < 1 or not _is_right(label, result.label):
                place = f", slice {k}" if scan.volume else ""
                title = mask_title(label, scores[k], place, result.label, regions[k] if regions else None)
                masks = scan.view(truth, k), scan.view(result.mask, k)
                self.worst.offer(
                    badness(scores[k]), WorstCase(scan.slice(k), title, patient, *masks, aspect=scan.pixel_aspect)
                )
        elif not _is_right(label, result.label):
            sure = result.confidence
            title = f"true: {plain(label)}\n{plain(result.label)}" + (f" {sure:.2f}" if sure is not None else "")
            shown = WorstCase(scan.slice(result.shown_slice), title, patient, aspect=scan.pixel_aspect)
            self.worst.offer((0.0, -float(sure or 0)), shown)

    def figures_of(self, cases: Sequence[ScanCase]) -> dict[str, Any]:
        """Figures of pictures and of volumes apart."""
        return {kind: self._figures_of_kind(members) for kind, members in self.kinds(cases).items()}

    def kinds(self, cases: Sequence[ScanCase]) -> dict[str, list[ScanCase]]:
        """Single pictures, and volumes."""
        kinds = {"slices": [c for c in cases if not c.volume], "volumes": [c for c in cases if c.volume]}
        return {kind: members for kind, members in kinds.items() if members}

    def group_figures(self, cases: Sequence[ScanCase]) -> dict[str, Any]:
        """The `decision_report` of some scans, and their Dice."""
        patients = [c.patient for c in cases]
        labels = np.array(self._classes.indices(c.label for c in cases))
        answers = np.array([-1 if c.guess == REFUSED else self._classes.known.index(c.guess) for c in cases])
        outlined = np.array([c.dice is not None for c in cases])
        score = np.array([c.dice or 0.0 for c in cases])
        free = np.array([c.free_slices for c in cases], float)
        marked = np.array([c.free_marked for c in cases], float)
        share = np.divide(marked, free, out=np.zeros_like(free), where=free > 0)
        tumor = np.array([c.tumor for c in cases])
        has_outline = outlined & (labels != NO_TUMOR)
        return {
            **decision_report(labels, answers, tumor, patients, self.seed, self._classes.untyped),
            "n_outlined": int(outlined.sum()),
            # Without a single outlined lesion it would only repeat that tumor-free scans have no mask.
            "dice_all": weighted_mean(score, outlined, patients, self.seed) if has_outline.any() else None,
            "dice_tumor": weighted_mean(score, has_outline, patients, self.seed),
            "dice_tumor_median": median(score, has_outline, patients, self.seed),
            "n_tumor_free_slices": int(free.sum()),
            "false_masks": weighted_mean(share, free, patients, self.seed),
        }

    def _figures_of_kind(self, cases: list[ScanCase]) -> dict[str, Any]:
        patients = [c.patient for c in cases]
        slices = _slices(cases)

        def mean_of(name: str, values: Sequence[Any], outlined: bool = False) -> dict[str, Any] | None:
            counts = [c.label == name and (c.dice is not None or not outlined) for c in cases]
            return weighted_mean(values, counts, patients, self.seed)

        right, score = [c.guess == c.label for c in cases], [c.dice or 0.0 for c in cases]
        sick = sorted({c.label for c in cases if c.label != TUMOR_FREE and c.dice is not None})
        return {
            "n": len(cases),
            "n_patients": len(set(patients)),
            **self.group_figures(cases),
            "recall": {
                name: mean_of(name, right) for name in self._classes.names if any(c.label == name for c in cases)
            },
            "dice_by_label": {name: mean_of(name, score, outlined=True) for name in sick},
            "masks": segmentation_report(*slices, self.seed) if _shows_lesion(slices[0]) else None,
            **box_figures([(c.boxes, c.patient) for c in cases], self.seed),
            **region_figures([c.regions for c in cases], patients, self.seed),
        }

    def rows_of(self, case: ScanCase) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for the scan, and below that of a volume one for each of its slices."""
        if not case.volume:
            row = self._row(case, "picture", None, case.scores[0] if case.scores else None)
            row |= region_row(case.regions[0]) if case.regions else {}
            return [row if case.boxes is None else row | box_row(case.boxes)]
        slices = [self._row(case, "slice", k, s) for k, s in enumerate(case.scores)]
        for row, scores in zip(slices, case.regions, strict=False):
            row |= region_row(scores)
        volume = self._row(case, "volume", None, None)
        volume |= {f"region_{name}_dice": value for name, value in region_dice(case.regions).items()}
        return [volume, *slices]

    def _row(self, case: ScanCase, kind: str, index: int | None, scores: SliceScores | None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "file": case.file,
            "kind": kind,
            "slice": index,
            "patient": case.patient,
            "fold": case.fold,
            "source": case.source,
            "sequence": case.sequence,
            "label": case.label if index is None else case.slice_labels[index],
            "predicted": case.guess if index is None else None,
        }
        row["training_slices"] = case.n_known[0] if index is None else None
        row |= {f"p_{name}": case.probabilities.get(name) if index is None else None for name in self._classes.outputs}
        if scores is not None:
            return row | asdict(scores)
        return row | dict.fromkeys(SliceScores.__dataclass_fields__) | {"dice": case.dice}

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Confusion of the scans of known type that were not refused, Dice by lesion size, and the lowest Dice."""
        classes = self._classes
        known = has_known_type(np.array(classes.indices(c.label for c in self.cases)), classes.untyped)
        judged = [c for c, typed in zip(self.cases, known, strict=True) if typed and c.guess != REFUSED]
        left_out = len(self.cases) - len(judged)
        truth = np.array([classes.names.index(c.label) for c in judged], int)
        guess = np.array([classes.names.index(_likeliest(c, classes)) for c in judged], int)
        title = "scans" + (f" ({left_out} refused or of unknown type left out)" if left_out else "")
        slices = _slices(self.cases)
        plots: dict[str, Callable[[Path], None]] = {}
        if judged:
            plots["confusion.png"] = lambda path: plot_confusion(truth, guess, path, title, classes)
        if _shows_lesion(slices[0]):
            plots |= size_plot(*slices)
        if worst := self.worst.items:
            about = "lowest Dice" if _shows_lesion(slices[0]) else "worst answers"
            plots["worst.png"] = lambda path: plot_worst(worst, path, about)
        return plots

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """A table of labels and Dice, and those of the masks, for pictures and for volumes."""
        tables = []
        for kind, masks in (("slices", "Masks of single pictures"), ("volumes", "Masks of the volumes' slices")):
            if kind not in figures:
                continue
            part = figures[kind]
            with_dice = part["dice_all"] is not None
            rows = [
                (title, cell(part[key])) for key, title in _FIGURES.items() if with_dice or not key.startswith("dice")
            ]
            rows += [(f"recall, {plain(name)}", cell(v)) for name, v in part["recall"].items()]
            rows += [(f"Dice, {name}", cell(v)) for name, v in part["dice_by_label"].items()]
            outlined = f"{part['n_outlined']} with a true mask" if with_dice else "none with a true mask"
            about = f"End to end, {kind}: {part['n']} of {part['n_patients']} patients, {outlined}"
            tables.append(Table(about, ("", "value"), rows))
            tables += box_tables(part)
            tables += mask_tables(part["masks"], masks) if part["masks"] else []
            tables += region_tables(part, kind)
        return tables


def _is_right(label: str, guess: str) -> bool:
    """Whether an answer is right; of a tumor of unknown type, whether it is a tumor."""
    return guess == label or (label == TUMOR and guess not in (TUMOR_FREE, REFUSED))


def _shows_lesion(scores: Sequence[SliceScores]) -> bool:
    return any(s.truth_px for s in scores)


def _likeliest(case: ScanCase, classes: ClassList) -> str:
    """The pipeline's class, of a tumor of uncertain type the likeliest one."""
    if not classes.is_uncertain(case.guess):
        return case.guess
    return max(classes.tumors, key=lambda name: case.probabilities.get(name, 0.0))


def _slices(cases: Sequence[ScanCase]) -> tuple[list[SliceScores], list[str], list[str]]:
    """Scores, classes and patients of all slices with a true mask, each as a list."""
    scores = [s for case in cases for s in case.scores]
    labels = [label for case in cases for label in case.slice_labels]
    return scores, labels, [case.patient for case in cases for _ in case.scores]


def dice(guess: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice of two masks of one shape; 1 where both are empty, 0 where one is."""
    total = int(np.count_nonzero(guess)) + int(np.count_nonzero(truth))
    return 1.0 if total == 0 else 2 * int(np.count_nonzero((guess != 0) & (truth != 0))) / total
