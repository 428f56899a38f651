"""Agreement of predicted with true masks: per slice, per patient and per volume, with a policy for empty masks."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import median, weighted_mean
from tumorlens.data.errors import InputError, one_line
from tumorlens.data.files import safe_cell, whole_file
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation.evaluation.boxes import box_report, box_scores

NSD_TOLERANCE_PX = 2.0
AGREEMENT = ("dice", "iou", "hd95", "nsd")


def dice_scores(guess_nhw: NDArray[np.uint8], truth_nhw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Dice of each slice ``(n,)``: two empty masks give 1, one empty mask gives 0. It is never NaN.

    Args:
        guess_nhw: ``(n, rows, columns)`` predicted masks; non-zero is lesion.
        truth_nhw: ``(n, rows, columns)`` true masks.
    """
    if not len(guess_nhw):
        return np.zeros(0)
    import torch
    from monai.metrics import compute_dice

    guess, truth = (torch.from_numpy((mask != 0).astype(np.uint8))[:, None] for mask in (guess_nhw, truth_nhw))
    return compute_dice(guess, truth, include_background=True, ignore_empty=False)[:, 0].double().numpy()


def segmentation_metrics(part: PreparedSet, masks_nhw: NDArray[np.uint8], data: Sequence[str] = ()) -> dict[str, Any]:
    """Mean Dice over all and over tumor slices, per class, and the rate of false masks on tumor-free slices.

    They are measured on the network's grid. The pipeline's masks on the source's grid differ by the resampling. Slices
    whose truth is boxes have no Dice: ``boxes`` compares these with the boxes around what is drawn. Where masks have
    regions, these figures are those of whole lesions, and ``by_region`` has those of each region: Dice and misses of
    the ``n`` slices that show it, and false masks of the others.

    Args:
        part: The ``n`` slices.
        masks_nhw: ``(n, size, size)`` predicted masks, 0 and 1, or the bits of regions.
        data: Names of the data sets, which the slices know by number. With them, Dice and false masks of each are
            added.
    """
    weak = np.array([sample.weak for sample in part.samples], bool)
    if weak.any():
        outlined = np.flatnonzero(~weak)
        figures = segmentation_metrics(part.subset(outlined.tolist()), masks_nhw[outlined], data)
        if not figures["n_tumor"]:
            figures["dice_all"] = None
        boxed = [box_scores(guess, truth) for guess, truth in zip(masks_nhw[weak], part.masks[weak], strict=True)]
        patients = [sample.patient for sample, boxes in zip(part.samples, weak, strict=True) if boxes]
        report = box_report(boxed, patients)
        plain = {name: value["value"] if isinstance(value, dict) else value for name, value in report.items()}
        return figures | {"boxes": plain}
    scores = dice_scores(masks_nhw, part.masks)
    sick = part.masks.max(axis=(1, 2)) > 0
    marked = masks_nhw.max(axis=(1, 2)) > 0
    labels = np.array([s.label for s in part.samples])
    names = np.array([data[s.source] for s in part.samples] if data else [])
    by_source = {
        str(name): {
            "dice_tumor": _mean(scores[sick & (names == name)]),
            "false_masks": _mean(marked[~sick & (names == name)]),
        }
        for name in dict.fromkeys(names)
    }
    return {
        "n": len(part),
        "n_tumor": int(sick.sum()),
        "dice_all": _mean(scores),
        "dice_tumor": _mean(scores[sick]),
        "dice_tumor_median": float(np.median(scores[sick])) if sick.any() else None,
        "dice_by_label": {str(n): _mean(scores[sick & (labels == n)]) for n in sorted(set(labels[sick]))},
        "missed": _mean(~marked[sick]),
        "false_masks": _mean(marked[~sick]),
        **({"by_source": by_source} if by_source else {}),
        **({"by_region": _by_region(part, masks_nhw)} if part.regions else {}),
    }


