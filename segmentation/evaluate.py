"""What a trained segmenter is worth: masks on prepared slices, Dice with a policy for empty cases."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray
from torch import nn

from data.atomic import whole_file
from data.compute import pick_device
from data.errors import printable
from data.loaders import PreparedSet, to_batch
from data.normalization import IMAGENET, Normalization
from segmentation.model import probabilities


def predict_maps(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    batch_size: int = 16,
    half: bool = False,
) -> NDArray[np.uint8]:
    """Lesion probability of prepared slices: ``(n, size, size)`` uint8, 255 is certain; in fp32, or in bfloat16."""
    where = pick_device(device)
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    maps = np.zeros(images_nhw.shape, np.uint8)
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=half):
        for start in range(0, len(images_nhw), batch_size):
            batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(where)
            lesion = probabilities(model, to_batch(batch, normalization))
            maps[start : start + batch_size] = (lesion * 255).round().cpu().numpy()
    return maps


def dice_scores(guess_nhw: NDArray[np.uint8], truth_nhw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Dice per slice ``(n,)``: both empty gives 1, one of them empty gives 0, never NaN and never dropped."""
    guess, truth = torch.from_numpy(guess_nhw)[:, None], torch.from_numpy(truth_nhw)[:, None]
    return compute_dice(guess, truth, include_background=True, ignore_empty=False)[:, 0].double().numpy()


def segmentation_metrics(part: PreparedSet, masks_nhw: NDArray[np.uint8]) -> dict[str, Any]:
    """Mean Dice over all and over tumor slices, per class, and the rate of false masks on tumor-free slices.

    Measured on the network's grid; the pipeline's masks on the source grid differ by the resampling.
    """
    scores = dice_scores(masks_nhw, part.masks)
    sick = part.masks.max(axis=(1, 2)) > 0
    marked = masks_nhw.max(axis=(1, 2)) > 0
    labels = np.array([s.label for s in part.samples])
    return {
        "n": len(part),
        "n_tumor": int(sick.sum()),
        "dice_all": _mean(scores),
        "dice_tumor": _mean(scores[sick]),
        "dice_tumor_median": float(np.median(scores[sick])) if sick.any() else None,
        "dice_by_label": {str(n): _mean(scores[sick & (labels == n)]) for n in sorted(set(labels[sick]))},
        "missed": _mean(~marked[sick]),
        "false_masks": _mean(marked[~sick]),
    }


def write_scores(path: Path, part: PreparedSet, masks_nhw: NDArray[np.uint8]) -> None:
    """One row per slice: image, slice, patient, label, area of truth and prediction on the network's grid, Dice."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "slice", "patient", "label", "truth_px", "mask_px", "dice"])
        for sample, truth, mask, dice in zip(
            part.samples, part.masks, masks_nhw, dice_scores(masks_nhw, part.masks), strict=True
        ):
            known = (printable(sample.image.name), sample.place, printable(sample.patient), sample.label)
            writer.writerow([*known, truth.sum(), mask.sum(), f"{dice:.4f}"])


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None
