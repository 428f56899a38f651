"""`tumorlens evaluate classification | segmentation | pipeline | engines`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tumorlens.data.config import LAYOUTS, setting
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, say, say_unless, typed_command, warn
from tumorlens.pipeline.evaluation.request import EvaluationRequest


@dataclass(frozen=True)
class EvaluateCall:
    """The place of the report, and the printed output."""

    out: Path = setting(help="The report's folder.", flag="-o --out")
    overwrite: bool = setting(False, "Replace the report in OUT.")
    quiet: bool = setting(False, "Print warnings and errors only.", flag="-q --quiet")


@dataclass(frozen=True)
class EnginesCall:
    """The slices on which the engines are compared, and the networks."""

    data: tuple[str, ...] = setting(help=f"{LAYOUTS}; repeatable.")
    fold: int | None = setting(None, "Only the slices of this fold.", least=0)
    classifier: Path | None = setting(None, "Your own classifier.safetensors.")
    segmenter: Path | None = setting(None, "Your own segmenter.safetensors.")
    every: int = setting(1, "Take each n-th slice only.", least=1)
    out: Path | None = setting(None, "JSON file for the table.", flag="-o --out")
    quiet: bool = setting(False, "Print warnings and errors only.", flag="-q --quiet")


def _evaluate(stage: str, values: Values) -> None:
    from tumorlens.pipeline.evaluation.evaluate import evaluate

    call = fill(EvaluateCall, values)
    request = fill(EvaluationRequest, values, stage=stage, command=typed_command())
    with Progress("measured", hidden=call.quiet) as progress:
        evaluate(request, call.out, call.overwrite, progress, say_unless(call.quiet), warn)


def _engines(values: Values) -> None:
    import json

    from tumorlens.data.datasets.load import load_samples
    from tumorlens.data.files import write_text
    from tumorlens.pipeline.engines.agreement import compare_engines, labeled, table

    call = fill(EnginesCall, values)
    samples = labeled([sample for source in call.data for sample in load_samples(source)])
    if call.fold is not None:
        samples = [sample for sample in samples if sample.fold == call.fold]
        if not samples:
            raise InputError(f"{', '.join(call.data)}: no slice of fold {call.fold}")
    with Progress("slices", hidden=call.quiet) as progress:
        rows = compare_engines(samples[:: call.every], call.classifier, call.segmenter, progress)
    if call.out is not None:
        write_text(call.out, json.dumps(rows, indent=2) + "\n")
    say(table(rows))


classification = command(
    partial(_evaluate, "classification"),
    EvaluateCall,
    EvaluationRequest,
    leave_out=("segmenter", "outline"),
    extra="train",
    examples="""
    tumorlens evaluate classification --data my-set -o report
    tumorlens evaluate classification --data my-set --protocol p2 --classifier run/classifier.safetensors -o report
    tumorlens evaluate classification --data elsewhere --protocol p5 --classifier run/classifier.safetensors -o report
    """,
)

segmentation = command(
    partial(_evaluate, "segmentation"),
    EvaluateCall,
    EvaluationRequest,
    leave_out=("classifier", "explain", "probe"),
    details="Masks are compared on the source's grid.",
    extra="train",
    examples="""
    tumorlens evaluate segmentation --data my-set -o report
    tumorlens evaluate segmentation --data my-set --segmenter 'cv/fold-{fold}/segmenter.safetensors' --folds all -o out
    tumorlens evaluate segmentation --data lgg-folder --protocol p4 --segmenter run/segmenter.safetensors -o report
    """,
)

pipeline = command(
    partial(_evaluate, "pipeline"),
    EvaluateCall,
    EvaluationRequest,
    leave_out=("explain", "probe", "outline"),
    details="A missed tumor has Dice 0.",
    extra="train",
    examples="""
    tumorlens evaluate pipeline --data my-set -o report
    tumorlens evaluate pipeline --data my-set --protocol p2 --overwrite -o report
    """,
)

engines = command(
    _engines,
    EnginesCall,
    details="The table shows what they answer and how long they take.",
    extra="train",
    examples="""
    tumorlens evaluate engines --data my-set --every 10
    """,
)
