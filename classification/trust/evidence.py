"""Predictions for held-out patients, which calibrate the weights that are trained on all patients."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.probabilities import with_all_classes
from tumorlens.classification.trust.calibration import Calibration
from tumorlens.data.errors import InputError, one_line
from tumorlens.data.files import safe_cell, whole_file
from tumorlens.data.labels import ClassList
from tumorlens.data.training.out_of_fold import Evidence, FinishedFold, finished_folds, mean_and_deviation
from tumorlens.data.training.prepared import PreparedSet


def write_predictions(
    path: Path,
    part: PreparedSet,
    probabilities: NDArray[np.float32],
    strangeness: NDArray[np.float32] | None = None,
) -> None:
    """Write one row a slice: image, slice, patient, label, a probability per class, the strangeness if it is known, and
    the number of the slice's data set.

    Args:
        path: The CSV file.
        part: The ``n`` slices.
        probabilities: ``(n, c)``, calibrated.
        strangeness: ``(n,)`` from `classification.refusal.Refusal`.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        # Nine digits keep a float32 exact: six would write an unlikely truth as 0, and change its log-loss.
        writer.writerow(
            [
                "image",
                "slice",
                "patient",
                "label",
                *(f"p_{name}" for name in part.classes.outputs),
                "strangeness",
                "source",
            ]
        )
        strange = [""] * len(part) if strangeness is None else [f"{s:.5g}" for s in strangeness]
        for sample, row, odd in zip(part.samples, probabilities, strange, strict=True):
            name = (
                safe_cell(one_line(sample.image.name)),
                sample.place,
                safe_cell(one_line(sample.patient)),
                sample.label,
            )
            answers = (f"{p:.9g}" for p in row[part.classes.offset :])
            writer.writerow([*map(one_line, map(str, name)), *answers, odd, sample.source])


@dataclass(frozen=True)
class PredictionEvidence(Evidence):
    """Out-of-fold predictions of ``n`` slices.

    Attributes:
        logits: ``(n, c)``, uncalibrated, up to a constant for each slice.
        labels: ``(n,)`` number of each label, see `data.labels.ClassList.index`.
        sources: ``(n,)`` number of each slice's data set.
        strangeness: ``(n,)`` by the refusal of the network that saw the slice; None if a fold has no refusal.
        classes: The classes of the networks.
        sequence_recall: Of the sequence head of the one run; empty for a cross-validation.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]
    strangeness: NDArray[np.float32] | None
    classes: ClassList
    sequence_recall: dict[str, Any] = field(default_factory=dict)


def read_evidence(folder: str | Path, recipe: Mapping[str, Any]) -> PredictionEvidence:
    """The validation slices of every fold of a cross-validation.

    Args:
        folder: The cross-validation's folder, with ``fold-0`` ... in it.
        recipe: Settings of the run on all patients.

    Raises:
        InputError: See `data.training.out_of_fold.finished_folds`, or a table that holds no predictions.
    """
    folds = finished_folds(folder, "classification", recipe)
    parts = [_read_fold(fold) for fold in folds]
    if len({part.classes.outputs for part in parts}) > 1:
        raise InputError(f"{folder}: the folds have different classes; name them for all folds with --classes")
    strangeness = [part.strangeness for part in parts if part.strangeness is not None]
    return PredictionEvidence(
        folder=Path(folder),
        patients=set().union(*(part.patients for part in parts)),
        figures={"held_out": _figures(folds)},
        whole=len(folds) > 1,
        logits=np.concatenate([part.logits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sources=np.concatenate([part.sources for part in parts]),
        strangeness=np.concatenate(strangeness) if len(strangeness) == len(parts) else None,
        classes=parts[0].classes,
        sequence_recall=folds[0].card.get("sequence", {}).get("validation_recall", {}) if len(folds) == 1 else {},
    )


def _read_fold(fold: FinishedFold) -> PredictionEvidence:
    rows = fold.rows("validation.csv")
    try:
        classes = ClassList.from_card(fold.card)
        answers = np.array([[float(row[f"p_{name}"]) for name in classes.outputs] for row in rows])
        probabilities = np.pad(answers, ((0, 0), (classes.offset, 0)))
        logits = Calibration.of_card(fold.card).logits(probabilities)[:, classes.offset :]
        strange = [row.get("strangeness") for row in rows]
        return PredictionEvidence(
            folder=fold.folder,
            patients={row["patient"] for row in rows},
            figures={},
            whole=False,
            logits=with_all_classes(logits, classes),
            labels=np.array(classes.indices(row["label"] for row in rows), np.int64),
            sources=np.array([int(row["source"]) for row in rows], np.int64),
            strangeness=np.array([float(text) for text in strange if text], np.float32) if all(strange) else None,
            classes=classes,
        )
    except (KeyError, TypeError, ValueError, InputError):
        raise InputError(
            f"{fold.folder / 'validation.csv'}: this is not a table of predictions; train this fold again"
        ) from None


def _figures(folds: list[FinishedFold]) -> dict[str, Any]:
    """Mean and deviation over the folds of each one's test figures."""
    figures: dict[str, Any] = {}
    for unit in ("slice", "patient"):
        for name in ("accuracy", "macro_f1"):
            values = [fold.figures.get(unit, {}).get(name) for fold in folds]
            figures[f"{unit}_{name}"] = mean_and_deviation(values)
    return figures
