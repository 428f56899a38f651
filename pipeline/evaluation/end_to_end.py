"""End to end on labelled scans: source files in, label and mask against the truth in the source's own geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.evaluation.plots import plot_confusion
from tumorlens.data.bootstrap import interval, weighted_mean
from tumorlens.data.datasets.sample import Sample, channel_of
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.masks.read import read_mask, read_volume_mask
from tumorlens.data.scan import Scan
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.segmentation import EMPTY_CASES, badness, mask_plots, mask_tables
from tumorlens.pipeline.evaluation.tables import Table, cell
from tumorlens.pipeline.evaluation.worst_cases import GalleryCase, Worst
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.result import Result
from tumorlens.segmentation.evaluation.metrics import SliceScores, segmentation_report, slice_scores

_FIGURES = {
    "accuracy": "label right",
    "sensitivity": "tumors called so (sensitivity)",
    "specificity": "tumor-free scans called so (specificity)",
    "refused": "refused",
    "dice_all": "Dice, all scans",
    "dice_tumor": "Dice, scans with a tumor",
    "dice_tumor_median": "Dice, scans with a tumor, median",
    "false_masks": "tumor-free slices with a mask",
}


@dataclass(frozen=True)
class Case:
    """One scan's truth and what the pipeline made of it.

    Attributes:
        scan: The file's name.
        patient: Its patient.
        volume: Several slices, judged as one scan.
        label: The true class.
        guess: The pipeline's class, or ``refused``.
        dice: Over all voxels of the scan; both masks empty 1, one of them empty 0. None if the true mask is not known.
        free_slices: Slices without tumor.
        free_marked: Those of them on which the pipeline drew a mask.
        scores: Of each slice, in order; empty if the true mask is not known.
        fold: Which part it belongs to.
        file: Where it lies.
        probabilities: Class -> probability of the scan.
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

    @property
    def slice_labels(self) -> list[str]:
        """The class of each slice: that of the scan where it shows a lesion."""
        return [self.label if s.truth_px else CLASSES[NO_TUMOR] for s in self.scores]


def evaluate_pipeline(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    progress: Progress | None = None,
    fold: int | None = None,
    worst: Worst[GalleryCase] | None = None,
) -> list[Case]:
    """Run every scan once, as `tumorlens run` would, and compare.

    Args:
        pipeline: Both models.
        samples: Labelled slices; those of one volume are judged together.
        progress: Called with the number of scans done and of all.
        fold: Which part the samples are.
        worst: Collects the slices with the lowest Dice.

    Raises:
        InputError: A scan or a mask cannot be used.
    """
    by_file: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_file.setdefault(sample.image, []).append(sample)
    cases = []
    for done, members in enumerate(by_file.values(), start=1):
        cases.append(_judge(pipeline, members, fold, worst))
        if progress:
            progress(done, len(by_file))
    return cases


def _judge(pipeline: Pipeline, members: list[Sample], fold: int | None, worst: Worst[GalleryCase] | None) -> Case:
    first = members[0]
    scan = open_scan(first.image)
    truth = _true_mask(members, scan)
    if first.channel is not None:
        scan = replace(scan, voxels=channel_of(scan, first.channel))
    result = pipeline.run(scan)
    labels = [first.volume_label, *(s.label for s in members)]  # few slices may be left of a volume, without its lesion
    sick = [label for label in labels if label not in ("", CLASSES[NO_TUMOR])]
    patient = first.patient or (scan.annotation.patient if scan.annotation else "") or str(first.image)
    scores: list[SliceScores] = []
    if truth is not None:
        for k in range(scan.n_slices):
            true_hw, guess_hw = scan.view(truth, k), scan.view(result.mask, k)
            scores.append(slice_scores(guess_hw, true_hw))
            if worst is not None:
                label = f"{sick[0] if sick else CLASSES[NO_TUMOR]} as {result.label}"
                shown = GalleryCase(
                    scan.slice(k), true_hw, guess_hw, label, patient, scores[-1].dice, scan.pixel_aspect
                )
                worst.offer(badness(scores[-1]), shown)
    return Case(
        scan=first.image.name,
        patient=patient,
        volume=scan.volume,
        label=sick[0] if sick else CLASSES[NO_TUMOR],
        guess=result.label,
        dice=None if truth is None else dice(result.mask, truth),
        free_slices=sum(s.truth_px == 0 for s in scores),
        free_marked=sum(s.truth_px == 0 and s.guess_px > 0 for s in scores),
        scores=tuple(scores),
        fold=fold,
        file=str(first.image),
        probabilities=_shares(result),
    )


