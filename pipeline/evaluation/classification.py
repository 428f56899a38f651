"""Stage one measured on labelled slices: cases, figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from tumorlens.data.datasets.sweep import Swept, sweep
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.tables import Table, cell, count_table, listing
from tumorlens.pipeline.evaluation.worst_cases import Mistake, Worst, plot_mistakes

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


@dataclass(frozen=True)
class ClassificationCase:
    """One slice's truth and what the classifier made of it.

    Attributes:
        sample: The slice.
        patient: Its patient; its own name where the data name none.
        fold: Which part it belongs to.
        label: Index into `data.labels.CLASSES`.
        before: ``(4,)`` probabilities as the network gives them.
        after: ``(4,)`` calibrated.
        positive: Whether the calibrated tumor probability reaches the operating point.
        prediction_set: ``(4,)`` bool: the classes that remain possible; none for weights without such sets.
        refused: Whether the slice alone would be taken for no brain.
        explained: Grad-CAM map, true mask and head, ``(size, size)`` each; none unless asked for.
    """

    sample: Sample
    patient: str
    fold: int | None
    label: int
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    positive: bool
    prediction_set: NDArray[np.bool_] | None = None
    refused: bool = False
    explained: tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.bool_]] | None = None


class ClassificationEvaluation:
    """Measures classifiers, a part of the data at a time.

    Args:
        protocol: Says which classes count.
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
        "refused": "slices refused as no brain",
        "probe.blanked.worst": "probe: AUC on blanked heads",
        "probe.frames.kept": "probe: labels kept in other frames",
    }

    def __init__(self, protocol: Protocol, seed: int, explain: bool = False, with_probe: bool = True) -> None:
        self.protocol, self.seed, self.explain, self.with_probe = protocol, seed, explain, with_probe
        self.cases: list[ClassificationCase] = []
        self.probes: dict[int | None, dict[str, Any]] = {}
        self.thresholds: dict[int | None, set[float]] = {}
        self.mistakes: Worst[Mistake] = Worst()

    @property
    def policy(self) -> str:
        """How the figures are to be read."""
        names = [CLASSES[c] for c in self.protocol.classes]
        text = (
            f"label = likeliest of {', '.join(names)} after calibration; a patient's probability is the mean over the "
            "patient's slices; a class that the truth lacks has no recall or AUC (-) and no part in means over classes"
        )
        if NO_TUMOR not in self.protocol.classes:
            text += (
                "; probabilities of the tumor classes are renormalised to sum to 1, but the gate and the prediction "
                "sets use all four classes"
            )
        return text + "; intervals are 95 %, by bootstrap over patients"

    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Predict every slice once.

        Args:
            models: ``{"classification": Classifier}``.
            samples: Labelled slices.
            fold: Which part they are.
            progress: Called with the number of slices done and of all.

        Raises:
            InputError: A slice cannot be used, or the network has nothing that Grad-CAM could explain.
        """
        classifier: Classifier = models["classification"]
        if self.explain:
            target_layer(classifier.model, (3, classifier.input_size, classifier.input_size))
        self.thresholds[fold] = set()
        known: list[Sample] = []
        for batch in _batches(samples, Preprocess(classifier.input_size), progress):
            self._predict(classifier, batch, fold)
            known += [swept.reading.sample for swept in batch]
        if self.with_probe:
            self.probes[fold] = probe(classifier, known, self.seed, progress)

    def _predict(self, classifier: Classifier, batch: list[Swept], fold: int | None) -> None:
        images = np.stack([swept.prepared.image for swept in batch])
        logits, strangeness = classifier.look(images)
        before, after = calibrated(logits), classifier.calibrate(logits)
        volumes = np.array([swept.reading.sample.from_volume for swept in batch], bool)
        labels = classifier.labels(after, volumes)
        sets = classifier.prediction_sets(after, labels)
        used = {True: classifier.volume_threshold, False: classifier.tumor_threshold}
        self.thresholds[fold] |= {used[bool(cut)] for cut in volumes}
        refused = classifier.refuses(strangeness, np.array([s.prepared.head_fraction > 0 for s in batch]))
        explained = self._explain(classifier, batch, images, labels) if self.explain else {}
        for i, swept in enumerate(batch):
            sample = swept.reading.sample
            case = ClassificationCase(
                sample=sample,
                patient=sample.patient or sample.name,
                fold=fold,
                label=CLASSES.index(sample.label),
                before=before[i],
                after=after[i],
                positive=bool(labels[i] != NO_TUMOR),
                prediction_set=None if sets is None else sets[i],
                refused=bool(refused[i]),
                explained=explained.get(i),
            )
            self.cases.append(case)
            guess, confidence = self._guess(case)
            if guess != case.label:
                mistake = Mistake(swept.prepared.image, CLASSES[case.label], CLASSES[guess], confidence, case.patient)
                self.mistakes.offer((-confidence,), mistake)

    def _explain(
        self, classifier: Classifier, batch: list[Swept], images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> dict[int, Any]:
        """Maps of the tumor slices whose mask is known."""
        drawn = [i for i, s in enumerate(batch) if s.mask is not None and s.mask.any()]
        if not drawn:
            return {}
        cams = grad_cam(classifier.model, to_batch(images[drawn], classifier.normalization), labels[drawn])
        return {
            i: (cam.astype(np.float16), np.asarray(batch[i].mask) != 0, batch[i].prepared.head)
            for i, cam in zip(drawn, cams, strict=True)
        }

    def _guess(self, case: ClassificationCase) -> tuple[int, float]:
        shares = restrict(case.after[None], self.protocol.classes)[0]
        return self.protocol.classes[int(shares.argmax())], float(shares.max())

    def figures(self, fold: int | str | None = "all") -> dict[str, Any]:
        """All figures of one part, or of all of them together."""
        cases = self.cases if fold == "all" else [c for c in self.cases if c.fold == fold]
        labels = np.array([c.label for c in cases])
        who = [c.patient for c in cases]
        classes = self.protocol.classes if len(self.protocol.classes) < len(CLASSES) else None
        reports = {
            name: classification_report(labels, np.stack([getattr(c, name) for c in cases]), who, self.seed, classes)
            for name in ("after", "before")
        }
        sets = [c.prediction_set for c in cases if c.prediction_set is not None]
        complete = len(sets) == len(cases)
        return {
            "n": len(cases),
            "n_patients": len(set(who)),
            **reports,
            "gate": self._gate(cases, fold),
            "prediction_sets": coverage_report(np.stack(sets), labels, who, self.seed) if complete else None,
            "refused": self._refused(cases),
            "probe": self._probe(fold),
            "explanation": self._explanation(cases),
        }

    def _gate(self, cases: list[ClassificationCase], fold: int | str | None) -> dict[str, Any]:
        sick = np.array([c.label != NO_TUMOR for c in cases])
        positive = np.array([c.positive for c in cases])
        kind = np.array([1 + int(c.after[1:].argmax()) if c.positive else NO_TUMOR for c in cases])
        who = [c.patient for c in cases]
        right = kind == np.array([c.label for c in cases])
        thresholds = sorted({t for k, used in self.thresholds.items() if fold in ("all", k) for t in used})
        return {
            "thresholds": thresholds,
            "sensitivity": weighted_mean(positive, sick, who, self.seed),
            "specificity": weighted_mean(~positive, ~sick, who, self.seed),
            "accuracy": weighted_mean(right, np.ones(len(cases)), who, self.seed),
        }

    def _refused(self, cases: list[ClassificationCase]) -> dict[str, Any] | None:
        """The share of slices that would be refused alone; they count in all other figures nevertheless."""
        return weighted_mean([c.refused for c in cases], np.ones(len(cases)), [c.patient for c in cases], self.seed)

    def _probe(self, fold: int | str | None) -> dict[str, Any] | None:
        """Of one part; of several there is no common one, as each has a model of its own."""
        if fold == "all":
            return next(iter(self.probes.values())) if len(self.probes) == 1 else None
        return self.probes.get(fold)  # type: ignore[arg-type]

    def _explanation(self, cases: list[ClassificationCase]) -> dict[str, Any] | None:
        drawn = [c for c in cases if c.explained is not None]
        if not drawn or len({c.explained[0].shape for c in drawn if c.explained is not None}) > 1:
            return None
        cams, masks, heads = (
            np.stack(arrays) for arrays in zip(*[c.explained for c in drawn if c.explained], strict=True)
        )
        return explanation_report(
            cams, masks, np.array([c.label for c in drawn]), [c.patient for c in drawn], heads, seed=self.seed
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row of ``cases.csv`` for each slice."""
        found = []
        for case in self.cases:
            guess, _ = self._guess(case)
            row: dict[str, Any] = {
                "file": str(case.sample.image),
                "slice": case.sample.place,
                "patient": case.patient,
                "fold": case.fold,
                "label": CLASSES[case.label],
                "predicted": CLASSES[guess],
                "positive": case.positive,
            }
            row |= {f"before_{name}": p for name, p in zip(CLASSES, case.before, strict=True)}
            row |= {f"after_{name}": p for name, p in zip(CLASSES, case.after, strict=True)}
            if case.prediction_set is not None:
                row["prediction_set"] = " ".join(
                    n for n, inside in zip(CLASSES, case.prediction_set, strict=True) if inside
                )
            row["refused"] = case.refused
            found.append(row)
        return found

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """File name -> what writes it."""
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
            "worst.png": lambda path: plot_mistakes(self.mistakes.items, path, "most confident mistakes"),
        }

    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """What ``report.md`` shows of the figures of all parts."""
        after, before = figures["after"], figures["before"]
        main = [(title, *(cell(after[part][key]) for part in ("slice", "patient"))) for key, title in _FIGURES.items()]
        main += [
            (f"{_FIGURES[key]} before calibration", *(cell(before[part][key]) for part in ("slice", "patient")))
            for key in ("log_loss", "ece", "brier")
        ]
        by_class = [
            (
                name.replace("_", " "),
                *(cell(after[part][key][name]) for key in ("recall", "roc_auc") for part in ("slice", "patient")),
            )
            for name in after["classes"]
        ]
        names = [name.replace("_", " ") for name in after["classes"]]
        found = [
            Table("Figures after calibration", ("", "per slice", "per patient"), main),
            Table(
                "Per class",
                ("class", "recall, slices", "recall, patients", "AUC, slices", "AUC, patients"),
                by_class,
            ),
            count_table("Confusion of slices (rows true, columns predicted)", names, after["slice"]["confusion"]),
            count_table("Confusion of patients", names, after["patient"]["confusion"]),
            listing("Gate at the operating point", figures["gate"]),
        ]
        titles = {
            "prediction_sets": "Prediction sets",
            "probe": "No-shortcut probe",
        }
        if figures["refused"]:
            found.append(Table("Refusal", ("", ""), [("slices refused as no brain", cell(figures["refused"]))]))
        found += [listing(title, figures[key]) for key, title in titles.items() if figures[key]]
        return found + ([_explained(figures["explanation"])] if figures["explanation"] else [])


def _explained(figures: dict[str, Any]) -> Table:
    """The scores of Grad-CAM beside what chance reaches, for all slices and for each class."""
    columns = {
        "pointing_game": "hottest pixel in the tumor",
        "pointing_chance": "by chance",
        "pointing_center": "middle of the head",
        "energy_inside": "heat inside the tumor",
        "energy_chance": "by chance",
    }
    parts = {"all": figures["all"], **figures["by_class"]}
    rows = [
        (name.replace("_", " "), str(part["n"]), *(cell(part[key]) for key in columns)) for name, part in parts.items()
    ]
    title = f"Grad-CAM against the masks ({figures['tolerance_px']:.1f} px beside the tumor still count)"
    return Table(title, ("class", "n", *columns.values()), rows)


def _batches(samples: Sequence[Sample], preprocess: Preprocess, progress: Progress | None) -> Iterator[list[Swept]]:
    """Read and prepared slices, `_BATCH` at a time; a slice that cannot be used ends it, since none may be dropped."""
    batch: list[Swept] = []
    for swept in sweep(samples, preprocess, progress):
        if not isinstance(swept, Swept):
            raise InputError(swept.reason)
        batch.append(swept)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
