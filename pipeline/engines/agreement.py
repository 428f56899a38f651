"""Agreement of engines and precisions with PyTorch in fp32, slice by slice, with accuracy and speed of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import NO_TUMOR, outline_of
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet, prepare
from tumorlens.pipeline.engines.choice import ENGINES, PRECISIONS, choose_engine
from tumorlens.pipeline.engines.engine import Engine, UnsupportedNetworkError
from tumorlens.pipeline.engines.opening import open_stages
from tumorlens.segmentation.evaluation.metrics import dice_scores
from tumorlens.segmentation.postprocess import threshold_u8
from tumorlens.segmentation.predict import Segmenter

REFERENCE = Engine("torch", "cpu", "fp32")
# An engine may replace the reference from this agreement of labels and mean Dice of masks on, and up to this loss of
# accuracy and Dice against the truth.
_LEAST_AGREEMENT, _LEAST_DICE, _MOST_LOSS = 0.998, 0.995, 0.001
_CHUNK = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers:
    """An engine's answers for slices.

    Attributes:
        labels: ``(n,)`` number of each label, -1 where the slice is refused.
        masks: ``(n, size, size)`` uint8, 0 and 1, of every slice on the network's grid.
        seconds: Time that both stages take for all slices.
        regions: ``(n, c, size, size)`` masks of the segmenter's regions; c is 0 where it tells none apart.
    """

    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    seconds: float
    regions: NDArray[np.uint8] | None = None


def compare_engines(
    samples: Sequence[Sample],
    classifier: str | Path | None = None,
    segmenter: str | Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for each engine and precision of this machine. The reference comes first.

    Args:
        samples: Labeled slices, preferably of patients that the weights were not trained on.
        classifier: Weights, or None for the shipped ones.
        segmenter: The same for stage two.
        progress: Called with the number of finished slices and of all slices.

    Returns:
        ``engine, precision, n, labels_agree, masks_dice, accuracy, dice_tumor, ms_per_slice, holds``. `masks_dice` is
        the mean over the slices in which the reference finds a tumor, of regions that of the worst one. `holds` says
        whether the engine may replace the reference.

    Raises:
        InputError: Weights or slices are unusable, or the stages have different input sizes.
    """
    engines = [REFERENCE, *_other_engines()]
    rows: list[dict[str, Any]] = []
    reference: Answers | None = None
    prepared: PreparedSet | None = None
    for number, engine in enumerate(engines):
        try:
            stages = open_stages(classifier, segmenter, engine)
        except UnsupportedNetworkError:
            continue
        size = stages[0].input_size
        if size != stages[1].input_size:
            raise InputError(
                f"the stages take slices of {size} and {stages[1].input_size} pixels; give weights of one size"
            )
        if prepared is None:
            prepared = prepare(samples, Preprocess(size), classes=stages[0].classes)
        done = _offset(progress, number * len(samples), len(engines) * len(samples))
        answers = _answers(*stages, prepared, done)
        reference = reference or answers
        rows.append(compare_answers(engine, answers, reference, prepared))
    return rows


def _other_engines() -> list[Engine]:
    engines = []
    for name, precision in product(ENGINES, PRECISIONS):
        if "auto" in (name, precision):
            continue
        try:
            engine = choose_engine(name, "cpu", precision)
        except InputError:  # this machine does not have it
            continue
        if engine != REFERENCE:
            engines.append(engine)
    return engines


def _offset(progress: Progress | None, begun: int, total: int) -> Callable[[int], None]:
    return (lambda done: progress(begun + done, total)) if progress else lambda done: None


def _answers(
    classifier: Classifier, segmenter: Segmenter, prepared: PreparedSet, progress: Callable[[int], None]
) -> Answers:
    images = prepared.images
    classifier.look(images[:2])  # the first call takes longer and is not timed
    segmenter.predict(images[:2])
    channels = [segmenter.channel_of(outline_of(sample.sequence)) for sample in prepared.samples]
    labels, masks, begun = [], [], time.perf_counter()
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        seen = classifier.look(part)
        refused = classifier.refuses(seen.strangeness, np.ones(len(part), bool))
        labels.append(np.where(refused, -1, classifier.labels(classifier.calibrate(seen.logits))))
        maps, parts = segmenter.predict_parts(part, channels[start : start + _CHUNK])
        masks.append(np.concatenate([maps[:, None], parts], axis=1) >= threshold_u8(segmenter.mask_threshold))
        progress(min(start + _CHUNK, len(images)))
    seconds, drawn = time.perf_counter() - begun, np.concatenate(masks).astype(np.uint8)
    return Answers(np.concatenate(labels), drawn[:, 0], seconds, drawn[:, 1:])


def compare_answers(engine: Engine, answers: Answers, reference: Answers, truth: PreparedSet) -> dict[str, Any]:
    """The row of an engine, see `compare_engines`."""
    positive = reference.labels > NO_TUMOR
    agreement = float((answers.labels == reference.labels).mean())
    dice_between = _mean_dice(answers.masks[positive], reference.masks[positive])
    if answers.regions is not None and reference.regions is not None:
        both = zip(answers.regions[positive].swapaxes(0, 1), reference.regions[positive].swapaxes(0, 1), strict=True)
        dice_between = min(dice_between, *(_mean_dice(one, other) for one, other in both), 1.0)
    accuracy, dice = _scores(answers, truth)
    reference_accuracy, reference_dice = _scores(reference, truth)
    holds = (
        agreement >= _LEAST_AGREEMENT
        and dice_between >= _LEAST_DICE
        and accuracy >= reference_accuracy - _MOST_LOSS
        and dice >= reference_dice - _MOST_LOSS
    )
    return {
        "engine": engine.name,
        "precision": engine.precision,
        "n": len(truth),
        "labels_agree": round(agreement, 5),
        "masks_dice": round(dice_between, 5),
        "accuracy": round(accuracy, 5),
        "dice_tumor": round(dice, 5),
        "ms_per_slice": round(1000 * answers.seconds / max(1, len(truth)), 2),
        "holds": holds,
    }


def _scores(answers: Answers, truth: PreparedSet) -> tuple[float, float]:
    """Accuracy, and mean Dice over the slices with a lesion. A slice that is called free of tumor has no mask."""
    sick = truth.masks.any(axis=(1, 2))
    gated = answers.masks * (answers.labels > NO_TUMOR)[:, None, None]
    known = truth.labels != truth.classes.untyped
    right = (answers.labels == truth.labels)[known]
    return float(right.mean()) if known.any() else 0.0, _mean_dice(gated[sick], truth.masks[sick])


def _mean_dice(masks: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    return float(dice_scores(masks, others).mean()) if len(masks) else 1.0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| engine | precision | labels agree | Dice between masks | accuracy | tumor Dice | ms a slice | holds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['engine']} | {row['precision']} | {row['labels_agree']:.2%} | {row['masks_dice']:.4f} | "
            f"{row['accuracy']:.2%} | {row['dice_tumor']:.4f} | {row['ms_per_slice']:.1f} | "
            f"{'yes' if row['holds'] else 'no'} |"
        )
    return "\n".join(lines)


def labeled(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that have a label.

    Raises:
        InputError: No sample has a label.
    """
    with_label = [s for s in samples if s.label]
    if not with_label:
        raise InputError("no slice has a label; engines can only be compared on labeled slices")
    return with_label
