"""What each step of a run costs a slice, in processor time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_ahead import hash_of
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.write import write_result
from tumorlens.pipeline.pipeline import AT_ONCE, Decision, Pipeline

_ROUNDS = 4  # the first does not count


def measure_steps(pipeline: Pipeline, pictures: list[Path], out: Path) -> dict[str, float]:
    """Step -> milliseconds of processor time a picture, all threads, the median of some rounds.

    Segmenting counts for every picture, also for those that are not segmented because they show no tumor.

    Args:
        pipeline: The loaded models.
        pictures: Files of one slice each. They share batches as in a run.
        out: Folder for the results.
    """
    rounds = []
    for _ in range(_ROUNDS):
        spent: dict[str, float] = defaultdict(float)
        for first in range(0, len(pictures), AT_ONCE):
            _run_group(pipeline, pictures[first : first + AT_ONCE], out, spent)
        rounds.append(spent)
    return {step: round(1000 * float(np.median([r[step] for r in rounds[1:]])) / len(pictures), 2) for step in spent}


def _run_group(pipeline: Pipeline, pictures: list[Path], out: Path, spent: dict[str, float]) -> None:
    options = RunOptions()

    def timed(step: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.process_time()
        result = call(*arguments)
        spent[step] += time.process_time() - begun
        return result

    def read(picture: Path) -> Any:
        return open_source(open_scan(picture), options), hash_of(Job(picture, picture.name))

    opened = [timed("read", read, picture) for picture in pictures]
    cases = [timed("prepare", prepare, scan, pipeline.classifier.input_size) for scan, _ in opened]
    scores = timed("classify", pipeline.classify, cases)
    screenings = [timed("classify", pipeline.screen, *pair) for pair in zip(cases, scores, strict=True)]
    answers = timed("segment", pipeline.segment, cases, scores, screenings)
    for picture, (_, sha256), case, *decided in zip(pictures, opened, cases, scores, screenings, answers, strict=True):
        result = timed("conclude", pipeline.conclude, case, Decision(*decided))
        timed("write", write_result, result, out / picture.stem, picture.name, {"source_sha256": sha256}, options)
