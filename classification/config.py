"""Settings of a classifier's training; importing them needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass

from tumorlens.data.config import TrainingConfig

DEFAULT = "resnet50"


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of a classifier's training run; those of `make weights` are in the Makefile.

    Attributes:
        label_smoothing: Share of a slice's label that is spread over all classes.
        balance: Weight the loss by the inverse frequency of the classes.
        arch: Name of the network, see `classification.architectures.find_architecture`.
        frozen: Let only the last layer learn.
        blank: Share of the training slices whose head is blanked, on which all classes are to be equally likely, so
            that the head's outline cannot tell the source of a scan.
        out_of_fold: Folder of a cross-validation of this recipe, whose predictions decide calibration and thresholds of
            a run on all patients (``split="all"``).
        not_brain: Folders of pictures that are no brains; the classifier learns to refuse them and their like, besides
            those that are drawn (`data.augmentation.not_brain`).
    """

    label_smoothing: float = 0.05
    balance: bool = True
    arch: str = DEFAULT
    frozen: bool = False
    blank: float = 0.1
    out_of_fold: str = ""
    not_brain: tuple[str, ...] = ()
