"""`tumorlens crossval classification | segmentation | pipeline`: the options of training, for every fold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from tumorlens.classification.config import ClassifierConfig
from tumorlens.data.config import TrainingConfig, setting
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.recorded import recorded_settings
from tumorlens.pipeline.cli.screen import Progress, say_unless, typed_command, warn
from tumorlens.pipeline.cli.train import config_of
from tumorlens.segmentation.config import DEFAULT, ENCODER, SegmenterConfig

_STARTS = "imagenet (downloaded), shipped, none, or a weight file; {fold} stands for the fold's number."
_SET_HERE = ("fold", "split", "out_of_fold", "devices", "nodes")
_AGAIN = "A call that was stopped goes on when you repeat it."


@dataclass(frozen=True)
class CrossvalCall:
    """The folds to train, the measurement, and the place of the runs."""

    out: Path = setting(help="Folder of the runs and of the report; repeat the call to go on.", flag="-o --out")
    folds: tuple[int, ...] = setting((), "Test folds.", metavar="all|0,1,..", shown="all")
    protocol: str | None = setting(
        None, "How to measure.", metavar="p1|p2|p4|p6|p7", shown="p4 for LGG folders, else all classes"
    )
    measure: bool = setting(
        True, "Measure the folds on these data; else train only, and measure with `tumorlens evaluate`."
    )
    probe: bool = setting(True, "Test that the label does not come from the picture's source.")
    explain: bool = setting(False, "Score Grad-CAM against the masks.")
    config: Path | None = setting(
        None, "Take settings from this YAML file, such as a run's config.yaml; options here win.", metavar="FILE"
    )
    quiet: bool = setting(False, "No progress bar, nor a line an epoch.", flag="-q --quiet")


@dataclass(frozen=True)
class _Classifier(ClassifierConfig):
    init: str = setting("imagenet", f"The classifier's first weights: {_STARTS}")


@dataclass(frozen=True)
class _Segmenter(SegmenterConfig):
    init: str = setting("imagenet", f"The encoder's first weights: {_STARTS}")


@dataclass(frozen=True)
class _SegmenterOptions:
    """The segmenter's own options where both stages are trained. The classifier's options hold for all else."""

    segmenter_init: str = setting("", f"The encoder's first weights: {_STARTS}", shown="that fold's classifier")
    segmenter_arch: str = setting(DEFAULT, "unet, unet++, unet-scse or plain-unet.")
    encoder: str = setting(ENCODER, "Any encoder of segmentation-models-pytorch.")
    segmenter_epochs: int | None = setting(None, "Upper limit of the segmenter's epochs.", least=1, shown="as --epochs")
    segmenter_batch_size: int = setting(16, "Slices a step of the segmenter.", least=1)
    segmenter_size: int = setting(224, "Side of the segmenter's input in pixels.", least=32)


def _recorded(stage: str, given: Values) -> Values:
    return {name: value for name, value in recorded_settings(stage, given).items() if name not in _SET_HERE}


def _one_stage(stage: str, values: Values) -> None:
    _crossval({stage: config_of(stage, values)}, values)


def _both_stages(values: Values) -> None:
    classifier = config_of("classification", values)
    segmenter = config_of("segmentation", _segmenter_settings(classifier, values))
    _crossval({"classification": classifier, "segmentation": segmenter}, values)


def _crossval(configs: dict[str, TrainingConfig], values: Values) -> None:
    from tumorlens.pipeline.evaluation.crossval import crossval
    from tumorlens.pipeline.evaluation.request import crossval_request

    call = fill(CrossvalCall, values)
    request = crossval_request(
        configs,
        folds=call.folds,
        protocol=call.protocol,
        explain=call.explain,
        probe=call.probe,
        command=typed_command(),
    )
    show = not call.quiet
    with Progress("slices", hidden=call.quiet) as progress:
        crossval(request, call.out, call.measure, show, progress, say_unless(call.quiet), warn)


def _segmenter_settings(classifier: TrainingConfig, values: Values) -> dict[str, Any]:
    """The settings of the segmenter: its own options where it has some, else the classifier's."""
    own = fill(_SegmenterOptions, values)
    shared = {each.name: getattr(classifier, each.name) for each in fields(TrainingConfig)}
    return shared | {
        "init": own.segmenter_init or _start(own, classifier, fill(CrossvalCall, values).out),
        "arch": own.segmenter_arch,
        "encoder": own.encoder,
        "epochs": own.segmenter_epochs or classifier.epochs,
        "batch_size": own.segmenter_batch_size,
        "size": own.segmenter_size,
    }


def _start(own: _SegmenterOptions, classifier: Any, out: Path) -> str:
    """The first weights of the encoder: that fold's classifier if it has the same architecture, else the classifier's
    own start unless that is a file."""
    from tumorlens.data.cards.card import WEIGHT_FILES
    from tumorlens.pipeline.evaluation.crossval import fold_folder

    if classifier.arch == own.encoder and own.segmenter_arch != "plain-unet":
        return str(fold_folder(out, "pipeline", "classification", "{fold}") / WEIGHT_FILES["classification"])
    return classifier.init if classifier.init in ("imagenet", "shipped", "none") else "imagenet"


classification = command(
    partial(_one_stage, "classification"),
    CrossvalCall,
    _Classifier,
    leave_out=_SET_HERE,
    recorded=partial(_recorded, "classification"),
    details=_AGAIN,
    stopped=lambda _: "repeat the command to go on",
    extra="train",
    examples="""
    tumorlens crossval classification --data my-set -o cv
    tumorlens crossval classification --data my-set --folds 0,1 --no-probe -o cv
    """,
)

segmentation = command(
    partial(_one_stage, "segmentation"),
    CrossvalCall,
    _Segmenter,
    leave_out=(*_SET_HERE, "probe", "explain"),
    recorded=partial(_recorded, "segmentation"),
    details=_AGAIN,
    stopped=lambda _: "repeat the command to go on",
    extra="train",
    examples="""
    tumorlens crossval segmentation --data my-set -o cv
    tumorlens crossval segmentation --data my-set --init 'cls/fold-{fold}/classifier.safetensors' -o cv
    """,
)

pipeline = command(
    _both_stages,
    CrossvalCall,
    _Classifier,
    _SegmenterOptions,
    leave_out=(*_SET_HERE, "probe", "explain", "config"),
    details=_AGAIN,
    stopped=lambda _: "repeat the command to go on",
    extra="train",
    examples="""
    tumorlens crossval pipeline --data my-set -o cv
    tumorlens crossval pipeline --data my-set --epochs 10 --segmenter-epochs 20 -o cv
    """,
)
