"""The command line `tumorlens`; heavy imports come late, so that `--help` is quick."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.errors import InputError, printable
from pipeline.cli_crossval import crossval_app
from pipeline.cli_data import data_app
from pipeline.cli_evaluate import evaluate_app
from pipeline.cli_train import train_app
from pipeline.stopping import stopped_as_by_ctrl_c

if TYPE_CHECKING:
    from pipeline.batch import BatchReport
    from pipeline.inputs import Job

app = typer.Typer(
    help="Brain tumors in MRI: a ResNet-50 says whether and which, a Res-U-Net shows where. For research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes "[default: ...]" for markup and drops it
)
app.add_typer(train_app, name="train", help="Train a stage on your own data.")
app.add_typer(evaluate_app, name="evaluate", help="Measure a stage, or both together, on labelled scans.")
app.add_typer(crossval_app, name="crossval", help="Train and measure on every fold.")
app.add_typer(data_app, name="data", help="Look at a data set, check it, split it by patient.")


class Plane(StrEnum):
    """Names of planes on the command line."""

    ACQUISITION = "acquisition"
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]


@app.command()
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
        raise _wrong_use("give --overwrite or --continue, not both")
    if quiet and verbose:
        raise _wrong_use("give -q or -v, not both")
    if out is None and not show:
        raise _wrong_use("-o OUT is missing: the folder for the results")
    with user_errors(verbose, "go on with --continue", quiet), TemporaryDirectory(prefix="tumorlens-") as scratch:
        from pipeline.inputs import collect
        from pipeline.listing import check_headers, describe, list_work

        found = collect(inputs, out or Path(scratch) / "none", Path(scratch), series or ())
        if out is None or show:
            found.jobs = [check_headers(job, frame) for job in found.jobs]
            typer.echo(json.dumps(describe(found, keep_identifiers)) if as_json else list_work(found))
            raise typer.Exit(1 if any(job.error for job in found.jobs) else 0)
        work = found.jobs
        for job in work if not (quiet or as_json) else ():
            for note in job.notes:
                typer.echo(f"tumorlens: {job.name}: {note}", err=True)

        from pipeline.batch import check_output, run_batch
        from pipeline.options import RunOptions
        from pipeline.pipeline import Pipeline

        check_output(out, work, overwrite, resume)
        pipeline = Pipeline.load(classifier, segmenter, device, threshold, tta, engine, precision, threads)
        options = RunOptions(frame, plane.value, secondary_capture, force, explain, channel, keep_identifiers)
        ran: list[Job] = []
        with _progress(len(work), quiet or as_json) as advance:

            def done(job: Job, row: dict[str, str], content: dict[str, Any]) -> None:
                ran.append(job)
                advance()
                if row["error"]:
                    typer.echo(f"tumorlens: error: {row['error']}", err=True)
                if as_json:
                    _print_line(json.dumps(content or {"scan": {"name": job.name}, "error": row["error"]}))

            report = run_batch(pipeline, work, out, resume, jobs, options, done)
        if not (quiet or as_json):
            _tell(report, ran, out)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def demo(
    scan: Annotated[Path | None, typer.Option(help="A scan of yours instead of the phantom.")] = None,
    out: Out = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Another seed, another phantom.")] = 7,
    device: Device = "auto",
) -> None:
    """Make a phantom scan (or take yours), run the pipeline on it, say where label and overlay are."""
    with user_errors():
        from pipeline.demo import run_demo

        run_demo(scan, out, seed, device, typer.echo)


class Stage(StrEnum):
    """Names of the stages on the command line."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"


