"""Stage one measured on labeled slices: cases, figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.evaluation.explanation import explanation_report
from tumorlens.classification.evaluation.metrics import classification_report, decision_report, has_known_type, restrict
from tumorlens.classification.evaluation.plots import plot_confusion, plot_reliability, plot_roc
from tumorlens.classification.gradcam import target_layer
from tumorlens.classification.predict import Classifier
from tumorlens.classification.probabilities import softmax
from tumorlens.classification.shortcut import probe
from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.classification.trust.conformal import coverage_report
from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Swept
from tumorlens.data.labels import NO_TUMOR, SHIPPED_CLASSES, TUMOR, TUMOR_FREE, ClassList
from tumorlens.data.plotting import plain
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.base import Evaluation, SliceCase, batches
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.tables import Table, cell, count_table, listing
from tumorlens.pipeline.evaluation.worst_cases import WorstCase, plot_worst
from tumorlens.pipeline.gate import is_type_uncertain

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


DECISIONS = {
    "auc": "presence: AUC",
    "sensitivity": "tumors called tumors (sensitivity)",
    "specificity": "tumor-free ones called tumor-free (specificity)",
    "accuracy": "label right, of all classes",
    "type_accuracy": "type right, of typed pictures (found tumors of a known type)",
    "unnamed": "answered with a tumor of unknown type",
    "refused": "refused as not a brain",
    "ece": "presence: ECE, 15 bins",
    "log_loss": "presence: log-loss",
}
DECISION_TITLES = {
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "type_accuracy": "type right",
    "ece": "ECE",
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
        before: ``(c,)`` probabilities as the network gives them.
        after: ``(c,)`` calibrated.
        answer: The label by that operating point, its number (`data.labels.ClassList.index`).
        prediction_set: ``(c,)`` bool: the classes that remain possible; None for weights without such sets.
        refused: Whether the slice alone would be refused as not being a brain.
        explained: Grad-CAM map, true mask and head, ``(size, size)`` each; None unless asked for.
        classes: The classes of the classifier.
    """

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    answer: int
    prediction_set: NDArray[np.bool_] | None = None
    refused: bool = False
    explained: tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.bool_]] | None = None
    classes: ClassList = SHIPPED_CLASSES

    @property
    def tumor(self) -> float:
        """The calibrated tumor probability."""
        return 1 - float(self.after[NO_TUMOR])

    @property
    def label(self) -> int:
        """The number of the true label."""
        return self.classes.index(self.sample.label)


