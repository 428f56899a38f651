"""The demonstration: a phantom, or your own scan, goes through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.outputs import TABLE
from tumorlens.pipeline.pipeline import Pipeline


def run_demo(scan: Path | None, out: Path, seed: int, device: str, say: Callable[[str], None]) -> None:
    """Run one scan in a new folder of `out`, and say what its label is and where its files are.

    Args:
        scan: Your scan, or None for a phantom.
        out: The folder in which the new folder is made.
        seed: Another seed gives another phantom.
        device: As in `pipeline.pipeline.Pipeline.load`.
        say: Called with each line.

    Raises:
        InputError: The scan cannot be used.
    """
    results = _new_folder(out)
    if scan is None:
        scan = results / "phantom.png"
        write_png(scan, phantom_slice(seed, "meningioma").image)
        say(f"phantom scan: {scan} (synthetic, made with seed {seed})")
    with ScratchFolder() as scratch:
        jobs = collect([str(scan)], results, Path(scratch)).jobs
        contents: dict[str, dict[str, Any]] = {}

        def done(job: Job, _row: dict[str, str], content: dict[str, Any]) -> None:
            contents[job.name] = content

        report = run_batch(Pipeline.load(device=device), jobs, results, done=done)
    if report.failed:
        raise InputError("; ".join(row["error"] for row in report.rows if row["error"]))
    for job, row in zip(jobs, report.rows, strict=True):
        confidence = f"confidence {row['confidence']}" if row["confidence"] else row["review"].removeprefix("refused: ")
        say(f"label:   {row['label']} ({confidence}), in {results / TABLE}")
        say(f"overlay: {results / job.folder / 'overlay.png'}")
        masks = [file for file in contents[job.name]["files"] if file.startswith("mask.")]
        if masks:  # a refused scan has none
            say(f"mask:    {results / job.folder / masks[-1]}")


def _new_folder(out: Path) -> Path:
    """``results``, or ``results-2`` and so on if that exists: it may hold your own results."""
    names = ("results", *(f"results-{n}" for n in range(2, 10_000)))
    return next(out / name for name in names if not (out / name).exists())
