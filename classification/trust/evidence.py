"""A cross-validation's predictions on patients that its networks have not seen, for weights that see all of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError, printable
from tumorlens.data.files import whole_file
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.out_of_fold import FoldRun, fold_runs, mean_and_deviation
from tumorlens.data.training.prepared import PreparedSet


def write_predictions(
    path: Path,
    part: PreparedSet,
    probabilities: NDArray[np.float32],
    strangeness: NDArray[np.float32] | None = None,
) -> None:
    """One row per slice: image, slice, patient, label, a probability per class, and how strange it looks, if known."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        # Nine digits keep a float32 whole: six would write an unlikely truth as 0, and its log-loss would be another.
        writer.writerow(["image", "slice", "patient", "label", *(f"p_{name}" for name in CLASSES), "strangeness"])
        strange = [""] * len(part) if strangeness is None else [f"{s:.5g}" for s in strangeness]
        for sample, row, odd in zip(part.samples, probabilities, strange, strict=True):
            known = (printable(sample.image.name), sample.place, printable(sample.patient), sample.label)
            writer.writerow([*known, *(f"{p:.9g}" for p in row), odd])


WEIGHTS = "classifier.safetensors"
_LEAST = 1e-38  # a probability that float32 wrote as 0 has a logarithm all the same


@dataclass(frozen=True)
class Evidence:
    """What thresholds are fitted on.

    Attributes:
        logits: ``(n, 4)``, uncalibrated, up to a constant of each slice.
        labels: ``(n,)`` index into `data.labels.CLASSES`.
        patients: ``(n,)`` whose slices they are.
        from_volumes: ``(n,)`` bool: slices of volumes, where the others are pictures.
        strangeness: ``(n,)`` by the refusal of the network that saw the slice, or none.
        figures: Mean and deviation of the folds' test figures, for a card.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    from_volumes: NDArray[np.bool_]
    strangeness: NDArray[np.float32] | None
    figures: dict[str, Any] = field(default_factory=dict)


def read_evidence(folder: str | Path, recipe: Mapping[str, Any]) -> Evidence:
    """The validation slices of every fold, each predicted by the network that did not learn from it.

    Args:
        folder: Of the cross-validation, with ``fold-0`` ... in it.
        recipe: Settings of the run on all patients.

    Raises:
        InputError: See `data.training.out_of_fold.fold_runs`.
    """
    runs = fold_runs(folder, WEIGHTS, "classification", recipe)
    parts = [_evidence_of(run) for run in runs]
    strange = [part.strangeness for part in parts if part.strangeness is not None]
    return Evidence(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.patients for part in parts]),
        np.concatenate([part.from_volumes for part in parts]),
        np.concatenate(strange) if len(strange) == len(parts) else None,
        {"crossval_test": _figures(runs)},
    )


def _evidence_of(run: FoldRun) -> Evidence:
    rows = run.rows("validation.csv")
    try:
        probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
        labels = np.array([CLASSES.index(row["label"]) for row in rows], np.int64)
        patients = np.array([row["patient"] for row in rows], np.str_)
        cut = np.array([bool(row["slice"]) for row in rows], bool)
        told = [row.get("strangeness") for row in rows]
        strange = np.array([float(text) for text in told if text], np.float32) if all(told) else None
        temperature = float(run.card.get("calibration", {}).get("temperature", 1.0))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{run.folder / 'validation.csv'}: no table of predictions") from None
    logits = np.log(np.maximum(probabilities, _LEAST)) * temperature
    return Evidence(logits.astype(np.float32), labels, patients, cut, strange)


def _figures(runs: list[FoldRun]) -> dict[str, Any]:
    """Mean and deviation over the folds of what each weighed on its test patients."""
    found: dict[str, Any] = {}
    for unit in ("slice", "patient"):
        for name in ("accuracy", "macro_f1"):
            values = [run.card["metrics"]["test"].get(unit, {}).get(name) for run in runs]
            found[f"{unit}_{name}"] = mean_and_deviation(values)
    return found
