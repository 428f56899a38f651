"""Stage one measured on labeled slices: cases, figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.evaluation.explanation import explanation_report
from tumorlens.classification.evaluation.metrics import classification_report, restrict
from tumorlens.classification.evaluation.plots import plot_confusion, plot_reliability, plot_roc
from tumorlens.classification.gradcam import grad_cam, target_layer
from tumorlens.classification.predict import Classifier
from tumorlens.classification.shortcut import probe
from tumorlens.classification.trust.calibration import calibrated
from tumorlens.classification.trust.conformal import coverage_report
from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Swept
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.plotting import plain
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.base import Evaluation, SliceCase, batches
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.tables import Table, cell, count_table, listing
from tumorlens.pipeline.evaluation.worst_cases import WorstCase, plot_worst

_BATCH = 32

_FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "roc_auc_mean": "ROC-AUC, mean of one against rest",
    "log_loss": "log-loss",
    "ece": "ECE, 15 bins",
    "brier": "Brier score",
}


_EXPLANATION = {
    "pointing_game": "hottest pixel in the tumor",
    "pointing_chance": "by chance",
    "pointing_center": "middle of the head",
    "energy_inside": "heat inside the tumor",
    "energy_chance": "by chance",
}


@dataclass(frozen=True)
class ClassificationCase(SliceCase):
    """One slice's truth and the classifier's answer.

    Attributes:
        before: ``(4,)`` probabilities as the network gives them.
        after: ``(4,)`` calibrated.
        threshold: The operating point that holds for the slice.
        positive: Whether the calibrated tumor probability reaches it.
        prediction_set: ``(4,)`` bool: the classes that remain possible; None for weights without such sets.
        refused: Whether the slice alone would be refused as not being a brain.
        explained: Grad-CAM map, true mask and head, ``(size, size)`` each; None unless asked for.
    """

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    threshold: float
    positive: bool
    prediction_set: NDArray[np.bool_] | None = None
    refused: bool = False
    explained: tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.bool_]] | None = None

    @property
    def label(self) -> int:
        """The true class, an index into `data.labels.CLASSES`."""
        return CLASSES.index(self.sample.label)


class ClassificationEvaluation(Evaluation[ClassificationCase]):
    """Measures classifiers, a part of the data at a time.

    Args:
        protocol: The classes that count.
        seed: Of the bootstrap and of the probe.
        explain: Score Grad-CAM against the masks.
        with_probe: Run the no-shortcut probe.
    """

    headline: ClassVar[dict[str, str]] = {
        "after.slice.accuracy": "accuracy per slice",
        "after.patient.accuracy": "accuracy per patient",
        "after.slice.balanced_accuracy": "balanced accuracy per slice",
        "after.slice.macro_f1": "macro-F1 per slice",
        "after.patient.macro_f1": "macro-F1 per patient",
        "after.slice.roc_auc_mean": "ROC-AUC per slice",
        "before.slice.ece": "ECE before calibration",
        "after.slice.ece": "ECE after calibration",
        "before.slice.log_loss": "log-loss before calibration",
        "after.slice.log_loss": "log-loss after calibration",
        "gate.sensitivity": "sensitivity of the gate",
        "gate.specificity": "specificity of the gate",
        "prediction_sets.coverage": "coverage of the prediction sets",
        "refused": "slices refused as not a brain",
        "probe.blanked.worst": "probe: AUC on blanked heads",
        "probe.frames.kept": "probe: labels kept in other frames",
    }

    def __init__(self, protocol: Protocol, seed: int, explain: bool = False, with_probe: bool = True) -> None:
        super().__init__(protocol, seed)
        self.explain, self.with_probe = explain, with_probe
        self.probes: dict[int | None, dict[str, Any]] = {}

    @property
    def policy(self) -> str:
        names = [CLASSES[c] for c in self.protocol.classes]
        text = (
            f"label = likeliest of {', '.join(names)} after calibration; a patient's probability is the mean over the "
            "patient's slices; a class that the truth lacks has no recall or AUC (-) and no part in means over classes"
        )
        if NO_TUMOR not in self.protocol.classes:
            text += (
                "; probabilities of the tumor classes are renormalized to sum to 1, but the gate and the prediction "
                "sets use all four classes"
            )
        return text + "; intervals are 95 %, by bootstrap over patients"

    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Predict every slice once; see `Evaluation.measure`.

        Raises:
            InputError: A slice cannot be used, or the network has nothing that Grad-CAM could explain.
        """
        classifier: Classifier = models["classification"]
        if self.explain:
            target_layer(classifier.model, (3, classifier.input_size, classifier.input_size))
        read: list[Sample] = []
        for batch in batches(samples, Preprocess(classifier.input_size), _BATCH, progress):
            self._predict(classifier, batch, fold)
            read += [swept.reading.sample for swept in batch]
        if self.with_probe:
            self.probes[fold] = probe(classifier, read, self.seed, progress)

    def _predict(self, classifier: Classifier, batch: list[Swept], fold: int | None) -> None:
        images = np.stack([swept.prepared.image for swept in batch])
        logits, strangeness = classifier.logits_and_strangeness(images)
        before, after = calibrated(logits), classifier.calibrate(logits)
        volumes = np.array([swept.reading.sample.from_volume for swept in batch], bool)
        labels = classifier.labels(after, volumes)
        sets = classifier.prediction_sets(after, labels)
        refused = classifier.refuses(strangeness, np.array([s.prepared.head_fraction > 0 for s in batch]))
        explained = self._explain(classifier, batch, images, labels) if self.explain else {}
        for i, swept in enumerate(batch):
            case = ClassificationCase(
                sample=swept.reading.sample,
                fold=fold,
                before=before[i],
                after=after[i],
                threshold=classifier.volume_threshold if volumes[i] else classifier.tumor_threshold,
                positive=bool(labels[i] != NO_TUMOR),
                prediction_set=None if sets is None else sets[i],
                refused=bool(refused[i]),
                explained=explained.get(i),
            )
            self.cases.append(case)
            guess, confidence = self._guess(case)
            if guess != case.label:
                title = f"true: {plain(CLASSES[case.label])}\n{plain(CLASSES[guess])} {confidence:.2f}"
                self.worst.offer((-confidence,), WorstCase(swept.prepared.image, title, case.patient))

    def _explain(
        self, classifier: Classifier, batch: list[Swept], images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> dict[int, Any]:
        """Maps of the tumor slices whose mask is known."""
        outlined = [i for i, s in enumerate(batch) if s.mask is not None and s.mask.any()]
        if not outlined:
            return {}
        cams = grad_cam(classifier.model, to_batch(images[outlined], classifier.normalization), labels[outlined])
        return {
            i: (cam.astype(np.float16), np.asarray(batch[i].mask) != 0, batch[i].prepared.head)
            for i, cam in zip(outlined, cams, strict=True)
        }

    def _guess(self, case: ClassificationCase) -> tuple[int, float]:
        shares = restrict(case.after[None], self.protocol.classes)[0]
        return self.protocol.classes[int(shares.argmax())], float(shares.max())

    def figures_of(self, cases: Sequence[ClassificationCase]) -> dict[str, Any]:
        """All figures of some slices, before and after calibration."""
        labels = np.array([c.label for c in cases])
        patients = [c.patient for c in cases]
        classes = self.protocol.classes if len(self.protocol.classes) < len(CLASSES) else None
        reports = {
            name: classification_report(
                labels, np.stack([getattr(c, name) for c in cases]), patients, self.seed, classes
            )
            for name in ("after", "before")
        }
        sets = [c.prediction_set for c in cases if c.prediction_set is not None]
        complete = len(sets) == len(cases)
        probes = [self.probes.get(fold) for fold in {c.fold for c in cases}]
        return {
            **reports,
            "gate": self._gate(cases),
            "prediction_sets": coverage_report(np.stack(sets), labels, patients, self.seed) if complete else None,
            # Slices that would be refused alone count in all other figures nevertheless.
            "refused": weighted_mean([c.refused for c in cases], np.ones(len(cases)), patients, self.seed),
            "probe": probes[0] if len(probes) == 1 else None,  # folds have no common one: each has its own model
            "explanation": self._explanation(cases),
        }

    def _gate(self, cases: Sequence[ClassificationCase]) -> dict[str, Any]:
        sick = np.array([c.label != NO_TUMOR for c in cases])
        positive = np.array([c.positive for c in cases])
        kind = np.array([1 + int(c.after[1:].argmax()) if c.positive else NO_TUMOR for c in cases])
        patients = [c.patient for c in cases]
        right = kind == np.array([c.label for c in cases])
        return {
            "thresholds": sorted({c.threshold for c in cases}),
            "sensitivity": weighted_mean(positive, sick, patients, self.seed),
            "specificity": weighted_mean(~positive, ~sick, patients, self.seed),
            "accuracy": weighted_mean(right, np.ones(len(cases)), patients, self.seed),
        }

    def _explanation(self, cases: Sequence[ClassificationCase]) -> dict[str, Any] | None:
        explained = [c for c in cases if c.explained is not None]
        if not explained or len({c.explained[0].shape for c in explained if c.explained is not None}) > 1:
            return None
        cams, masks, heads = (
            np.stack(arrays) for arrays in zip(*[c.explained for c in explained if c.explained], strict=True)
        )
        return explanation_report(
            cams, masks, np.array([c.label for c in explained]), [c.patient for c in explained], heads, seed=self.seed
        )

    def rows_of(self, case: ClassificationCase) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for each slice."""
        row = case.row | {"predicted": CLASSES[self._guess(case)[0]], "positive": case.positive}
        row |= {f"before_{name}": p for name, p in zip(CLASSES, case.before, strict=True)}
        row |= {f"after_{name}": p for name, p in zip(CLASSES, case.after, strict=True)}
        if case.prediction_set is not None:
            row["prediction_set"] = " ".join(
                n for n, inside in zip(CLASSES, case.prediction_set, strict=True) if inside
            )
        return [row | {"refused": case.refused}]

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Confusion, ROC curves, reliability and the most confident mistakes."""
        classes = self.protocol.classes
        names = [CLASSES[c] for c in classes]
        truth = np.array([c.label for c in self.cases])
        columns = np.array([classes.index(c.label) for c in self.cases])
        before, after = (restrict(np.stack([getattr(c, n) for c in self.cases]), classes) for n in ("before", "after"))
        guess = np.array([classes[k] for k in after.argmax(axis=1)])
        return {
            "confusion.png": lambda path: plot_confusion(truth, guess, path, "slices"),
            "roc.png": lambda path: plot_roc(columns, after, path, "slices", names),
            "reliability.png": lambda path: plot_reliability(columns, before, after, path, "slices"),
            "worst.png": lambda path: plot_worst(self.worst.items, path, "most confident mistakes"),
        }

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """Tables per slice and patient, per class, of the gate, and of the parts that the user asks for."""
        after, before = figures["after"], figures["before"]
        parts = ("slice", "patient")
        main = [(title, *(cell(after[part][key]) for part in parts)) for key, title in _FIGURES.items()]
        main += [
            (f"{_FIGURES[key]} before calibration", *(cell(before[part][key]) for part in parts))
            for key in ("log_loss", "ece", "brier")
        ]
        names = [plain(name) for name in after["classes"]]
        by_class = [
            (plain(name), *(cell(after[part][key][name]) for key in ("recall", "roc_auc") for part in parts))
            for name in after["classes"]
        ]
        columns = ("class", "recall, slices", "recall, patients", "AUC, slices", "AUC, patients")
        tables = [
            Table("Figures after calibration", ("", "per slice", "per patient"), main),
            Table("Per class", columns, by_class),
            count_table("Confusion of slices (rows true, columns predicted)", names, after["slice"]["confusion"]),
            count_table("Confusion of patients", names, after["patient"]["confusion"]),
            listing("Gate at the operating point", figures["gate"]),
        ]
        if figures["refused"]:
            tables.append(Table("Refusal", ("", ""), [("slices refused as not a brain", cell(figures["refused"]))]))
        if figures["prediction_sets"]:
            tables.append(listing("Prediction sets", figures["prediction_sets"]))
        if figures["probe"]:
            tables.append(listing("No-shortcut probe", figures["probe"]))
        return tables + ([_explained(figures["explanation"])] if figures["explanation"] else [])


def _explained(figures: dict[str, Any]) -> Table:
    """The scores of Grad-CAM and those of chance, for all slices and for each class."""
    parts = {"all": figures["all"], **figures["by_class"]}
    rows = [(plain(name), str(part["n"]), *(cell(part[key]) for key in _EXPLANATION)) for name, part in parts.items()]
    title = f"Grad-CAM against the masks ({figures['tolerance_px']:.1f} px next to the tumor still count)"
    return Table(title, ("class", "n", *_EXPLANATION.values()), rows)