def _by_region(part: PreparedSet, masks_nhw: NDArray[np.uint8]) -> dict[str, Any]:
    figures = {}
    for name, guess, truth in zip(part.regions.names, part.regions.planes(masks_nhw), part.planes, strict=True):
        shown, drawn = truth.any(axis=(1, 2)), guess.any(axis=(1, 2))
        figures[name] = {
            "n": int(shown.sum()),
            "dice": _mean(dice_scores(guess[shown], truth[shown])),
            "missed": _mean(~drawn[shown]),
            "false_masks": _mean(drawn[~shown]),
        }
    return figures


def write_scores(path: Path, part: PreparedSet, masks_nhw: NDArray[np.uint8]) -> None:
    """Write one row a slice: image, slice, patient, label, area of truth and prediction on the network's grid, Dice.

    A slice whose truth is boxes has the overlap of boxes (IoU) in the place of a Dice. Each region adds its areas and
    its Dice.
    """
    regions = part.regions
    of_regions = (
        [
            (guess, truth, dice_scores(guess, truth))
            for guess, truth in zip(regions.planes(masks_nhw), part.planes, strict=True)
        ]
        if regions
        else []
    )
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [f"{column}_{name}" for name in regions.names for column in ("truth_px", "mask_px", "dice")]
        writer.writerow(["image", "slice", "patient", "label", "truth_px", "mask_px", "dice", "box_iou", *columns])
        for i, (sample, truth, mask, dice) in enumerate(
            zip(part.samples, part.masks, masks_nhw, dice_scores(masks_nhw, part.masks), strict=True)
        ):
            name = (
                safe_cell(one_line(sample.image.name)),
                sample.place,
                safe_cell(one_line(sample.patient)),
                sample.label,
            )
            agreement = ["", f"{box_scores(mask, truth).iou:.4f}"] if sample.weak else [f"{dice:.4f}", ""]
            parts = [
                cell
                for guessed, true, score in of_regions
                for cell in (int(true[i].sum()), int(guessed[i].sum()), f"{score[i]:.4f}")
            ]
            area = np.count_nonzero(truth), np.count_nonzero(mask)
            writer.writerow([*map(one_line, map(str, name)), *area, *agreement, *parts])


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


@dataclass(frozen=True)
class SliceScores:
    """Agreement of one slice's mask with the truth, on their common grid.

    Attributes:
        dice: 0 to 1.
        iou: Intersection over union, 0 to 1.
        hd95: The larger of the two directed 95th percentiles of the borders' distance, in pixels.
        nsd: Normalized surface Dice at 2 pixels, 0 to 1.
        truth_px: True lesion in pixels.
        guess_px: Predicted lesion in pixels.
        lesions: 8-connected components of the truth.
        found: Number of these that the prediction overlaps in a pixel or more.
        false_lesions: Predicted components that overlap no truth.
        overlap_px: Pixels in both masks.
        picture_px: Pixels of the slice.
    """

    dice: float
    iou: float
    hd95: float
    nsd: float
    truth_px: int
    guess_px: int
    lesions: int
    found: int
    false_lesions: int
    overlap_px: int
    picture_px: int


def slice_scores(guess_hw: NDArray[Any], truth_hw: NDArray[Any]) -> SliceScores:
    """Scores of a predicted mask of one slice; non-zero is lesion.

    Dice (L. Dice 1945), IoU, HD95 (D. Huttenlocher et al., PAMI 1993, at the 95th percentile) and NSD (S. Nikolov et
    al., JMIR 2021) are MONAI's if both masks have a pixel. Two empty masks agree: Dice, IoU and NSD are 1, HD95 is 0.
    If one is empty, Dice, IoU and NSD are 0 and HD95 is the slice's diagonal. No score is ever NaN.

    Args:
        guess_hw: ``(rows, columns)`` predicted mask.
        truth_hw: ``(rows, columns)`` true mask.

    Raises:
        InputError: The masks do not have two axes, have no pixels, or have different shapes.
    """
    guess, truth = np.asarray(guess_hw) != 0, np.asarray(truth_hw) != 0
    if guess.ndim != 2 or guess.shape != truth.shape or guess.size == 0:
        raise InputError(f"the predicted mask has shape {guess.shape}, the true one {truth.shape}")
    box = _box(guess | truth)
    overlap = guess[box] & truth[box]
    dice, iou, hd95, nsd = _agreement(guess, truth, box)
    lesions, found, false_lesions = _count_lesions(guess[box], truth[box], overlap)
    return SliceScores(
        dice=dice,
        iou=iou,
        hd95=hd95,
        nsd=nsd,
        truth_px=int(np.count_nonzero(truth)),
        guess_px=int(np.count_nonzero(guess)),
        lesions=lesions,
        found=found,
        false_lesions=false_lesions,
        overlap_px=int(np.count_nonzero(overlap)),
        picture_px=truth.size,
    )


