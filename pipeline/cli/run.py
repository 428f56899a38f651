"""`tumorlens run`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.config import setting
from tumorlens.data.errors import InputError
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, note, own_remarks, say, show_error
from tumorlens.pipeline.options import LoadOptions, RunOptions

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.batch.run import BatchReport


_SHOWN = 5  # files that were left alone, by name


@dataclass(frozen=True)
class RunCall:
    """The inputs of a call, the place of its results, and its printed output."""

    inputs: tuple[str, ...] = setting(help="Files, folders (recursive) or globs.", metavar="INPUT...", argument=True)
    out: Path | None = setting(None, "Output folder.", flag="-o --out")
    overwrite: bool = setting(False, "Replace results in OUT.")
    resume: bool = setting(False, "Keep results in OUT, do the rest.", flag="--continue")
    list_only: bool = setting(False, "Show the scans and DICOM series found, and leave.", flag="--list")
    series: tuple[str, ...] = setting(
        (), "DICOM series to run: UID, number or all; repeatable.", metavar="UID", shown="post-contrast T1"
    )
    jobs: int = setting(1, "Threads that read and prepare scans ahead.", least=1)
    quiet: bool = setting(False, "Print errors only.", flag="-q --quiet")
    verbose: bool = setting(False, "Print what other packages log and warn of, too.", flag="-v --verbose")
    as_json: bool = setting(False, "Print one JSON object per scan.", flag="--json")


def _run(values: Values) -> int:
    call = fill(RunCall, values)
    if call.overwrite and call.resume:
        raise InputError("give --overwrite or --continue, not both")
    if call.quiet and call.verbose:
        raise InputError("give -q or -v, not both")
    options = fill(RunOptions, values)
    if call.out is None and not call.list_only:
        raise InputError("-o OUT is missing: the folder for the results")
    load = fill(LoadOptions, values)
    with own_remarks(hidden=call.quiet), ScratchFolder() as scratch:
        if call.inputs and call.out and not call.list_only:
            _prepare(Path(call.inputs[0]))
        from tumorlens.data.locks import sole_writer
        from tumorlens.pipeline.batch.inputs import collect
        from tumorlens.pipeline.batch.listing import check_headers, describe, list_work

        work = collect(call.inputs, call.out or Path(scratch) / "none", Path(scratch), call.series)
        if call.out is None or call.list_only:
            work.jobs = [check_headers(job, options.frame) for job in work.jobs]
            say(json.dumps(describe(work, options.keep_identifiers)) if call.as_json else list_work(work))
            return 1 if any(job.error for job in work.jobs) else 0
        for job in () if call.quiet or call.as_json else work.jobs:
            for text in job.notes:
                note(f"{job.name}: {text}")
        if work.left_alone and not (call.quiet or call.as_json):
            shown = ", ".join(work.left_alone[:_SHOWN]) + (", ..." if len(work.left_alone) > _SHOWN else "")
            note(f"files that look like no scan were left alone ({len(work.left_alone)}): {shown}")
        with sole_writer(call.out):  # from now on: a second run ends before it loads the models
            return _run_jobs(work.jobs, call.out, call, load, options)


def _prepare(path: Path) -> None:
    """Let the process that decodes a file start, if one does, while this one imports packages and loads models."""
    from tumorlens.data.formats.open import prepare_to_open

    prepare_to_open(path)


def _run_jobs(jobs: list[Job], out: Path, call: RunCall, load: LoadOptions, options: RunOptions) -> int:
    """Run the scans, print what became of them, and return the exit code."""
    from tumorlens.data.devices import keep_freed_memory
    from tumorlens.pipeline.batch.memory import remember_inputs
    from tumorlens.pipeline.batch.run import check_output, run_batch
    from tumorlens.pipeline.pipeline import Pipeline

    check_output(out, jobs, call.overwrite, call.resume, options)
    remember_inputs(out, call.inputs)
    for job in [job for job in jobs if not job.error][:1]:
        _prepare((job.files or (job.path,))[0])  # of a folder
    keep_freed_memory()
    pipeline = Pipeline.load(**vars(load))
    finished: list[Job] = []
    with Progress("scans", hidden=call.quiet or call.as_json or len(jobs) < 2) as progress:

        def done(job: Job, row: dict[str, str], content: dict[str, Any]) -> None:
            finished.append(job)
            if row["error"]:
                show_error(row["error"])
            if call.as_json:
                say(json.dumps(content or {"scan": {"name": job.name}, "error": row["error"]}))
            if progress:
                progress(len(finished), len(jobs))

        report = run_batch(pipeline, jobs, out, call.resume, call.jobs, options, done)
    if not (call.quiet or call.as_json):
        _print_summary(report, finished, out, options)
    return 1 if report.failed else 0


def _print_summary(report: BatchReport, finished: list[Job], out: Path, options: RunOptions) -> None:
    if len(finished) == 1 and not report.failed:
        job, row = finished[0], report.rows[-1]
        review = f"  [review: {row['review']}]" if row["review"] else ""
        confidence = f" ({row['confidence']})" if row["confidence"] else ""
        say(f"{job.name}: {row['label']}{confidence}{review}")
        if options.overlay:
            say(f"overlay: {out / job.folder / 'overlay.png'}")
    counts = Counter(row["label"] or "failed" for row in report.rows)
    kept = f" ({report.kept} kept from before)" if report.kept else ""
    labels = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    scans = "scan" if len(report.rows) == 1 else "scans"
    say(f"{len(report.rows)} {scans}{kept}: {labels}; table: {out / 'results.csv'}")
    if options.report or options.pdf:
        say(f"report: {out / 'report.html'}")


run = command(
    _run,
    RunCall,
    RunOptions,
    LoadOptions,
    details="Exit codes: 0 all done, 1 some scans failed (see results.csv), 2 wrong use.",
    stopped=lambda _: "go on with --continue",
    examples="""
    tumorlens run scan.nii.gz -o results
    tumorlens run study/ "more/*.png" -o results --continue
    tumorlens run study/ --list
    tumorlens run export.zip -o results --series all --json
    """,
)
