"""What a training run says of its classifier: logits of prepared slices, its operating point, quick metrics."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from classification.metrics import per_patient
from classification.refusal_fit import pooled
from data.atomic import whole_file
from data.compute import pick_device
from data.errors import printable
from data.labels import CLASSES, NO_TUMOR
from data.loaders import PreparedSet, to_batch
from data.normalization import IMAGENET, Normalization


@dataclass(frozen=True)
class Seen:
    """What a network says of slices, and what it sees in them on the way.

    Attributes:
        logits: ``(n, 4)``, uncalibrated.
        features: ``(n, d)`` pooled feature maps of one layer.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


def look(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    layer: str,
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    half: bool = False,
) -> Seen:
    """Logits and the pooled features of a layer in one pass; see `predict_logits`."""
    kept: list[NDArray[np.float32]] = []
    module = model.get_submodule(layer)
    hook = module.register_forward_hook(lambda _m, _i, output: kept.append(pooled(output.float()).cpu().numpy()))
    try:
        logits = predict_logits(model, images_nhw, device, normalization, half=half)
    finally:
        hook.remove()
    return Seen(logits, np.concatenate(kept) if kept else np.zeros((0, 0), np.float32))


def predict_logits(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    batch_size: int = 32,
    half: bool = False,
) -> NDArray[np.float32]:
    """Uncalibrated logits ``(n, 4)`` of prepared slices ``(n, size, size)``, in fp32, or in bfloat16."""
    where = pick_device(device)
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    chunks = [np.zeros((0, len(CLASSES)), np.float32)]
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=half):
        for start in range(0, len(images_nhw), batch_size):
            batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(where)
            chunks.append(model(to_batch(batch, normalization)).float().cpu().numpy())
    return np.concatenate(chunks)


def classification_metrics(part: PreparedSet, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro-F1 and recall per class, per slice and per patient.

    A patient's probability is the mean over the patient's slices, its label the commonest tumor among them.

    Returns:
        ``{"slice": {...}, "patient": {...}}``, each with ``n``.
    """
    patients = np.array([s.patient for s in part.samples])
    _, truth, by_patient = per_patient(part.labels, probabilities, patients)
    return {"slice": _metrics(part.labels, probabilities), "patient": _metrics(truth, by_patient)}


def _metrics(truth: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]) -> dict[str, Any]:
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


def gate_metrics(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], threshold: float | NDArray[np.float32]
) -> dict[str, Any]:
    """Sensitivity and specificity of tumor against no tumor, and four-class accuracy, at a threshold or at one for each
    slice ``(n,)``."""
    sick = labels != NO_TUMOR
    positive = 1 - probabilities[:, NO_TUMOR] >= threshold
    guess = np.where(positive, 1 + probabilities[:, 1:].argmax(axis=1), NO_TUMOR)
    return {
        "sensitivity": float(positive[sick].mean()) if sick.any() else None,
        "specificity": float((~positive[~sick]).mean()) if (~sick).any() else None,
        "accuracy": float((guess == labels).mean()),
    }


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
