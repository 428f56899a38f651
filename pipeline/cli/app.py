"""The command line `tumorlens`; heavy imports come late, so that `--help` is quick."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from tumorlens.pipeline.cli.crossval import crossval_app
from tumorlens.pipeline.cli.data import data_app
from tumorlens.pipeline.cli.evaluate import evaluate_app
from tumorlens.pipeline.cli.options import Device, parse_numbers
from tumorlens.pipeline.cli.run import run
from tumorlens.pipeline.cli.screen import user_errors
from tumorlens.pipeline.cli.train import train_app

app = typer.Typer(
    help="Brain tumors in MRI: a ResNet-50 says whether and which, a Res-U-Net shows where. For research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes "[default: ...]" for markup and drops it
)

app.command()(run)
app.add_typer(train_app, name="train", help="Train a stage on your own data.")
app.add_typer(evaluate_app, name="evaluate", help="Measure a stage, or both together, on labelled scans.")
app.add_typer(crossval_app, name="crossval", help="Train and measure on every fold.")
app.add_typer(data_app, name="data", help="Look at a data set, check it, split it by patient.")
Out = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]


@app.command()
def demo(
    scan: Annotated[Path | None, typer.Option(help="A scan of yours instead of the phantom.")] = None,
    out: Out = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Another seed, another phantom.")] = 7,
    device: Device = "auto",
) -> None:
    """Make a phantom scan (or take yours), run the pipeline on it, say where label and overlay are."""
    with user_errors():
        from tumorlens.pipeline.batch.demo import run_demo

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
        from tumorlens.classification.predict import SHIPPED as CLASSIFIER
        from tumorlens.pipeline.engines.export import export_stage
        from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

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
        from tests.benchmarks.benchmark import benchmark as measure
        from tumorlens.data.files import write_text

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
        from tumorlens.pipeline.cli.info import collect_info, format_info

        facts = collect_info()
        typer.echo(json.dumps(facts, indent=2) if as_json else format_info(facts))


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"tumorlens {installed('tumorlens')}")
        raise typer.Exit()


def main() -> None:
    """Entry point of the console command."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with stopped_as_by_ctrl_c():
        app()


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt`, and the exit code is then 143 or 129.

    Else they would end the process at once, and what was unpacked of a patient's archive would stay on the disk. For
    the command's own process only: signals are no business of a library. Signals that are ignored (`nohup`) stay so.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        for each in before:  # a second one must not stop the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no HUP
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if received:
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
