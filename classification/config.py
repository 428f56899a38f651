"""Settings of a classifier's training. Needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass

from tumorlens.data.config import TrainingConfig, setting

DEFAULT = "resnet50"


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of a classifier's training run. The Makefile holds those of `make weights`.

    `arch` is a name for `classification.architectures.find_architecture`. On slices with a blanked head all classes are
    to be equally likely, so that the head's outline cannot tell the source of a scan. The classifier learns to refuse
    the pictures of `not_brain` and their like, besides those that `data.augmentation.not_brain` draws.
    """

    init: str = setting(
        "imagenet", "First weights: imagenet (downloaded), none, or a weight file (a trained segmenter's encoder)."
    )
    size: int = setting(224, "Side of the network's input in pixels.", least=32, shown="the architecture's own")
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
