"""`tumorlens train classification | segmentation`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.classification.config import ClassifierConfig
from tumorlens.data.config import setting
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.recorded import recorded_settings
from tumorlens.pipeline.cli.screen import Progress, say, typed_command
from tumorlens.segmentation.config import SegmenterConfig

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class TrainCall:
    """The folder of a training run, and its progress bar."""

    out: Path = setting(help="The run's folder.", flag="-o --out")
    resume: bool = setting(
        False, "Go on from the last checkpoint in --out, with the settings there; more --epochs lengthen the run."
    )
    config: Path | None = setting(
        None, "Take settings from this YAML file, such as a run's config.yaml; options here win.", metavar="FILE"
    )
    quiet: bool = setting(False, "No progress bar, nor a line an epoch.", flag="-q --quiet")


def _train(stage: str, values: Values) -> None:
    config, call = config_of(stage, values), fill(TrainCall, values)
    train: Callable[..., Any]
    if stage == "classification":
        from tumorlens.classification.train import train_classifier as train
    else:
        from tumorlens.segmentation.train import train_segmenter as train
    show = not call.quiet
    with Progress("slices read", hidden=call.quiet) as prepared:
        train(config, call.out, call.resume, show, say, prepared, typed_command())


def config_of(stage: str, values: Values) -> ClassifierConfig | SegmenterConfig:
    """The settings of a stage's training, checked.

    Args:
        stage: ``classification`` or ``segmentation``.
        values: Field -> value. Fields that are left out have the stage's default.

    Raises:
        InputError: Settings that contradict each other, a size or an architecture that cannot be.
    """
    config: ClassifierConfig | SegmenterConfig
    config = fill(ClassifierConfig, values) if stage == "classification" else fill(SegmenterConfig, values)
    _ = config.rates  # raises before data are read
    if config.epochs % config.validate_every:
        raise InputError(f"--epochs {config.epochs} is not a multiple of --validate-every {config.validate_every}")
    if config.out_of_fold:
        if config.split not in ("folds", "all"):
            raise InputError(f"--out-of-fold trains on all patients; leave --split {config.split} out")
        config = replace(config, split="all")
    if config.small_share and config.size and config.small_size > config.size:
        raise InputError(f"--small-size {config.small_size} is larger than --size {config.size}; give a smaller one")
    if config.frozen_until and config.init == "none":
        option = "--freeze-until" if config.freeze_until else "--freeze-stem"
        raise InputError(f"{option} keeps the first weights of these layers; give it some with --init FILE")
    if "size" not in values:
        from tumorlens.data.cards.lineage import size_of_start

        size = size_of_start(config)
        if size is None and isinstance(config, ClassifierConfig):
            from tumorlens.classification.architectures import find_architecture

            size = find_architecture(config.arch).input_size
        config = replace(config, size=size or config.size)
    if isinstance(config, ClassifierConfig):
        return config
    if config.size % 32:
        raise InputError(f"--size {config.size} is not divisible by 32, as the networks need it")
    return config


def _advice(values: Values) -> str:
    """What to do after the run was stopped: there is something to resume from its first checkpoint on."""
    started = (Path(values["out"]) / "checkpoints" / "last.ckpt").is_file()
    return "go on with --resume" if started else "no epoch was finished, so repeat the command"


classification = command(
    partial(_train, "classification"),
    TrainCall,
    ClassifierConfig,
    stopped=_advice,
    recorded=partial(recorded_settings, "classification"),
    extra="train",
    examples="""
    tumorlens train classification --data my-set -o run
    tumorlens train classification --data my-set --map tumeur=glioma --epochs 20 -o run
    tumorlens train classification --data my-set --init shipped --freeze-until layer2 --layer-decay 0.7 -o run
    tumorlens train classification -o run --resume
    tumorlens train classification --config run/config.yaml --data other-set -o other-run
    """,
)

segmentation = command(
    partial(_train, "segmentation"),
    TrainCall,
    SegmenterConfig,
    stopped=_advice,
    recorded=partial(recorded_settings, "segmentation"),
    extra="train",
    examples="""
    tumorlens train segmentation --data my-set -o run
    tumorlens train segmentation --data my-set --init classifier.safetensors --encoder resnet50 -o run
    tumorlens train segmentation --data my-set --init shipped -o run
    """,
)