def _box(mask_hw: NDArray[np.bool_], margin: int = 1) -> tuple[slice, slice]:
    """The mask's bounding box with a margin, cut at the picture.

    All scores of two masks are the same inside the box of their union. MONAI takes the outside of an array as
    background, so the borders are the same pixels, and their distances do not depend on the frame.
    """
    left, top, width, height = cv2.boundingRect(mask_hw.astype(np.uint8))
    return slice(max(top - margin, 0), top + height + margin), slice(max(left - margin, 0), left + width + margin)


def _agreement(
    guess: NDArray[np.bool_], truth: NDArray[np.bool_], box: tuple[slice, slice]
) -> tuple[float, float, float, float]:
    """Dice, IoU, HD95 and NSD, with the policy for empty masks."""
    import torch
    from monai.metrics import compute_dice, compute_iou
    from monai.metrics.utils import get_edge_surface_distance

    if not guess.any() and not truth.any():
        return 1.0, 1.0, 0.0, 1.0
    if not guess.any() or not truth.any():
        return 0.0, 0.0, float(np.hypot(*truth.shape)), 0.0
    guess_11hw, truth_11hw = (torch.from_numpy(mask[box].astype(np.uint8))[None, None] for mask in (guess, truth))
    dice, iou = compute_dice(guess_11hw, truth_11hw), compute_iou(guess_11hw, truth_11hw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns about an argument that it passes itself
        # As in compute_hausdorff_distance and compute_surface_dice, which would both compute the same distances.
        _, distances, _ = get_edge_surface_distance(guess_11hw[0, 0], truth_11hw[0, 0], symmetric=True)
    hd95 = max(float(torch.quantile(distance, 0.95)) for distance in distances)
    nsd = (torch.cat(distances) <= NSD_TOLERANCE_PX).float().mean()
    return float(dice), float(iou), hd95, float(nsd)


def _count_lesions(
    guess: NDArray[np.bool_], truth: NDArray[np.bool_], overlap: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """Numbers of true lesions, of found ones, and of predicted lesions that overlap no truth."""
    n_true, true_lesion_hw = _components(truth)
    n_guessed, guessed_lesion_hw = _components(guess)
    return (
        n_true,
        int(np.count_nonzero(np.bincount(true_lesion_hw[overlap]))),
        n_guessed - int(np.count_nonzero(np.bincount(guessed_lesion_hw[overlap]))),
    )


def _components(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32]]:
    if not mask.any():
        return 0, np.zeros(mask.shape, np.int32)
    count, numbers_hw = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return count - 1, numbers_hw


def segmentation_report(
    scores: Sequence[SliceScores], labels: Sequence[str], patients: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Metrics of masks per slice and per patient.

    Every estimate is ``{"value", "low", "high"}`` with the 95 % interval of `data.bootstrap` over patients, or None if
    it is undefined. Names that end in ``_all`` count every slice, names in ``_tumor`` those with a true lesion.

    Args:
        scores: Of each slice.
        labels: Class name of each slice; empty if only the mask is known.
        patients: Patient of each slice. An unknown one, ``""``, counts as a patient of its own.
        seed: Of the bootstrap.

    Returns:
        Counts ``n``, ``n_patients``, ``n_tumor``, ``n_lesions``; ``slice``: means of Dice, IoU, HD95 (pixels) and NSD,
        ``dice_tumor_median``, ``dice_by_label`` (tumor slices), ``lesion_recall`` (of all lesions, the share found),
        ``false_lesions`` (per slice), ``missed`` (tumor slices with an empty prediction) and ``false_masks``
        (tumor-free slices with any); ``patient``: means over patients of a patient's mean of Dice, IoU, HD95 and NSD,
        ``lesion_recall`` (of a patient's lesions; patients without one do not count) and ``false_lesions`` (per slice).
    """
    kinds = [name or "tumor" for _, name in zip(scores, labels, strict=True)]
    patients = _with_names(patients)
    value = {name: np.array([getattr(s, name) for s in scores], float) for name in SliceScores.__dataclass_fields__}
    sick = value["truth_px"] > 0
    marked = value["guess_px"] > 0
    every = np.ones(len(patients), bool)

    def mean(values: NDArray[Any], weights: NDArray[Any]) -> dict[str, Any] | None:
        return weighted_mean(values, weights.astype(float), patients, seed)

    per_slice: dict[str, Any] = {}
    per_patient: dict[str, Any] = {}
    for name in AGREEMENT:
        for part, chosen in (("all", every), ("tumor", sick)):
            per_slice[f"{name}_{part}"] = mean(value[name], chosen)
            per_patient[f"{name}_{part}"] = _mean_of_patients(value[name], chosen, patients, seed)
    lesions = value["lesions"]
    recall = np.divide(value["found"], lesions, out=np.zeros(len(patients)), where=lesions > 0)
    per_patient["lesion_recall"] = _mean_of_patients(recall, lesions, patients, seed)
    per_patient["false_lesions"] = _mean_of_patients(value["false_lesions"], every, patients, seed)
    per_slice |= {
        "dice_tumor_median": median(value["dice"], sick, patients, seed),
        "dice_by_label": {
            kind: mean(value["dice"], sick & (np.array(kinds) == kind))
            for kind in sorted({k for k, is_sick in zip(kinds, sick, strict=True) if is_sick})
        },
        "lesion_recall": mean(recall, lesions),
        "false_lesions": mean(value["false_lesions"], every),
        "missed": mean(~marked, sick),
        "false_masks": mean(marked, ~sick),
    }
    return {
        "n": len(patients),
        "n_patients": len(set(patients)),
        "n_tumor": int(sick.sum()),
        "n_lesions": int(lesions.sum()),
        "slice": per_slice,
        "patient": per_patient,
    }


def volume_dice(scores: Sequence[SliceScores], patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Dice over all voxels of a patient's slices (M. Buda et al., Computers in Biology and Medicine 2019).

    Args:
        scores: Of each slice.
        patients: Patient of each slice.
        seed: Of the bootstrap.

    Returns:
        ``n_patients``; ``mean`` and ``median``, each ``{"value", "low", "high"}`` or None without patients; ``sd``, the
        standard deviation over patients (n - 1), None for fewer than two; ``by_patient``, the Dice of each. A patient
        without lesion and mask has 1, a patient with only one of them 0.
    """
    voxels: dict[str, list[int]] = {}
    for patient, score in zip(_with_names(patients), scores, strict=True):
        counts = voxels.setdefault(patient, [0, 0])
        counts[0] += score.overlap_px
        counts[1] += score.truth_px + score.guess_px
    by_patient = {patient: 2 * both / total if total else 1.0 for patient, (both, total) in sorted(voxels.items())}
    names, dice = list(by_patient), np.array(list(by_patient.values()))
    every = np.ones(len(names), bool)
    return {
        "n_patients": len(names),
        "mean": weighted_mean(dice, every, names, seed),
        "median": median(dice, every, names, seed),
        "sd": float(dice.std(ddof=1)) if len(dice) > 1 else None,
        "by_patient": by_patient,
    }


def _with_names(patients: Sequence[str]) -> list[str]:
    """The patients, with a name of its own for each unknown one."""
    return [patient or f"slice-{i}" for i, patient in enumerate(patients)]


def _mean_of_patients(
    values: NDArray[np.float64], weights: NDArray[Any], patients: list[str], seed: int
) -> dict[str, Any] | None:
    """Mean over patients of the weighted mean over a patient's slices; patients without any weight do not count."""
    names, number = np.unique(patients, return_inverse=True)
    weight = np.bincount(number, weights, len(names))
    total = np.bincount(number, np.where(weights > 0, values, 0) * weights, len(names))
    means = np.divide(total, weight, out=np.zeros(len(names)), where=weight > 0)
    return weighted_mean(means, weight > 0, names, seed)