class Format(StrEnum):
    """Formats of exported models."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"


@app.command()
def export(
    stage: Annotated[Stage, typer.Argument(help="Which network.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: .onnx, .xml or .pt.")],
    kind: Annotated[Format, typer.Option("--format", help="Of the file.")] = Format.ONNX,
    weights: Annotated[Path | None, typer.Option(help="Your own weights. [default: the shipped ones]")] = None,
) -> None:
    """Write a stage for other programs (Triton, ONNX Runtime, OpenVINO, LibTorch), once its outputs are checked."""
    with user_errors():
        from classification.predict import SHIPPED as CLASSIFIER
        from pipeline.engines.exporting import export_stage
        from segmentation.predict import SHIPPED as SEGMENTER

        shipped = {Stage.CLASSIFICATION: CLASSIFIER, Stage.SEGMENTATION: SEGMENTER}
        done = export_stage(weights or shipped[stage], stage.value, kind.value, out)
        differences = ", ".join(f"{name} {far:.2g}" for name, far in done.difference.items())
        typer.echo(f"{done.path}: largest difference from PyTorch: {differences}")


@app.command()
def benchmark(
    slices: Annotated[int, typer.Option(min=4, help="Pictures in the folder that is run.")] = 200,
    depth: Annotated[int, typer.Option(min=0, help="Slices of the volume that is run; 0: none.")] = 155,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute. [default: all cores]")] = None,
    growth: Annotated[
        str, typer.Option(metavar="10,100,..", help="Run so many pictures, too, each number in a process of its own.")
    ] = "",
    training: Annotated[
        int, typer.Option(min=0, help="Steps of each stage's training that are timed, too; 0: none.")
    ] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file for the figures.")] = None,
) -> None:
    """Measure the speed on this machine beside what plain PyTorch does in the same minute (phantoms, CPU)."""
    with user_errors():
        from data.atomic import write_text
        from pipeline.benchmark import benchmark as measure

        numbers = parse_numbers(growth, "--growth")
        figures = measure(
            slices, depth, threads, numbers, training, lambda text: typer.echo(f"tumorlens: {text}", err=True)
        )
        if out is not None:
            write_text(out, json.dumps({"figures": figures.rows, "context": figures.context}, indent=2) + "\n")
        typer.echo(figures.table())
        for line in figures.remarks():
            typer.echo(line)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Versions, devices, models and their hashes."""
    with user_errors():
        from pipeline.info import collect_info, format_info

        facts = collect_info()
        typer.echo(json.dumps(facts, indent=2) if as_json else format_info(facts))


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"tumorlens {installed('tumorlens')}")
        raise typer.Exit()


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """``"10,100"`` as numbers; nothing as none.

    Raises:
        InputError: The text is no list of whole numbers above 0.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"{option} {text!r} is no list of whole numbers such as 10,100")
    return tuple(int(part) for part in parts)


def _print_line(text: str) -> None:
    """A line on the output; where nobody reads it any more (`| head -1`), the batch goes on all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrong_use(message: str) -> typer.Exit:
    typer.echo(f"tumorlens: error: {message}", err=True)
    return typer.Exit(2)


@contextmanager
def user_errors(verbose: bool = False, stopped: str = "", quiet: bool = False) -> Iterator[None]:
    """Turn an `InputError`, or a failure of disk or network, into one line and exit code 2, and keep other packages'
    warnings off the screen.

    Args:
        verbose: Let warnings and logs through.
        stopped: What to tell a user who has stopped the command.
        quiet: Keep our own remarks off the screen, too.
    """
    remarks = logging.getLogger("pipeline")
    before = remarks.level
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    else:
        import warnings

        warnings.simplefilter("ignore")
    if quiet:
        remarks.setLevel(logging.ERROR)
    try:
        yield
    except InputError as error:
        typer.echo(f"tumorlens: error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(printable(f"tumorlens: error: {where}{error.strerror or error}"), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("tumorlens: stopped" + (f"; {stopped}" if stopped else ""), err=True)
        raise typer.Exit(130) from None
    finally:
        remarks.setLevel(before)


@contextmanager
def _progress(total: int, hidden: bool) -> Iterator[typer.models.Any]:
    """A bar on stderr for more than one scan, if stderr is a terminal."""
    if hidden or total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("scans", total=total)
        yield lambda: bar.advance(task)


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


def main() -> None:
    """Entry point of the console command."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with stopped_as_by_ctrl_c():
        app()


if __name__ == "__main__":
    main()
