"""How far engines and precisions agree with PyTorch in fp32, slice by slice, and what each is worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet, prepare
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import Engine, UnsupportedNetworkError
from tumorlens.pipeline.engines.opening import open_stages
from tumorlens.segmentation.evaluation.metrics import dice_scores
from tumorlens.segmentation.postprocess import clean_mask

REFERENCE = Engine("torch", "cpu", "fp32")
LABELS, MASKS, LOSS = 0.998, 0.995, 0.001  # least agreement of labels, least mean Dice of masks, most that may be lost
_CHUNK = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers:
    """What an engine says of slices.

    Attributes:
        labels: ``(n,)`` index into `data.labels.CLASSES`, -1 where the slice is refused.
        masks: ``(n, size, size)`` uint8, 0 and 1, on the network's grid, of every slice.
        seconds: Of both stages for all slices.
    """

    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    seconds: float


def compare_engines(
    samples: Sequence[Sample],
    classifier: str | Path | None = None,
    segmenter: str | Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for each engine and precision that this machine has, the reference first.

    Args:
        samples: Labelled slices, best of patients that the weights have not seen.
        classifier: Weights, or none for the shipped ones.
        segmenter: The same for stage two.
        progress: Called with the number of slices done and of all.

    Returns:
        ``engine, precision, n, labels_agree, masks_dice, accuracy, dice_tumor, ms_per_slice, holds``; `masks_dice` is
        the mean over the slices in which the reference finds a tumor, `holds` whether the engine may stand in for it.

    Raises:
        InputError: Unusable weights or slices, or stages of different sizes.
    """
    engines = [REFERENCE, *_others()]
    rows: list[dict[str, Any]] = []
    first: Answers | None = None
    known: PreparedSet | None = None
    for number, engine in enumerate(engines):
        try:
            stages = open_stages(classifier, segmenter, engine)
        except UnsupportedNetworkError:
            continue
        size = stages[0].input_size
        if size != stages[1].input_size:
            raise InputError(f"the stages see {size} and {stages[1].input_size} pixels; compare weights of one size")
        if known is None:
            known = prepare(samples, Preprocess(size))
        done = _offset(progress, number * len(samples), len(engines) * len(samples))
        answers = _ask(*stages, known, done)
        first = first or answers
        rows.append(_row(engine, answers, first, known))
    return rows


def _others() -> list[Engine]:
    found = []
    for name in ("torch", "openvino"):
        for precision in ("fp32", "bf16"):
            try:
                engine = choose_engine(name, "cpu", precision)
            except InputError:  # not of this machine
                continue
            if engine != REFERENCE:
                found.append(engine)
    return found


def _offset(progress: Progress | None, begun: int, total: int) -> Callable[[int], None]:
    return (lambda done: progress(begun + done, total)) if progress else lambda done: None


def _ask(classifier: Any, segmenter: Any, known: PreparedSet, progress: Callable[[int], None]) -> Answers:
    images = known.images
    classifier.look(images[:2]), segmenter.predict(images[:2])  # what is done once is no part of the time
    labels, masks, begun = [], [], time.perf_counter()
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        logits, strangeness = classifier.look(part)
        refused = classifier.refuses(strangeness, np.ones(len(part), bool))
        labels.append(np.where(refused, -1, classifier.labels(classifier.calibrate(logits))))
        masks.append(np.stack([clean_mask(m, segmenter.mask_threshold, 0) for m in segmenter.predict(part)]))
        progress(min(start + _CHUNK, len(images)))
    return Answers(np.concatenate(labels), np.concatenate(masks), time.perf_counter() - begun)


def _row(engine: Engine, answers: Answers, first: Answers, known: PreparedSet) -> dict[str, Any]:
    found = first.labels > NO_TUMOR
    sick = known.masks.any(axis=(1, 2))
    gated = answers.masks * (answers.labels > NO_TUMOR)[:, None, None]
    gated_first = first.masks * found[:, None, None]
    between = float(dice_scores(answers.masks[found], first.masks[found]).mean()) if found.any() else 1.0
    agree = float((answers.labels == first.labels).mean())

    def worth(labels: NDArray[np.int64], masks: NDArray[np.uint8]) -> tuple[float, float]:
        drawn = float(dice_scores(masks[sick], known.masks[sick]).mean()) if sick.any() else 1.0
        return float((labels == known.labels).mean()), drawn

    accuracy, dice = worth(answers.labels, gated)
    best = worth(first.labels, gated_first)
    holds = agree >= LABELS and between >= MASKS and accuracy >= best[0] - LOSS and dice >= best[1] - LOSS
    return {
        "engine": engine.name,
        "precision": engine.precision,
        "n": len(known),
        "labels_agree": round(agree, 5),
        "masks_dice": round(between, 5),
        "accuracy": round(accuracy, 5),
        "dice_tumor": round(dice, 5),
        "ms_per_slice": round(1000 * answers.seconds / max(1, len(known)), 2),
        "holds": holds,
    }


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


def labelled(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the samples that say what they show.

    Raises:
        InputError: None does.
    """
    known = [s for s in samples if s.label in CLASSES]
    if not known:
        raise InputError("no labelled slice to compare engines on")
    return known
