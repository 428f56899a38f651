"""End to end on held-out patients: source files in, label and mask against the truth in the source's own geometry.

python -m pipeline.evaluate --data datasets/brisc --fold 0 --out end_to_end.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from data.datasets import Sample, load_samples, read_sample
from data.errors import InputError
from data.labels import CLASSES, NO_TUMOR
from data.readers import open_scan
from pipeline.pipeline import Pipeline

_RESAMPLES = 1000


@dataclass(frozen=True)
class Case:
    """One scan's truth and what the pipeline made of it.

    Attributes:
        scan: The file's name.
        patient: Its patient.
        volume: Several slices, judged as one scan.
        label: The true class.
        guess: The pipeline's class.
        dice: Over all voxels of the scan; both masks empty 1, one of them empty 0.
        free_slices: Slices without tumor.
        free_marked: Those of them on which the pipeline drew a mask.
    """

    scan: str
    patient: str
    volume: bool
    label: str
    guess: str
    dice: float
    free_slices: int
    free_marked: int


def evaluate_pipeline(
    pipeline: Pipeline, samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None
) -> list[Case]:
    """Run every scan once, as `tumorlens run` would, and compare.

    Args:
        pipeline: Both models.
        samples: Labelled slices; those of one volume are judged together.
        progress: Called with the number of scans done and of all.

    Raises:
        InputError: A scan or a mask cannot be used.
    """
    by_file: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_file.setdefault(sample.image, []).append(sample)
    cases = []
    for done, members in enumerate(by_file.values(), start=1):
        cases.append(_judge(pipeline, members))
        if progress:
            progress(done, len(by_file))
    return cases


def _judge(pipeline: Pipeline, members: list[Sample]) -> Case:
    first = members[0]
    scan = open_scan(first.image)
    result = pipeline.run(scan)
    truth = _true_mask(members, scan.n_slices)
    guess = np.stack([scan.view(result.mask, k) for k in range(scan.n_slices)])
    if guess.shape != truth.shape:
        raise InputError(f"{first.mask}: the mask has shape {truth.shape}, its scan {guess.shape}")
    free = ~truth.any(axis=(1, 2))
    sick = [s.label for s in members if s.label != CLASSES[NO_TUMOR]]
    return Case(
        scan=first.image.name,
        patient=first.patient or first.image.name,
        volume=scan.volume,
        label=sick[0] if sick else CLASSES[NO_TUMOR],
        guess=result.label,
        dice=dice(guess, truth),
        free_slices=int(free.sum()),
        free_marked=int(np.count_nonzero(guess[free].any(axis=(1, 2)))),
    )


def _true_mask(members: list[Sample], n_slices: int) -> NDArray[np.bool_]:
    """``(n_slices, rows, columns)``, in the orientation of `Scan.slice`."""
    drawn: Any = next((s.mask for s in members if s.mask is not None), None)
    if drawn is not None and n_slices > 1:
        mask = open_scan(drawn)
        return np.stack([mask.slice(k) > 0 for k in range(mask.n_slices)])
    image, single, _ = read_sample(members[0])
    truth = np.zeros((n_slices, *image.shape[:2]), bool)
    if single is not None:
        truth[0] = single > 0
    return truth


def dice(guess: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice of two masks of one shape; 1 where both are empty, 0 where one is."""
    total = int(np.count_nonzero(guess)) + int(np.count_nonzero(truth))
    return 1.0 if total == 0 else 2 * int(np.count_nonzero((guess != 0) & (truth != 0))) / total


def summarise(cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """Figures of slices and of volumes apart, each with a 95 % bootstrap interval over patients.

    A tumor that the classifier missed has Dice 0; so has a mask on a scan without tumor.
    """
    kinds = {"slices": [c for c in cases if not c.volume], "volumes": [c for c in cases if c.volume]}
    return {kind: _figures(members, seed) for kind, members in kinds.items() if members}


def _figures(cases: list[Case], seed: int) -> dict[str, Any]:
    patients = np.array([c.patient for c in cases])
    label, guess = np.array([c.label for c in cases]), np.array([c.guess for c in cases])
    score = np.array([c.dice for c in cases])
    sick = label != CLASSES[NO_TUMOR]
    called = guess != CLASSES[NO_TUMOR]
    free = np.array([c.free_slices for c in cases], float)
    marked = np.array([c.free_marked for c in cases], float)
    present = [name for name in CLASSES if (label == name).any()]

    def estimate(values: NDArray[Any], weights: NDArray[Any]) -> dict[str, Any] | None:
        return _with_interval(values.astype(float), weights.astype(float), patients, seed)

    every = np.ones(len(cases))
    return {
        "n": len(cases),
        "n_patients": len(set(patients)),
        "accuracy": estimate(guess == label, every),
        "recall": {name: float((guess == name)[label == name].mean()) for name in present},
        "sensitivity": estimate(called, sick),
        "specificity": estimate(~called, ~sick),
        "dice_all": estimate(score, every),
        "dice_tumor": estimate(score, sick),
        "dice_tumor_median": float(np.median(score[sick])) if sick.any() else None,
        "dice_by_label": {n: float(score[label == n].mean()) for n in present if n != CLASSES[NO_TUMOR]},
        "n_tumor_free_slices": int(free.sum()),
        "false_masks": estimate(np.divide(marked, free, out=np.zeros_like(free), where=free > 0), free),
    }


def _with_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], patients: NDArray[Any], seed: int
) -> dict[str, Any] | None:
    """Weighted mean and its 95 % percentile interval when patients, not slices, are drawn with replacement
    (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993)."""
    if not weights.sum():
        return None
    _, number = np.unique(patients, return_inverse=True)
    above, below = np.bincount(number, values * weights), np.bincount(number, weights)
    drawn = np.random.default_rng(seed).integers(0, len(above), (_RESAMPLES, len(above)))
    total = below[drawn].sum(axis=1)
    means = above[drawn].sum(axis=1)[total > 0] / total[total > 0]
    low, high = np.percentile(means, (2.5, 97.5))
    return {"value": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}


def main(
    data: Annotated[list[str], typer.Option(help="As for training; repeatable.")],
    fold: Annotated[int | None, typer.Option(min=0, help="Only the patients of this fold. [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write figures and cases here as JSON.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Your own classifier.safetensors.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Your own segmenter.safetensors.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Tumor probability of the gate.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Measure the whole pipeline on labelled scans."""
    from data.atomic import whole_file
    from pipeline.cli import user_errors

    with user_errors():
        samples = [s for source in data for s in load_samples(source)]
        chosen = [s for s in samples if s.label and (fold is None or s.fold == fold)]
        if not chosen:
            raise InputError(f"{', '.join(data)}: no labelled scan" + ("" if fold is None else f" in fold {fold}"))
        pipeline = Pipeline.load(classifier, segmenter, device, threshold)

        def show(done: int, total: int) -> None:
            if sys.stderr.isatty():
                typer.echo(f"\r{done} of {total} scans", nl=done == total, err=True)

        cases = evaluate_pipeline(pipeline, chosen, show)
        report = {
            "data": data,
            "fold": fold,
            "threshold": pipeline.threshold,
            "models": {"classification": _sha(pipeline.classifier), "segmentation": _sha(pipeline.segmenter)},
            **summarise(cases),
        }
        typer.echo(json.dumps(report, indent=2))
        if out is not None:
            with whole_file(out) as part:
                part.write_text(json.dumps({**report, "cases": [vars(c) for c in cases]}, indent=2) + "\n")


def _sha(stage: Any) -> str:
    return str(stage.card["sha256"])


if __name__ == "__main__":
    typer.run(main)
