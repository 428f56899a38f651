"""What a trained classifier is worth: probabilities on prepared slices, metrics per slice and per patient."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.atomic import whole_file
from data.compute import pick_device
from data.labels import CLASSES, NO_TUMOR
from data.loaders import PreparedSet, to_batch

# Share of the validation tumor slices that the gate has to let through.
SENSITIVITY = 0.98


def predict_probabilities(
    model: nn.Module, images_nhw: NDArray[np.uint8], device: str = "auto", batch_size: int = 32
) -> NDArray[np.float32]:
    """Class probabilities ``(n, 4)`` of prepared slices ``(n, size, size)``, in fp32."""
    where = pick_device(device)
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    chunks = [np.zeros((0, len(CLASSES)), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(images_nhw), batch_size):
            batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(where)
            chunks.append(model(to_batch(batch)).float().softmax(1).cpu().numpy())
    return np.concatenate(chunks)


def classification_metrics(part: PreparedSet, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro-F1 and recall per class, per slice and per patient.

    A patient's probability is the mean over the patient's slices, its label the commonest tumor among them.

    Returns:
        ``{"slice": {...}, "patient": {...}}``, each with ``n``.
    """
    patients = np.array([s.patient for s in part.samples])
    names = sorted(set(patients))
    by_patient = np.stack([probabilities[patients == p].mean(axis=0) for p in names])
    truth = np.array([_patient_label(part.labels[patients == p]) for p in names])
    return {"slice": _metrics(part.labels, probabilities), "patient": _metrics(truth, by_patient)}


def _patient_label(labels: NDArray[np.int64]) -> int:
    """The commonest tumor of a patient's slices: tumor-free slices do not make a patient healthy."""
    count = np.bincount(labels, minlength=len(CLASSES))
    return 1 + int(count[1:].argmax()) if count[1:].any() else NO_TUMOR


def _metrics(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

    guess = probabilities.argmax(axis=1)
    present = sorted(set(truth.tolist()))
    recall = recall_score(truth, guess, labels=present, average=None, zero_division=0)
    return {
        "n": len(truth),
        "accuracy": float(accuracy_score(truth, guess)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, labels=present, average="macro")),
        "recall": {CLASSES[c]: float(r) for c, r in zip(present, recall, strict=True)},
    }


def choose_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    """The tumor probability from which a slice is called positive: the highest at which `SENSITIVITY` of the tumor
    slices are still called so. What a tool for screening may miss is fixed first; false alarms are then as few as that
    allows. Kept within 0.5 .. 0.9, as a few hundred slices say little about the far ends.

    Args:
        labels: ``(n,)`` class index of validation slices.
        probabilities: ``(n, 4)``.
    """
    tumor = np.sort(1 - probabilities[labels != NO_TUMOR, NO_TUMOR])
    if not len(tumor):
        return 0.5
    highest = float(tumor[int(np.floor((1 - SENSITIVITY) * len(tumor) + 1e-9))])
    return float(np.clip(np.floor(highest * 100) / 100, 0.5, 0.9))


def gate_metrics(labels: NDArray[np.int64], probabilities: NDArray[np.float32], threshold: float) -> dict[str, Any]:
    """Sensitivity and specificity of tumor against no tumor, and four-class accuracy, at a threshold."""
    sick = labels != NO_TUMOR
    positive = 1 - probabilities[:, NO_TUMOR] >= threshold
    guess = np.where(positive, 1 + probabilities[:, 1:].argmax(axis=1), NO_TUMOR)
    return {
        "sensitivity": float(positive[sick].mean()) if sick.any() else None,
        "specificity": float((~positive[~sick]).mean()) if (~sick).any() else None,
        "accuracy": float((guess == labels).mean()),
    }


def write_predictions(path: Path, part: PreparedSet, probabilities: NDArray[np.float32]) -> None:
    """One row per slice: image, slice, patient, label, and a probability per class."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "slice", "patient", "label", *(f"p_{name}" for name in CLASSES)])
        for sample, row in zip(part.samples, probabilities, strict=True):
            number = "" if sample.slice_index is None else sample.slice_index
            writer.writerow([sample.image.name, number, sample.patient, sample.label, *(f"{p:.6f}" for p in row)])
