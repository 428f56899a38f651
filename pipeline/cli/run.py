"""`tumorlens run`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.config import setting
from tumorlens.data.errors import InputError
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, note, own_remarks, say, show_error
from tumorlens.pipeline.options import LoadOptions, RunOptions, is_dicomweb, is_url

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.batch.run import BatchReport, Done
    from tumorlens.pipeline.services.stores.mirror import Inputs
    from tumorlens.pipeline.services.stores.output import Output

_SHOWN = 5  # files that were left alone, by name
_FETCHING = 4  # threads that fetch and read scans of a store ahead
_JOB_SECONDS = 600.0


@dataclass(frozen=True)
class RunCall:
    """The inputs of a call, the place of its results, and its printed output."""

    inputs: tuple[str, ...] = setting(
        (), "Files, folders (recursive), globs or URLs.", metavar="INPUT...", argument=True
    )
    out: str | None = setting(None, "Output folder, or URL (s3://...).", metavar="OUT", flag="-o --out")
    overwrite: bool = setting(False, "Replace results in OUT.")
    resume: bool = setting(False, "Keep results in OUT, do the rest.", flag="--continue")
    list_only: bool = setting(False, "Show the scans and DICOM series found, and leave.", flag="--list")
    series: tuple[str, ...] = setting(
        (), "DICOM series to run: UID, number or all; repeatable.", metavar="UID", shown="post-contrast T1"
    )
    jobs: int = setting(1, "Threads that read and prepare scans ahead.", least=1)
    ray: str | None = setting(
        None,
        "Run on a Ray cluster: one that runs (HOST:PORT or auto), or by itself one of this machine.",
        metavar="[ADDRESS]",
        alone="local",
    )
    workers: int | None = setting(
        None, "Worker processes of --ray.", least=1, shown="one for each GPU, or else for every 4 cores"
    )
    job_seconds: float | None = setting(
        None,
        "Seconds that one scan may take with --ray.",
        metavar="SECONDS",
        least=1,
        most=1e7,
        shown=f"{_JOB_SECONDS:g}",
    )
    quiet: bool = setting(False, "Print errors only.", flag="-q --quiet")
    verbose: bool = setting(False, "Print what other packages log and warn of, too.", flag="-v --verbose")
    as_json: bool = setting(False, "Print one JSON object per scan.", flag="--json")


def _run(values: Values) -> int:
    call = fill(RunCall, values)
    if not call.inputs:
        advice = f", and give --ray last if {call.ray} is your input" if call.ray not in (None, "local") else ""
        raise InputError(f"INPUT is missing; see `tumorlens run --help`{advice}")
    if call.overwrite and call.resume:
        raise InputError("give --overwrite or --continue, not both")
    if call.quiet and call.verbose:
        raise InputError("give -q or -v, not both")
    options = fill(RunOptions, values)
    if call.out is None and not call.list_only:
        raise InputError("-o OUT is missing: the folder for the results")
    load = fill(LoadOptions, values)
    _check_places(call, options)
    with own_remarks(hidden=call.quiet), ScratchFolder() as scratch, ExitStack() as naming:
        if call.inputs and call.out and not (call.list_only or call.ray):
            _prepare(Path(call.inputs[0]))
        from tumorlens.data.locks import sole_writer
        from tumorlens.pipeline.batch.inputs import collect
        from tumorlens.pipeline.batch.listing import check_headers, describe, list_work
        from tumorlens.pipeline.services.stores.mirror import mirror_inputs
        from tumorlens.pipeline.services.stores.output import Output

        out = Output.at(call.out or str(Path(scratch) / "none"), Path(scratch).resolve())
        inputs = mirror_inputs(call.inputs, Path(scratch) / "urls", call.out)
        naming.enter_context(_named(*out.origins, *inputs.origins))
        work = collect(inputs.paths, out.folder, Path(scratch), call.series, inputs.origins)
        work.jobs += inputs.problems
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
        with sole_writer(out.folder):  # from now on: a second run ends before it loads the models
            return _run_jobs(work.jobs, out, inputs, call, load, options)


def _check_places(call: RunCall, options: RunOptions) -> None:
    """Raise an `InputError` for words that do not go together, before anything is done."""
    if call.out == "":
        raise InputError("-o: the path is empty")
    for flag, value in (("--workers", call.workers), ("--job-seconds", call.job_seconds)):
        if value and not call.ray:
            raise InputError(f"{flag} is about --ray; give both")
    if is_dicomweb(call.out or ""):
        raise InputError("-o: results are not written to DICOMweb servers; give a folder or the URL of a store")
    if call.ray and not re.fullmatch(r"local|auto|(ray://)?[\w.-]+:\d+", call.ray):
        raise InputError(f"--ray {call.ray}: this is not HOST:PORT or auto; to name no cluster, give --ray last")
    if is_url(call.out or "") and (options.report or options.pdf):
        raise InputError("reports are not written to URLs; leave out --report and --pdf, or give a folder as -o")


@contextmanager
def _named(*origins: tuple[str, str]) -> Iterator[None]:
    """Let errors name URLs instead of the folders that stand for them."""
    try:
        yield
    except InputError as error:
        from tumorlens.pipeline.batch.job import with_origin

        message = str(error)
        for folder, url in origins:
            message = with_origin(message, folder, url)
        raise InputError(message) from None


def _prepare(path: Path) -> None:
    """Let the process that decodes a file start, if one does, while this one imports packages and loads models."""
    from tumorlens.data.formats.open import prepare_to_open

    prepare_to_open(path)


def _run_jobs(
    jobs: list[Job], out: Output, inputs: Inputs, call: RunCall, load: LoadOptions, options: RunOptions
) -> int:
    """Run the scans, print what became of them, and return the exit code."""
    from tumorlens.data.devices import keep_freed_memory
    from tumorlens.pipeline.batch.memory import remember_inputs
    from tumorlens.pipeline.batch.run import check_output, run_batch
    from tumorlens.pipeline.pipeline import Pipeline

    out.pull(content=call.overwrite or call.resume)
    check_output(out.folder, jobs, call.overwrite, call.resume, options)
    if out.store:
        out.store.check_writable(out.folder)
    if not out.store:
        remember_inputs(out.folder, [text for text in call.inputs if not is_url(text)])
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

        if call.ray or out.store or inputs.remote:
            report = _run_far(jobs, out, inputs, call, load, options, done)
        else:
            for job in [job for job in jobs if not job.error][:1]:
                _prepare((job.files or (job.path,))[0])  # of a folder
            keep_freed_memory()
            pipeline = Pipeline.load(**vars(load))
            report = run_batch(pipeline, jobs, out.folder, call.resume, call.jobs, options, done)
    if not (call.quiet or call.as_json):
        _print_summary(report, finished, out, options)
    return 1 if report.failed else 0


def _run_far(
    jobs: list[Job], out: Output, inputs: Inputs, call: RunCall, load: LoadOptions, options: RunOptions, done: Done
) -> BatchReport:
    """Run the scans with Ray, or those of a store in this process."""
    from tumorlens.pipeline.services.cluster.batch import Here, Worker, run_with

    readers = max(call.jobs, _FETCHING if inputs.remote else 1)
    place = out.store or out.folder.absolute()
    if not call.ray:
        return run_with(
            Here(Worker(load, options, place, readers)), jobs, inputs.remote, out, call.resume, options, done
        )
    from tumorlens.pipeline.services.cluster.crew import RayCrew, connected

    n_cores = call.workers and call.workers * (load.threads or 1)
    with connected(call.ray, n_cores) as ray:
        seconds = call.job_seconds or _JOB_SECONDS
        crew = RayCrew(ray, lambda load: Worker(load, options, place, readers, seconds), load, call.workers)
        try:
            return run_with(crew, jobs, inputs.remote, out, call.resume, options, done, shared=call.ray == "local")
        finally:
            crew.end()


def _print_summary(report: BatchReport, finished: list[Job], out: Output, options: RunOptions) -> None:
    if len(finished) == 1 and not report.failed:
        job, row = finished[0], report.rows[-1]
        review = f"  [review: {row['review']}]" if row["review"] else ""
        confidence = f" ({row['confidence']})" if row["confidence"] else ""
        say(f"{job.name}: {row['label']}{confidence}{review}")
        if options.overlay:
            say(f"overlay: {out.shown}/{job.folder}/overlay.png")
    counts = Counter(row["label"] or "failed" for row in report.rows)
    kept = f" ({report.kept} kept from before)" if report.kept else ""
    labels = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    scans = "scan" if len(report.rows) == 1 else "scans"
    say(f"{len(report.rows)} {scans}{kept}: {labels}; table: {out.shown}/results.csv")
    if options.report or options.pdf:
        say(f"report: {out.shown}/report.html")


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
    tumorlens run s3://archive/mri -o s3://archive/results --ray
    tumorlens run "dicomweb+https://pacs/dicom-web?StudyDate=20250101-20250131" -o results
    """,
)
