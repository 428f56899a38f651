"""`tumorlens train classification | segmentation`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tumorlens.data.config import MAX_SEED
from tumorlens.pipeline.cli.options import Channel, Data, Device, LabelMap, config_of
from tumorlens.pipeline.cli.screen import Reading

train_app = typer.Typer(no_args_is_help=True)
Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")]
Fold = Annotated[int, typer.Option(min=0, help="Test fold; the next one validates.")]
SplitBy = Annotated[str, typer.Option("--split", help="folds (by patient) or official (Training/Testing).")]

Duplicates = Annotated[
    str,
    typer.Option(
        help="Near-duplicates across the split: error, drop, or, with --split official, keep (its test figures leak)."
    ),
]

Prepared = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Keep prepared slices there, for the next run over the same data."),
]

Epochs = Annotated[int, typer.Option(min=1, help="Upper limit of epochs.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1)]
EpochSlices = Annotated[int, typer.Option(min=0, help="At most so many slices an epoch, others every time; 0: all.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate of the one-cycle schedule.")]
Patience = Annotated[int, typer.Option(min=1, help="Validations without progress before it stops.")]

OutOfFold = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Train on all patients; thresholds come from this cross-validation of the same recipe (its fold-0, ...).",
    ),
]

Turn = Annotated[
    float, typer.Option(min=0, max=1, help="Share of slices turned by right angles, as careless exports leave them.")
]

Transplant = Annotated[
    float, typer.Option(min=0, max=1, help="Share of slices whose lesion is healed or replaced, against shortcuts.")
]

FreezeStem = Annotated[
    bool, typer.Option("--freeze-stem", help="Leave a ResNet's first stage as it came: a third faster.")
]

SmallEpochs = Annotated[int, typer.Option(min=0, help="Epochs at the start with smaller pictures: faster.")]
SmallSize = Annotated[int, typer.Option(min=32, help="Side of those in pixels.")]
ValidateEvery = Annotated[int, typer.Option(min=1, help="Epochs from one validation to the next.")]

Patients = Annotated[
    float, typer.Option(min=0.01, max=1, help="Share of the training patients to learn from (learning curves).")
]

Strength = Annotated[float, typer.Option("--augment", min=0, help="Strength of augmentation; 0 is none.")]
Size = Annotated[int, typer.Option(min=32, help="Side of the network's input in pixels.")]

OwnSize = Annotated[
    int | None, typer.Option(min=32, help="Side of the network's input in pixels. [default: the architecture's own]")
]

Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED)]
Workers = Annotated[int, typer.Option(min=0, help="Loader processes; with 0, errors show as they are.")]
Precision = Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), bf16 or fp32.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")]


@train_app.command()
def classification(
    data: Data,
    out: Out,
    fold: Fold = 0,
    split: SplitBy = "folds",
    duplicates: Duplicates = "error",
    patients: Patients = 1.0,
    label_map: LabelMap = None,
    channel: Channel = None,
    init: Annotated[
        str, typer.Option(help="imagenet (downloaded), none, or a weight file (a trained segmenter's encoder).")
    ] = "imagenet",
    epochs: Epochs = 8,
    batch_size: Batch = 32,
    learning_rate: Rate = 4e-4,
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.5)] = 0.05,
    balance: Annotated[bool, typer.Option(help="Weight the loss against class imbalance.")] = True,
    arch: Annotated[
        str, typer.Option(help="resnet50, cnn, mlp, alexnet, vgg16, inception_v3, any name of torchvision or timm.")
    ] = "resnet50",
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the last layer only.")] = False,
    blank: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of slices shown with a blanked head, against shortcuts.")
    ] = 0.1,
    not_brain: Annotated[
        list[str] | None, typer.Option(help="Folder of pictures that are no brains, to be refused; repeatable.")
    ] = None,
    patience: Patience = 5,
    validate_every: ValidateEvery = 1,
    epoch_slices: EpochSlices = 0,
    augment: Strength = 1.0,
    turn: Turn = 0.1,
    transplant: Transplant = 0.05,
    freeze_stem: FreezeStem = False,
    small_epochs: SmallEpochs = 0,
    small_size: SmallSize = 160,
    out_of_fold: OutOfFold = None,
    size: OwnSize = None,
    seed: Seed = 0,
    workers: Workers = 0,
    prepared: Prepared = None,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the classifier (four classes; ResNet-50, or another architecture by name)."""
    settings = {k: v for k, v in locals().items() if k not in ("out", "resume", "quiet")}
    _train("classification", settings, out, resume, quiet)


@train_app.command()
def segmentation(
    data: Data,
    out: Out,
    fold: Fold = 0,
    split: SplitBy = "folds",
    duplicates: Duplicates = "error",
    patients: Patients = 1.0,
    label_map: LabelMap = None,
    channel: Channel = None,
    init: Annotated[
        str, typer.Option(help="Encoder's start: imagenet (downloaded), none, or a weight file (a trained classifier).")
    ] = "imagenet",
    arch: Annotated[
        str, typer.Option(help="unet (with a residual encoder: Res-U-Net), unet++, unet-scse or plain-unet.")
    ] = "unet",
    encoder: Annotated[
        str, typer.Option(help="Any encoder of segmentation-models-pytorch; tu-NAME for timm's.")
    ] = "resnet50",
    epochs: Epochs = 8,
    batch_size: Batch = 16,
    learning_rate: Rate = 4e-4,
    patience: Patience = 5,
    validate_every: ValidateEvery = 1,
    epoch_slices: EpochSlices = 0,
    augment: Strength = 1.0,
    turn: Turn = 0.1,
    transplant: Transplant = 0.2,
    own_outlines: Annotated[
        bool,
        typer.Option(
            "--own-outlines",
            help="A last layer for each data set, for sets outline the same lesion in other ways; their mean is kept.",
        ),
    ] = False,
    negative_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="At most this share of an epoch's slices shows no lesion, before --transplant heals others; 0: as "
            "they come.",
        ),
    ] = 0.0,
    label_weight: Annotated[
        float, typer.Option(min=0, help="Weight of a loss by which the encoder has to name the tumor; 0: none.")
    ] = 0.0,
    freeze_stem: FreezeStem = False,
    small_epochs: SmallEpochs = 0,
    small_size: SmallSize = 160,
    out_of_fold: OutOfFold = None,
    size: Size = 224,
    seed: Seed = 0,
    workers: Workers = 0,
    prepared: Prepared = None,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train the segmenter (one mask; Res-U-Net, or another architecture and encoder by name)."""
    settings = {k: v for k, v in locals().items() if k not in ("out", "resume", "quiet")}
    _train("segmentation", settings, out, resume, quiet)


def _train(stage: str, settings: dict[str, Any], out: Path, resume: bool, quiet: bool) -> None:
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors(stopped="go on with --resume"):
        config = config_of(stage, settings)
        run: Any
        if stage == "classification":
            from tumorlens.classification.train import train_classifier

            run = train_classifier
        else:
            from tumorlens.segmentation.train import train_segmenter

            run = train_segmenter
        show = not quiet and sys.stderr.isatty()
        command = "tumorlens " + shlex.join(sys.argv[1:])
        with Reading(show) as prepared:
            run(config, out, resume, show, typer.echo, prepared, command)
