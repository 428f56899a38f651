"""`tumorlens evaluate classification | segmentation | pipeline | engines`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tumorlens.data.config import MAX_SEED
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Channel, Data, Device, LabelMap, parse_folds, parse_map
from tumorlens.pipeline.cli.screen import ProgressLine, hushed, warned

evaluate_app = typer.Typer(no_args_is_help=True)
Out = Annotated[Path, typer.Option("-o", "--out", help="The report's folder.")]

ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="p1|p2|p3|p4",
        help="p1: tumor types, by folds; p2: four classes, by folds; p3: official split (may leak); p4: LGG folder, "
        "segmentation only. [default: all scans as one set]",
    ),
]

Folds = Annotated[
    str | None,
    typer.Option("--folds", metavar="all|0,1,..", help="Test folds. [default: the test fold on the weights' card]"),
]

ClassifierFile = Annotated[
    str | None,
    typer.Option("--classifier", help="Your own classifier.safetensors; {fold} stands for the fold's number."),
]

SegmenterFile = Annotated[
    str | None,
    typer.Option("--segmenter", help="Your own segmenter.safetensors; {fold} stands for the fold's number."),
]

Seed = Annotated[
    int | None,
    typer.Option(
        min=0, max=MAX_SEED, help="Of folds, where the data have none, and of the intervals. [default: the card's]"
    ),
]

Tta = Annotated[bool, typer.Option("--tta", help="Average over each slice and its mirror image.")]
EngineName = Annotated[str, typer.Option("--engine", help="torch, openvino or auto.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or auto (what the hardware computes).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the report in OUT.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings and errors.")]


@evaluate_app.command()
def classification(
    data: Data,
    out: Out,
    protocol: ProtocolName = None,
    folds: Folds = None,
    classifier: ClassifierFile = None,
    label_map: LabelMap = None,
    channel: Channel = None,
    device: Device = "auto",
    tta: Tta = False,
    engine: EngineName = "torch",
    precision: Precision = "fp32",
    seed: Seed = None,
    explain: Annotated[bool, typer.Option("--explain", help="Score Grad-CAM against the masks.")] = False,
    probe: Annotated[bool, typer.Option(help="Test that the label does not come from the picture's source.")] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure a classifier: accuracy, AUC, calibration, gate, prediction sets, shortcuts."""
    _evaluate("classification", dict(locals()))


@evaluate_app.command()
def segmentation(
    data: Data,
    out: Out,
    protocol: ProtocolName = None,
    folds: Folds = None,
    segmenter: SegmenterFile = None,
    label_map: LabelMap = None,
    channel: Channel = None,
    device: Device = "auto",
    tta: Tta = False,
    engine: EngineName = "torch",
    precision: Precision = "fp32",
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure a segmenter alone: Dice, IoU, HD95, surface Dice, lesions, false masks, on the source's grid."""
    _evaluate("segmentation", dict(locals()))


@evaluate_app.command()
def pipeline(
    data: Data,
    out: Out,
    protocol: ProtocolName = None,
    folds: Folds = None,
    classifier: ClassifierFile = None,
    segmenter: SegmenterFile = None,
    label_map: LabelMap = None,
    channel: Channel = None,
    device: Device = "auto",
    tta: Tta = False,
    engine: EngineName = "torch",
    precision: Precision = "fp32",
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure both stages end to end, as `tumorlens run` uses them: a missed tumor has Dice 0."""
    _evaluate("pipeline", dict(locals()))


@evaluate_app.command()
def engines(
    data: Data,
    fold: Annotated[int | None, typer.Option(min=0, help="Only the slices of this fold.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Your own classifier.safetensors.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Your own segmenter.safetensors.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take each n-th slice only.")] = 1,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file for the table.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compare what the engines and precisions of this machine say of the same slices, and how long they take."""
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors():
        import json

        from tumorlens.data.datasets.load import load_samples
        from tumorlens.data.files import write_text
        from tumorlens.pipeline.engines.agreement import compare_engines, labelled, table

        samples = labelled([sample for source in data for sample in load_samples(source)])
        if fold is not None:
            samples = [sample for sample in samples if sample.fold == fold]
            if not samples:
                raise InputError(f"{', '.join(data)}: no slice of fold {fold}")
        with ProgressLine(quiet) as progress:
            rows = compare_engines(samples[::every], classifier, segmenter, progress)
        if out is not None:
            write_text(out, json.dumps(rows, indent=2) + "\n")
        typer.echo(table(rows))


def _evaluate(stage: str, settings: dict[str, Any]) -> None:
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors():
        from tumorlens.pipeline.evaluation.evaluate import evaluate
        from tumorlens.pipeline.evaluation.request import EvaluationRequest

        out, overwrite, quiet = settings.pop("out"), settings.pop("overwrite"), settings.pop("quiet")
        settings["data"] = tuple(settings["data"])
        settings["folds"] = parse_folds(settings["folds"])
        settings["label_map"] = parse_map(settings["label_map"])
        request = EvaluationRequest(stage=stage, command="tumorlens " + shlex.join(sys.argv[1:]), **settings)
        with ProgressLine(quiet) as progress:
            evaluate(request, out, overwrite, progress, hushed(quiet), warned)