def _shares(result: Result) -> dict[str, float]:
    return {name: float(p) for name, p in (result.probabilities or {}).items() if p is not None}


def _true_mask(members: list[Sample], scan: Scan) -> NDArray[np.uint8] | None:
    """In the array order of ``scan.voxels``; none for a tumor that the set does not outline."""
    drawn = next((mask for s in members for mask in (s.volume_mask, s.mask) if mask is not None), None)
    if drawn is not None:
        return read_volume_mask(drawn, scan) if scan.volume else read_mask(drawn, scan)
    if scan.annotation is not None and scan.annotation.mask is not None:
        return scan.annotation.mask
    if any(label != CLASSES[NO_TUMOR] for s in members for label in (s.volume_label or s.label, s.label)):
        return None
    return np.zeros(scan.voxels.shape if scan.volume else scan.voxels.shape[:2], np.uint8)


def dice(guess: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice of two masks of one shape; 1 where both are empty, 0 where one is."""
    total = int(np.count_nonzero(guess)) + int(np.count_nonzero(truth))
    return 1.0 if total == 0 else 2 * int(np.count_nonzero((guess != 0) & (truth != 0))) / total


def summarise(cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """Figures of slices and of volumes apart, each with a 95 % bootstrap interval over patients.

    A tumor that the classifier missed has Dice 0; so has a mask on a scan without tumor. A refused scan is wrong.
    """
    kinds = {"slices": [c for c in cases if not c.volume], "volumes": [c for c in cases if c.volume]}
    return {kind: _figures(members, seed) for kind, members in kinds.items() if members}


def _figures(cases: list[Case], seed: int) -> dict[str, Any]:
    patients = np.array([c.patient for c in cases])
    label, guess = np.array([c.label for c in cases]), np.array([c.guess for c in cases])
    outlined = np.array([c.dice is not None for c in cases])
    score = np.array([c.dice or 0.0 for c in cases])
    sick = label != CLASSES[NO_TUMOR]
    refused = guess == REFUSED
    called = (guess != CLASSES[NO_TUMOR]) & ~refused
    free = np.array([c.free_slices for c in cases], float)
    marked = np.array([c.free_marked for c in cases], float)
    drawn = sick & outlined
    present = [name for name in CLASSES if (label == name).any()]

    def estimate(values: NDArray[Any], weights: NDArray[Any]) -> dict[str, Any] | None:
        return weighted_mean(values.astype(float), weights.astype(float), patients, seed)

    every = np.ones(len(cases))
    return {
        "n": len(cases),
        "n_patients": len(set(patients)),
        "accuracy": estimate(guess == label, every),
        "recall": {name: estimate(guess == name, label == name) for name in present},
        "sensitivity": estimate(called, sick),
        "specificity": estimate(guess == CLASSES[NO_TUMOR], ~sick),
        "refused": estimate(refused, every),
        "n_outlined": int(outlined.sum()),
        "dice_all": estimate(score, outlined),
        "dice_tumor": estimate(score, drawn),
        "dice_tumor_median": interval(lambda i: _median(score[i], drawn[i]), patients, seed),
        "dice_by_label": {str(n): estimate(score, drawn & (label == n)) for n in sorted(set(label[drawn]))},
        "n_tumor_free_slices": int(free.sum()),
        "false_masks": estimate(np.divide(marked, free, out=np.zeros_like(free), where=free > 0), free),
        "masks": _masks(cases, seed),
    }


def _median(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float | None:
    return float(np.median(values[chosen])) if chosen.any() else None


def _masks(cases: list[Case], seed: int) -> dict[str, Any] | None:
    scores = [s for c in cases for s in c.scores]
    labels = [label for c in cases for label in c.slice_labels]
    who = [c.patient for c in cases for _ in c.scores]
    return segmentation_report(scores, labels, who, seed) if scores else None


class PipelineEvaluation:
    """Measures both stages together, a part of the data at a time.

    Args:
        protocol: Which classes count was settled when the scans were chosen; named in the report.
        seed: Of the bootstrap.
    """

    headline: ClassVar[dict[str, str]] = {
        f"{kind}.{key}": f"{title} ({kind})" for kind in ("slices", "volumes") for key, title in _FIGURES.items()
    }

    def __init__(self, protocol: Protocol, seed: int) -> None:
        self.protocol, self.seed = protocol, seed
        self.cases: list[Case] = []
        self.worst: Worst[GalleryCase] = Worst()

    policy = (
        "source file in, label and mask out, as `tumorlens run` does it; a tumor that the classifier missed or "
        "refused has Dice 0, so has a mask on a tumor-free slice; a refused scan has a wrong label and an empty mask; "
        f"all four classes can be answered; {EMPTY_CASES}; intervals are 95 %, by bootstrap over patients"
    )

    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Run every scan once and compare.

        Args:
            models: ``{"pipeline": Pipeline}``.
            samples: Labelled slices.
            fold: Which part they are.
            progress: Called with the number of scans done and of all.
        """
        self.cases += evaluate_pipeline(models["pipeline"], samples, progress, fold, self.worst)

    def figures(self, fold: int | str | None = "all") -> dict[str, Any]:
        """All figures of one part, or of all of them together."""
        cases = self.cases if fold == "all" else [c for c in self.cases if c.fold == fold]
        return {
            "n": len(cases),
            "n_patients": len({c.patient for c in cases}),
            **summarise(cases, self.seed),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for each scan, and under a volume one for each of its slices."""
        found: list[dict[str, Any]] = []
        for case in self.cases:
            kind = "volume" if case.volume else "picture"
            found.append(_row(case, kind, None, None if case.volume or not case.scores else case.scores[0]))
            if case.volume:
                found += [_row(case, "slice", k, scores) for k, scores in enumerate(case.scores)]
        return found

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """File name -> what writes it."""
        seen = [c for c in self.cases if c.guess in CLASSES]
        refused = len(self.cases) - len(seen)
        truth, guess = (np.array([CLASSES.index(getattr(c, key)) for c in seen], int) for key in ("label", "guess"))
        title = "scans" + (f" ({refused} refused ones left out)" if refused else "")
        drawn = [(s, label, c.patient) for c in self.cases for s, label in zip(c.scores, c.slice_labels, strict=True)]
        found: dict[str, Callable[[Path], None]] = {}
        if seen:
            found["confusion.png"] = lambda path: plot_confusion(truth, guess, path, title)
        if drawn:
            scores, labels, patients = (list(column) for column in zip(*drawn, strict=True))
            found |= mask_plots(scores, labels, patients, self.worst.items)
        return found

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """What ``report.md`` shows of the figures of all parts."""
        found = []
        for kind in ("slices", "volumes"):
            if kind not in figures:
                continue
            part = figures[kind]
            rows = [(title, cell(part[key])) for key, title in _FIGURES.items()]
            rows += [(f"recall, {name.replace('_', ' ')}", cell(v)) for name, v in part["recall"].items()]
            rows += [(f"Dice, {name}", cell(v)) for name, v in part["dice_by_label"].items()]
            about = f"End to end, {kind}: {part['n']} of {part['n_patients']} patients, {part['n_outlined']} outlined"
            found.append(Table(about, ("", "value"), rows))
            if part["masks"]:
                title = "Masks of single pictures" if kind == "slices" else "Masks of the volumes' slices"
                found += mask_tables(part["masks"], title)
        return found


def _row(case: Case, kind: str, index: int | None, scores: SliceScores | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file": case.file,
        "kind": kind,
        "slice": index,
        "patient": case.patient,
        "fold": case.fold,
        "label": case.label if index is None else case.slice_labels[index],
        "predicted": case.guess if index is None else None,
    }
    row |= {f"p_{name}": case.probabilities.get(name) if index is None else None for name in CLASSES}
    if scores is not None:
        return row | asdict(scores)
    return row | dict.fromkeys(SliceScores.__dataclass_fields__) | {"dice": case.dice}
