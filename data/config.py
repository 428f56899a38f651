"""Settings that the trainings of both stages share, and how a setting is declared. Needs neither torch nor NumPy.

A setting is declared once, as the field of a dataclass: its type, its default, and with `setting` what the command
line shows of it and accepts. `pipeline.cli.options` makes the options from these fields. A stage that needs another
default or another text overrides the field.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from tumorlens.data.errors import InputError

MAX_SEED = 2**32 - 1  # of NumPy's and scikit-learn's generators
SPLITS = ("folds", "holdout", "official", "all")
LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")
OPTIMIZERS = ("adamw", "adam", "nadam", "radam", "sgd", "rmsprop")
SCHEDULERS = ("onecycle", "cosine", "linear", "step", "constant")
PARTS = ("train", "validation", "test")  # of a data set: to learn from, to choose an epoch on, to measure on

LAYOUTS = (
    "Data folder (index.csv, class folders, images/ + masks/, LGG folders of patients with pictures and their *_mask "
    "files) or INDEX.csv, or INDEX.csv@FOLDER"
)


@dataclass(frozen=True)
class Setting:
    """The command line's view of a setting: its help, its spelling, and the values that it accepts.

    Attributes:
        help: One sentence for ``--help``.
        flag: Spellings, separated by spaces, where they are not ``--`` and the field's name: ``"-o --out"``.
        least: Smallest number that is accepted.
        most: Largest number that is accepted.
        choices: The only values that are accepted.
        metavar: Placeholder of the value in ``--help``.
        shown: Words for the default, where the value itself says nothing.
        argument: The setting is given by its position, not by an option.
        alone: The value that the option has where the user gives it without one.
    """

    help: str = ""
    flag: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str = ""
    shown: str = ""
    argument: bool = False
    alone: str = ""


def setting(default: Any = MISSING, help: str | Setting = "", **details: Any) -> Any:
    """A dataclass field that is an option of the command line.

    Args:
        default: Of the field; without one the user has to give a value.
        help: One sentence for ``--help``, or a `Setting` that several dataclasses share.
        details: Other attributes of `Setting`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     epochs: int = setting(8, "Upper limit of epochs.", least=1)
    """
    declared = help if isinstance(help, Setting) else Setting(help, **details)
    return field(default=default, metadata={"setting": declared})


def check_choices(config: Any) -> None:
    """Raise an `InputError` if a setting of a dataclass is not one of its choices."""
    for each in fields(config):
        choices, value = each.metadata.get("setting", Setting()).choices, getattr(config, each.name)
        if choices and isinstance(value, str) and value not in choices:
            raise InputError(f"{each.name} {value!r} is not one of {', '.join(choices)}")


LABEL_MAP = Setting("One of your label names and the class it means; repeatable.", flag="--map", metavar="NAME=CLASS")
CHANNEL = Setting(
    "Channel of color pictures to take.",
    flag="--frame-channel",
    least=0,
    most=2,
    shown="what the index says, FLAIR (1) of LGG folders, else the brightness",
)
DEVICE = Setting("auto, cpu, cuda, cuda:N or mps.")


@dataclass(frozen=True)
class DataConfig:
    """The data of a run, and their split.

    `split` is one of `SPLITS`. With ``"all"`` everything trains and nothing is left to validate or test; `out_of_fold`
    sets it.
    `duplicates` ``"keep"`` leaves near-duplicates, and patients, on both sides of an official split, as papers do.
    """

    data: tuple[str, ...] = setting(help=f"{LAYOUTS}; repeatable.")
    fold: int = setting(0, "Test fold; the next one validates.", least=0)
    split: str = setting(
        "folds", "folds (by patient), holdout (--fold validates, nothing tests) or official (Training/Testing)."
    )
    duplicates: str = setting(
        "error",
        "Near-duplicates across the split: error, drop, or, with --split official, keep (its test figures leak).",
    )
    patients: float = setting(
        1.0, "Share of the training patients to learn from, of each class alike (learning curves).", least=0.01, most=1
    )
    label_map: tuple[tuple[str, str], ...] = setting((), LABEL_MAP)
    size: int = setting(224, "Side of the network's input in pixels.", least=32)
    seed: int = setting(0, "Seed of folds, order, augmentation and first weights.", least=0, most=MAX_SEED)
    channel: int | None = setting(None, CHANNEL)
    prepared: str = setting("", "Keep prepared slices there, for the next run over the same data.", metavar="FOLDER")

    @property
    def tested(self) -> str:
        """The slices that the run is tested on, in words."""
        if self.split == "holdout":
            return f"held-out fold {self.fold}"
        return "official test part" if self.split == "official" else f"test fold {self.fold}"


@dataclass(frozen=True)
class TrainingConfig(DataConfig):
    """Settings that both stages share.

    Each stage adds its own `loss`, and with `best_by` the validation figures of which one chooses the epoch.
    """

    stage: ClassVar[str]
    shipped: ClassVar[Path]  # the stage's shipped weights
    loss: ClassVar[str]
    best_by: ClassVar[str]

    init: str = setting("imagenet", "First weights: imagenet (downloaded), shipped, none, or a weight file.")
    epochs: int = setting(8, "Upper limit of epochs, and length of the learning-rate schedule.", least=1)
    batch_size: int = setting(32, "Slices a batch, of all processes together.", least=1)
    accumulate: int = setting(1, "Batches a step: their gradients are averaged, which needs less memory.", least=1)
    rate: tuple[float, ...] = setting(
        (), "How often an epoch shows a slice of each --data, in their order: once for each --data, or not at all."
    )
    epoch_slices: int = setting(0, "At most so many slices an epoch, others every time; 0: all.", least=0)
    optimizer: str = setting("adamw", "PyTorch's optimizer; each but adamw needs another --lr.", choices=OPTIMIZERS)
    scheduler: str = setting(
        "onecycle",
        "How the learning rate goes on after it has risen to its peak: onecycle and cosine fall along a cosine, linear "
        "along a line, step to a tenth at half and again at four fifths of what is left, constant stays.",
        choices=SCHEDULERS,
    )
    learning_rate: float = setting(4e-4, "Peak learning rate.", flag="--lr", least=0)
    layer_decay: float = setting(
        1.0,
        "Each layer learns by this factor slower than the next, from the last one down; 1: all alike.",
        least=0.01,
        most=1,
    )
    weight_decay: float = setting(0.02, "Weight decay of the optimizer.", least=0, most=1)
    warmup: float = setting(0.2, "Share of the run in which the learning rate rises.", least=0, most=0.9)
    patience: int = setting(5, "Validations without progress before the run stops.", least=1)
    validate_every: int = setting(1, "Epochs from one validation to the next; divides --epochs.", least=1)
    augment: float = setting(1.0, "Strength of augmentation; 0: none.", least=0)
    turn: float = setting(
        0.1, "Share of slices turned by right angles, as careless exports leave them.", least=0, most=1
    )
    transplant: float = setting(
        0.05, "Share of slices whose lesion is healed or replaced, against shortcuts.", least=0, most=1
    )
    freeze_until: str = setting(
        "",
        "Leave the network up to this layer as it came, its batch statistics too: layer3, for instance; a name that is "
        "not one of its layers lists them.",
        metavar="LAYER",
    )
    freeze_stem: bool = setting(False, "--freeze-until layer1, a ResNet's first stage: a third faster.")
    small_share: float = setting(
        0.0, "Share of the steps, all but the last tenth, with smaller pictures: faster.", least=0, most=1
    )
    small_size: int = setting(160, "Side of those smaller pictures in pixels.", least=32)
    start_share: float = setting(
        0.0, "Share of the initial weights that is mixed into the trained ones.", least=0, most=1
    )
    ema: float = setting(
        0.0, "Decay of the moving average of the weights, which is what is saved; 0: none.", least=0, most=0.9999
    )
    workers: int | None = setting(
        None, "Processes that augment slices beside the training step; 0: none.", least=0, shown="auto"
    )
    device: str = setting("auto", DEVICE)
    devices: int = setting(
        1, "Processes on each machine that train together: one a GPU, or that share the CPU's cores.", least=1
    )
    nodes: int = setting(1, "Machines that train together; torchrun or SLURM starts the command on each.", least=1)
    precision: str = setting("auto", "auto (bf16 where the hardware has it), bf16 or fp32.")
    logger: str = setting(
        "csv",
        "Also log to these programs' files in the run's folder; nothing leaves the machine. metrics.csv is always "
        "written.",
        choices=LOGGERS,
    )
    out_of_fold: str = setting(
        "",
        "Train on all patients; calibrate on this run of the same recipe (--split holdout) or cross-validation.",
        metavar="FOLDER",
    )

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self.devices * self.nodes

    @property
    def init_file(self) -> Path | None:
        """The file of the initial weights; None where they are downloaded or random."""
        if self.init in ("imagenet", "none"):
            return None
        return self.shipped if self.init == "shipped" else Path(self.init)

    @property
    def frozen_until(self) -> str:
        """The last layer that stays as it came; empty where all learn."""
        return self.freeze_until or ("layer1" if self.freeze_stem else "")

    @property
    def rates(self) -> tuple[float, ...]:
        """How often an epoch shows a slice of each data set, in their order.

        Raises:
            InputError: There is not one rate per data set, or one of them is not above 0.
        """
        if self.rate and len(self.rate) != len(self.data):
            raise InputError(f"{len(self.rate)} of --rate for {len(self.data)} of --data; give one for each, or none")
        if not all(0 < rate < math.inf for rate in self.rate):
            raise InputError("each --rate is a number above 0; leave out a data set that is to teach nothing")
        return self.rate or (1.0,) * len(self.data)
