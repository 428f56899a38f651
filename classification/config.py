"""Settings of a classifier's training. Needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tumorlens.data.config import TrainingConfig, setting

DEFAULT = "resnet50"
LOSSES = ("cross-entropy", "focal")
FIGURES = ("macro_f1", "accuracy", "balanced_accuracy", "loss")
SHIPPED = Path(__file__).parent / "weights" / "classifier.safetensors"


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of a classifier's training run. The Makefile holds those of `make weights`.

    `arch` is a name for `classification.architectures.find_architecture`. On slices with a blanked head all classes are
    to be equally likely, so that the head's outline cannot tell the source of a scan. The classifier learns to refuse
    the pictures of `not_brain` and their like, besides those that `data.augmentation.not_brain` draws.
    """

    stage: ClassVar[str] = "classification"
    shipped: ClassVar[Path] = SHIPPED

    init: str = setting(
        "imagenet",
        "First weights: imagenet (downloaded), shipped (tumorlens's own classifier), none, or a weight file (a trained "
        "classifier, or a segmenter's encoder).",
    )
    size: int = setting(
        224,
        "Side of the network's input in pixels.",
        least=32,
        shown="that of --init where it is a whole network, else the architecture's own",
    )
    loss: str = setting(  # type: ignore[misc]
        "cross-entropy",
        "cross-entropy, or focal, which teaches most from the slices that are still wrong.",
        choices=LOSSES,
    )
    best_by: str = setting("macro_f1", "Validation figure that chooses the epoch.", choices=FIGURES)  # type: ignore[misc]
    label_smoothing: float = setting(
        0.05, "Share of a slice's label that is spread over all classes.", least=0, most=0.5
    )
    balance: bool = setting(True, "Weight the loss against class imbalance.")
    arch: str = setting(DEFAULT, "resnet50, cnn, mlp, alexnet, vgg16, inception_v3, any name of torchvision or timm.")
    frozen: bool = setting(False, "Train the last layer only.")
    blank: float = setting(0.1, "Share of slices shown with a blanked head, against shortcuts.", least=0, most=0.5)
    classes: str = setting(
        "",
        "The classes: names with commas between them, or a YAML file with a row for each.",
        metavar="FILE|A,B,C",
        shown="those of classes.yaml in the data folder, else those of the labels",
    )
    not_brain: tuple[str, ...] = setting(
        (), "Folder of pictures that do not show a brain, to be refused; repeatable.", metavar="FOLDER"
    )
