"""`tumorlens run`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tumorlens.pipeline.cli.options import Device
from tumorlens.pipeline.cli.screen import print_line, progress_bar, usage_error, user_errors

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.batch.run import BatchReport


class Plane(StrEnum):
    """Names of planes on the command line."""

    ACQUISITION = "acquisition"
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


def run(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Files, folders (recursive) or globs.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Output folder.")] = None,
    device: Device = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Tumor probability from which a slice is positive. [default: chosen on validation]"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read and prepare scans ahead.")] = 1,
    frame: Annotated[int | None, typer.Option(min=0, help="Volume of a 4-D file or series, from 0.")] = None,
    channel: Annotated[
        int | None,
        typer.Option(
            "--frame-channel", min=0, max=2, help="Channel of color pictures that is the scan. [default: brightness]"
        ),
    ] = None,
    plane: Annotated[Plane, typer.Option(help="How volumes are cut into slices.")] = Plane.ACQUISITION,
    show: Annotated[bool, typer.Option("--list", help="Show the scans and DICOM series found, and leave.")] = False,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="UID", help="DICOM series to run: UID, number or all. [default: post-contrast T1]"),
    ] = None,
    secondary_capture: Annotated[
        bool, typer.Option("--secondary-capture", help="Write the overlay of DICOM scans as overlay.dcm, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Judge what does not look like a brain MRI, too.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Write where the classifier looked (Grad-CAM).")] = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over each slice and its mirror image: twice the time.")
    ] = False,
    keep_identifiers: Annotated[
        bool,
        typer.Option("--keep-identifiers", help="Put patient's name, ID, birth date and texts into result.json."),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="torch or openvino. [default: openvino where there is no accelerator]")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16. [default: bf16 in OpenVINO where the hardware computes it]")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute. [default: all cores]")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Your own classifier.safetensors.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Your own segmenter.safetensors.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in OUT.")] = False,
    resume: Annotated[bool, typer.Option("--continue", help="Keep results in OUT, do the rest.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per scan.")] = False,
) -> None:
    """Label scans, segment the positive ones, write results.csv, masks and overlays.

    Exit codes: 0 all done, 1 some scans failed (see results.csv), 2 wrong use.
    """
    if overwrite and resume:
        raise usage_error("give --overwrite or --continue, not both")
    if quiet and verbose:
        raise usage_error("give -q or -v, not both")
    if out is None and not show:
        raise usage_error("-o OUT is missing: the folder for the results")
    with user_errors(verbose, "go on with --continue", quiet), TemporaryDirectory(prefix="tumorlens-") as scratch:
        from tumorlens.pipeline.batch.inputs import collect
        from tumorlens.pipeline.batch.listing import check_headers, describe, list_work

        found = collect(inputs, out or Path(scratch) / "none", Path(scratch), series or ())
        if out is None or show:
            found.jobs = [check_headers(job, frame) for job in found.jobs]
            typer.echo(json.dumps(describe(found, keep_identifiers)) if as_json else list_work(found))
            raise typer.Exit(1 if any(job.error for job in found.jobs) else 0)
        work = found.jobs
        for job in work if not (quiet or as_json) else ():
            for note in job.notes:
                typer.echo(f"tumorlens: {job.name}: {note}", err=True)

        from tumorlens.pipeline.batch.run import check_output, run_batch
        from tumorlens.pipeline.options import RunOptions
        from tumorlens.pipeline.pipeline import Pipeline

        check_output(out, work, overwrite, resume)
        pipeline = Pipeline.load(classifier, segmenter, device, threshold, tta, engine, precision, threads)
        options = RunOptions(frame, plane.value, secondary_capture, force, explain, channel, keep_identifiers)
        ran: list[Job] = []
        with progress_bar(len(work), quiet or as_json) as advance:

            def done(job: Job, row: dict[str, str], content: dict[str, Any]) -> None:
                ran.append(job)
                advance()
                if row["error"]:
                    typer.echo(f"tumorlens: error: {row['error']}", err=True)
                if as_json:
                    print_line(json.dumps(content or {"scan": {"name": job.name}, "error": row["error"]}))

            report = run_batch(pipeline, work, out, resume, jobs, options, done)
        if not (quiet or as_json):
            _tell(report, ran, out)
    if report.failed:
        raise typer.Exit(1)


def _tell(report: BatchReport, ran: list[Job], out: Path) -> None:
    if len(ran) == 1 and not report.failed:
        job, row = ran[0], report.rows[-1]
        note = f"  [review: {row['review']}]" if row["review"] else ""
        sure = f" ({row['confidence']})" if row["confidence"] else ""
        typer.echo(f"{job.name}: {row['label']}{sure}{note}")
        typer.echo(f"overlay: {out / job.folder / 'overlay.png'}")
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row["label"] or "failed"] = counts.get(row["label"] or "failed", 0) + 1
    kept = f" ({report.kept} kept from before)" if report.kept else ""
    summary = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    scans = "scan" if len(report.rows) == 1 else "scans"
    typer.echo(f"{len(report.rows)} {scans}{kept}: {summary}; table: {out / 'results.csv'}")