class ClassificationEvaluation(Evaluation[ClassificationCase]):
    """Measures classifiers, a part of the data at a time.

    Args:
        protocol: The classes that count.
        seed: Of the bootstrap and of the probe.
        explain: Score Grad-CAM against the masks.
        with_probe: Run the no-shortcut probe.
    """

    headline: ClassVar[dict[str, str]] = {
        "presence.auc": "ROC-AUC of presence",
        "presence.sensitivity": "sensitivity",
        "presence.specificity": "specificity",
        "presence.ece": "ECE of presence",
        "presence.type_accuracy": "type right, of typed pictures",
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
        "prediction_sets.coverage": "coverage of the prediction sets",
        "presence.refused": "slices refused as not a brain",
        "probe.blanked.worst": "probe: AUC on blanked heads",
        "probe.frames.kept": "probe: labels kept in other frames",
    }
    group_titles: ClassVar[dict[str, str]] = DECISION_TITLES

    def __init__(self, protocol: Protocol, seed: int, explain: bool = False, with_probe: bool = True) -> None:
        super().__init__(protocol, seed)
        self.explain, self.with_probe = explain, with_probe
        self.probes: dict[int | None, dict[str, Any]] = {}

    @property
    def policy(self) -> str:
        names = self._names
        text = (
            "presence by the operating point; label = likeliest of "
            f"{', '.join(names)} after calibration; tumors of unknown type count for presence only; a patient's "
            "probability is the mean over the patient's slices; a class that the truth lacks has no recall or AUC (-) "
            "and no part in means over classes"
        )
        if self.protocol.tumors_only:
            text += (
                "; probabilities of the tumor classes are renormalized to sum to 1, but the gate and the prediction "
                "sets use all classes"
            )
        return text + "; intervals are 95 %, by bootstrap over patients"

    @property
    def _classes(self) -> ClassList:
        return self.protocol.class_list

    @property
    def _names(self) -> list[str]:
        """The names of the classes that are measured."""
        return [self._classes.names[c] for c in self.protocol.classes]

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
        seen = classifier.look(images)
        before, after = softmax(seen.logits), classifier.calibrate(seen.logits)
        labels = classifier.labels(after)
        sets = classifier.prediction_sets(after, labels)
        for tumor in np.flatnonzero(labels != NO_TUMOR) if not self._classes.binary else ():
            if is_type_uncertain(after[tumor], None if sets is None else sets[tumor]):
                labels[tumor] = self._classes.untyped
        known = self.knows(images)
        refused = classifier.refuses(seen.strangeness, np.array([s.prepared.head_fraction > 0 for s in batch]))
        named = np.where(
            labels == self._classes.untyped, 1 + after[:, 1:].argmax(axis=1), labels
        )  # a map needs a class
        explained = self._explain(classifier, batch, images, named) if self.explain else {}
        for i, swept in enumerate(batch):
            case = ClassificationCase(
                sample=swept.reading.sample,
                fold=fold,
                before=before[i],
                after=after[i],
                answer=int(labels[i]),
                prediction_set=None if sets is None else sets[i],
                refused=bool(refused[i]),
                known=bool(known[i]),
                explained=explained.get(i),
                classes=self._classes,
            )
            self.cases.append(case)
            guess, confidence = self._guess(case)
            right = guess != NO_TUMOR if case.label == self._classes.untyped else guess == case.label
            if not right:
                title = f"true: {plain(case.sample.label)}\n{plain(self._classes.names[guess])} {confidence:.2f}"
                self.worst.offer((-confidence,), WorstCase(swept.prepared.image, title, case.patient))

    def _explain(
        self, classifier: Classifier, batch: list[Swept], images: NDArray[np.uint8], named: NDArray[np.int64]
    ) -> dict[int, Any]:
        """Maps of the tumor slices whose mask is known."""
        outlined = [i for i, s in enumerate(batch) if s.mask is not None and s.mask.any() and not s.reading.sample.weak]
        if not outlined:
            return {}
        cams = classifier.explain(images[outlined], named[outlined])
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
        classes = self.protocol.classes if self.protocol.tumors_only else None
        typed = [c for c, known in zip(cases, has_known_type(labels, self._classes.untyped), strict=True) if known]
        reports = {
            name: classification_report(
                labels, np.stack([getattr(c, name) for c in cases]), patients, self.seed, classes, self._classes
            )
            if typed
            else None
            for name in ("after", "before")
        }
        probes = [self.probes.get(fold) for fold in {c.fold for c in cases}]
        return {
            **reports,
            "presence": {"threshold": THRESHOLD, **self.group_figures(cases)},
            "prediction_sets": self._coverage(typed),
            "probe": probes[0] if len(probes) == 1 else None,  # folds have no common one: each has its own model
            "explanation": self._explanation(cases),
        }

    def group_figures(self, cases: Sequence[ClassificationCase]) -> dict[str, Any]:
        """The `decision_report` of some slices. Slices that would be refused alone count in its other figures."""
        labels, answers, tumor = (np.array(v) for v in zip(*[(c.label, c.answer, c.tumor) for c in cases], strict=True))
        patients = [c.patient for c in cases]
        refused = weighted_mean([c.refused for c in cases], np.ones(len(cases)), patients, self.seed)
        report = decision_report(labels, answers, tumor, patients, self.seed, self._classes.untyped)
        return report | {"refused": refused}

    def _coverage(self, cases: Sequence[ClassificationCase]) -> dict[str, Any] | None:
        sets = [c.prediction_set for c in cases if c.prediction_set is not None]
        if not sets or len(sets) < len(cases):
            return None
        return coverage_report(
            np.stack(sets), np.array([c.label for c in cases]), [c.patient for c in cases], self.seed, self._classes
        )

    def _explanation(self, cases: Sequence[ClassificationCase]) -> dict[str, Any] | None:
        explained = [c for c in cases if c.explained is not None]
        if not explained or len({c.explained[0].shape for c in explained if c.explained is not None}) > 1:
            return None
        cams, masks, heads = (
            np.stack(arrays) for arrays in zip(*[c.explained for c in explained if c.explained], strict=True)
        )
        labels = np.array([c.label for c in explained])
        patients = [c.patient for c in explained]
        return explanation_report(cams, masks, labels, patients, heads, seed=self.seed, classes=self._classes)

    def rows_of(self, case: ClassificationCase) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for each slice."""
        names, first = self._classes.outputs, self._classes.offset
        guess = self._classes.names[self._guess(case)[0]]
        row = case.row | {"predicted": guess, "positive": case.answer != NO_TUMOR}
        row |= {f"before_{name}": p for name, p in zip(names, case.before[first:], strict=True)}
        row |= {f"after_{name}": p for name, p in zip(names, case.after[first:], strict=True)}
        if case.prediction_set is not None:
            row["prediction_set"] = " ".join(
                n for n, inside in zip(self._classes.names, case.prediction_set, strict=True) if inside
            )
        return [row | {"refused": case.refused}]

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Confusion, ROC curves, reliability and the most confident mistakes. Without a known type, of presence."""
        labels = np.array([c.label for c in self.cases])
        known, classes = has_known_type(labels, self._classes.untyped), self.protocol.classes
        before, after = (np.stack([getattr(c, name) for c in self.cases]) for name in ("before", "after"))
        plots: dict[str, Callable[[Path], None]] = {}
        if known.any():
            names = self._names
            before, after = (restrict(shares[known], classes) for shares in (before, after))
            columns = np.array([classes.index(c) for c in labels[known]])
            truth, guess = labels[known], np.array(classes)[after.argmax(axis=1)]
            plots["confusion.png"] = lambda path: plot_confusion(truth, guess, path, "slices", self._classes)
        else:
            names = [TUMOR_FREE, TUMOR]
            before, after = (np.stack([p[:, NO_TUMOR], 1 - p[:, NO_TUMOR]], axis=1) for p in (before, after))
            columns = (labels != NO_TUMOR).astype(np.int64)
        if len(np.unique(columns)) > 1:  # else no class has a curve
            plots["roc.png"] = lambda path: plot_roc(columns, after, path, "slices", names, self._classes)
        plots["reliability.png"] = lambda path: plot_reliability(columns, before, after, path, "slices")
        if worst := self.worst.items:
            plots["worst.png"] = lambda path: plot_worst(worst, path, "most confident mistakes")
        return plots

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """Tables of presence, of the classes where tumors have a known type, and of what the user asks for."""
        presence = figures["presence"]
        rows = [(title, cell(presence[key])) for key, title in DECISIONS.items()]
        about = f"Decisions at the operating point {cell(presence['threshold'])}: {presence['n_tumor']} slices with a "
        about += f"tumor, {presence['n_healthy']} without, {presence['n_typed']} typed pictures"
        tables = [Table(about, ("", "value"), rows), *(_of_classes(figures) if figures["after"] else [])]
        if figures["prediction_sets"]:
            tables.append(listing("Prediction sets", figures["prediction_sets"]))
        if figures["probe"]:
            tables.append(listing("No-shortcut probe", figures["probe"]))
        return tables + ([_explained(figures["explanation"])] if figures["explanation"] else [])


def _of_classes(figures: dict[str, Any]) -> list[Table]:
    """The tables of the classes: per slice and patient, per class, confusion."""
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
    return [
        Table("Figures after calibration", ("", "per slice", "per patient"), main),
        Table("Per class", columns, by_class),
        count_table("Confusion of slices (rows true, columns predicted)", names, after["slice"]["confusion"]),
        count_table("Confusion of patients", names, after["patient"]["confusion"]),
    ]


def _explained(figures: dict[str, Any]) -> Table:
    """The scores of Grad-CAM and those of chance, for all slices and for each class."""
    parts = {"all": figures["all"], **figures["by_class"]}
    rows = [(plain(name), str(part["n"]), *(cell(part[key]) for key in _EXPLANATION)) for name, part in parts.items()]
    title = f"Grad-CAM against the masks ({figures['tolerance_px']:.1f} px next to the tumor still count)"
    return Table(title, ("class", "n", *_EXPLANATION.values()), rows)
