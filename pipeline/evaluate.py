"""End to end on held-out patients: source files in, label and mask against the truth in the source's own geometry.

python -m pipeline.evaluate --data datasets/brisc --fold 0 --out end_to_end.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from data.datasets import Sample, load_samples, read_mask, read_volume_mask
from data.errors import InputError
from data.labels import CLASSES, NO_TUMOR
from data.partition import DataConfig, load_partition
from data.readers import open_scan
from data.scan import Scan
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
        dice: Over all voxels of the scan; both masks empty 1, one of them empty 0. None if the true mask is not known.
        free_slices: Slices without tumor.
        free_marked: Those of them on which the pipeline drew a mask.
    """

    scan: str
    patient: str
    volume: bool
    label: str
    guess: str
    dice: float | None
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
    truth = _true_mask(members, scan)
    sick = [s.label for s in members if s.label != CLASSES[NO_TUMOR]]
    free = marked = 0
    if truth is not None:
        for k in range(scan.n_slices):
            if not scan.view(truth, k).any():
                free += 1
                marked += bool(scan.view(result.mask, k).any())
    return Case(
        scan=first.image.name,
        patient=first.patient or first.image.name,
        volume=scan.volume,
        label=sick[0] if sick else CLASSES[NO_TUMOR],
        guess=result.label,
        dice=None if truth is None else dice(result.mask, truth),
        free_slices=free,
        free_marked=marked,
    )


def _true_mask(members: list[Sample], scan: Scan) -> NDArray[np.uint8] | None:
    """In the array order of ``scan.voxels``; none for a tumor that the set does not outline."""
    drawn = next((s.mask for s in members if s.mask is not None), None)
    if drawn is not None:
        return read_volume_mask(drawn, scan) if scan.volume else read_mask(drawn, scan)
    if scan.annotation is not None and scan.annotation.mask is not None:
        return scan.annotation.mask
    if any(s.label != CLASSES[NO_TUMOR] for s in members):
        return None
    return np.zeros(scan.voxels.shape if scan.volume else scan.voxels.shape[:2], np.uint8)


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
    outlined = np.array([c.dice is not None for c in cases])
    score = np.array([c.dice or 0.0 for c in cases])
    sick = label != CLASSES[NO_TUMOR]
    called = guess != CLASSES[NO_TUMOR]
    free = np.array([c.free_slices for c in cases], float)
    marked = np.array([c.free_marked for c in cases], float)
    drawn = sick & outlined
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
        "n_outlined": int(outlined.sum()),
        "dice_all": estimate(score, outlined),
        "dice_tumor": estimate(score, drawn),
        "dice_tumor_median": float(np.median(score[drawn])) if drawn.any() else None,
        "dice_by_label": {n: float(score[drawn & (label == n)].mean()) for n in sorted(set(label[drawn]))},
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


def test_samples(config: DataConfig) -> list[Sample]:
    """The labelled samples that a training run with these settings would test on.

    Raises:
        InputError: Unusable data, or no such fold.
    """
    samples = _labelled(config)
    if all(s.fold is not None for s in samples):
        chosen = [s for s in samples if s.fold == config.fold]
        if not chosen:
            raise InputError(f"{', '.join(config.data)}: no labelled scan in fold {config.fold}")
        return chosen
    return load_partition(config, keep=lambda sample: bool(sample.label)).test.samples


def _labelled(config: DataConfig) -> list[Sample]:
    samples = [s for source in config.data for s in load_samples(source, dict(config.label_map)) if s.label]
    if not samples:
        raise InputError(f"{', '.join(config.data)}: no labelled scan")
    return samples


def main(
    data: Annotated[list[str], typer.Option(help="As for training; repeatable.")],
    fold: Annotated[
        int | None, typer.Option(min=0, help="Only the test patients of this fold; all without it.")
    ] = None,
    label_map: Annotated[list[str] | None, typer.Option("--map", help="Your label names: NAME=CLASS.")] = None,
    seed: Annotated[int, typer.Option(help="Of the folds, where the data have none of their own.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write figures and cases here as JSON.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Your own classifier.safetensors.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Your own segmenter.safetensors.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Tumor probability of the gate.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Measure the whole pipeline on labelled scans."""
    from data.atomic import whole_file
    from pipeline.cli import user_errors
    from pipeline.cli_train import parse_map

    with user_errors():
        if out is not None and not os.access(next(p for p in out.absolute().parents if p.exists()), os.W_OK):
            raise InputError(f"{out}: cannot be written")
        config = DataConfig(tuple(data), fold or 0, "folds", "drop", tuple(parse_map(label_map)), seed=seed)
        chosen = test_samples(config) if fold is not None else _labelled(config)
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
