"""The classifier's Lightning module: loss, optimizer, validation accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from tumorlens.classification.architectures import Architecture, find_architecture
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.model import build_classifier, last_layers
from tumorlens.data.augmentation.transplant import expected_counts
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR, SHIPPED_CLASSES, ClassList
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.training.loaders import slice_weights, total_steps
from tumorlens.data.training.module import StageModule
from tumorlens.data.training.networks import check_output
from tumorlens.data.training.partition import Partition


def check_input_size(model: nn.Module, architecture: Architecture, size: int, n_classes: int = len(CLASSES)) -> None:
    """Raise an `InputError` if a classifier does not take inputs of this side in pixels."""
    check_output(model, architecture.name, size, (1, n_classes))


def freeze_backbone(model: nn.Module) -> None:
    """Freeze everything but the head, as in transfer learning.

    Raises:
        InputError: The network has no such layer.
    """
    head = [parameter for layer in last_layers(model) for parameter in layer.parameters()]
    if not head:
        raise InputError("this architecture does not end in a linear layer, so its backbone cannot be frozen")
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)


class FocalLoss(nn.CrossEntropyLoss):
    """Cross-entropy in which a slice counts the less, the surer it is right (T.-Y. Lin et al., ICCV 2017).

    Args:
        gamma: Strength; 0 is the cross-entropy.
        rest: Weight and label smoothing.
    """

    def __init__(self, gamma: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.gamma = gamma

    def forward(self, logits_nc: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
        if not self.gamma:
            return super().forward(logits_nc, labels_n)
        each = F.cross_entropy(logits_nc, labels_n, self.weight, reduction="none", label_smoothing=self.label_smoothing)
        sure = logits_nc.softmax(1).gather(1, labels_n[:, None])[:, 0]
        counts = labels_n.new_ones(len(labels_n)) if self.weight is None else self.weight[labels_n]
        return ((1 - sure) ** self.gamma * each).sum() / counts.sum()


class LabelLoss(nn.Module):
    """Label-smoothed, class-weighted cross-entropy, also of slices that are known to show a tumor of unknown type.

    For these, only the presence of a tumor counts: the probabilities of all tumor classes are summed (partial labels:
    T. Cour et al., JMLR 2011).

    Args:
        class_weights: ``(c,)``, one for each output of the network.
        smoothing: Share of a label that is spread over all classes, or over tumor and no tumor.
        gamma: See `FocalLoss`.
        classes: The classes. Where "no tumor" is not among the answers, a tumor of unknown type teaches nothing.
    """

    def __init__(
        self,
        class_weights: torch.Tensor,
        smoothing: float,
        gamma: float = 0.0,
        classes: ClassList = SHIPPED_CLASSES,
    ) -> None:
        super().__init__()
        self.smoothing, self.classes = smoothing, classes
        self.typed = FocalLoss(gamma, weight=class_weights, label_smoothing=smoothing)

    def forward(self, logits_nc: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
        """Scalar loss: the mean over the slices. Labels are numbers of `data.labels.ClassList.index`."""
        typed = labels_n != self.classes.untyped
        loss = logits_nc[:0].sum()  # 0 with a gradient, for a batch that teaches nothing
        if typed.any():
            loss = loss + typed.float().mean() * self.typed(logits_nc[typed], labels_n[typed] - self.classes.offset)
        if self.classes.gate and not typed.all():
            logs = logits_nc[~typed].log_softmax(1)
            free, tumor = logs[:, NO_TUMOR], logs[:, NO_TUMOR + 1 :].logsumexp(1)
            presence = -(1 - self.smoothing / 2) * tumor - self.smoothing / 2 * free
            if self.typed.gamma:
                presence = (1 - tumor.exp()) ** self.typed.gamma * presence
            loss = loss + (~typed).float().mean() * presence.mean()
        return loss


class ClassifierModule(StageModule):
    """A classifier with `LabelLoss`.

    Args:
        config: The run's settings.
        model: The network.
        class_weights: ``(c,)`` of the loss, one for each output of the network.
        total_steps: Optimizer steps of the whole run.
        classes: The classes of the labels.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        model: nn.Module,
        class_weights: torch.Tensor,
        total_steps: int,
        classes: ClassList = SHIPPED_CLASSES,
    ) -> None:
        super().__init__()
        self.config, self.total_steps, self.classes = config, total_steps, classes
        self.outputs = classes.outputs
        self.normalization = find_architecture(config.arch).normalization
        self.model = model.to(memory_format=torch.channels_last)
        gamma = 2.0 if config.loss == "focal" else 0.0
        self.loss = LabelLoss(class_weights, config.label_smoothing, gamma, classes)
        self.accuracy = MulticlassAccuracy(len(classes.outputs), average="micro")
        self.balanced_accuracy = MulticlassAccuracy(len(classes.outputs), average="macro")
        self.macro_f1 = MulticlassF1Score(len(classes.outputs), average="macro")

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return self.model(to_batch(images_nhw, self.normalization))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        batch, logits = self.from_all(batch, self.model(self.training_batch(batch["image"])).float())
        blank = batch["blank"]
        if not self.classes.gate:  # a head whose lesion was healed is of none of the classes
            blank = blank | (batch["label"] == NO_TUMOR)
        loss = logits.new_zeros(())
        if not blank.all():
            loss = loss + (~blank).float().mean() * self.loss(logits[~blank], batch["label"][~blank])
            guess, truth = self.guess_and_truth(logits.detach()[~blank], batch["label"][~blank])
            right = (guess == truth).float().mean()
            self.log("train_accuracy", right, on_step=False, on_epoch=True, batch_size=len(guess))
        if blank.any():  # cross-entropy to the uniform distribution: a blanked head shows no class
            loss = loss - blank.float().mean() * logits[blank].log_softmax(1).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def frozen_parts(self) -> list[nn.Module]:
        return [self.model] if self.config.frozen else super().frozen_parts()

    def guess_and_truth(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(n,)`` twice. A tumor of unknown type is right as any tumor, and wrong as none."""
        guess = logits.argmax(dim=1)
        any_tumor = guess.clamp(min=NO_TUMOR + 1 - self.classes.offset)
        return guess, torch.where(labels == self.classes.untyped, any_tumor, labels - self.classes.offset)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        batch, logits = self.from_all(batch, self(batch["image"]).float())
        labels = batch["label"]
        guess, truth = self.guess_and_truth(logits, labels)
        self.accuracy(guess, truth)
        self.balanced_accuracy(guess, truth)
        self.macro_f1(guess, truth)
        self.log("val_loss", self.loss(logits, labels), batch_size=len(logits))
        self.log("val_accuracy", self.accuracy, prog_bar=True)
        self.log("val_balanced_accuracy", self.balanced_accuracy)
        self.log("val_macro_f1", self.macro_f1)


def build_module(config: ClassifierConfig, parts: Partition, model: nn.Module | None = None) -> ClassifierModule:
    """A module around a model, whose loss weights undo the classes' imbalance and whose schedule spans the whole run.

    Args:
        config: The run's settings.
        parts: The run's slices.
        model: The network; by default a new one.
    """
    shown, classes = slice_weights(config, parts.train), parts.classes
    counts = expected_counts(parts.train.labels, parts.train.masks, config.transplant, len(classes), shown)
    counts = counts[classes.offset :]
    counts[counts < 1] = max(1.0, counts.max())  # label smoothing would pull towards an absent class of large weight
    weights = counts.sum() / (len(counts) * counts) if config.balance else np.ones(len(counts))
    class_weights = torch.tensor(weights, dtype=torch.float32).clamp(max=5)
    model = model or build_classifier(find_architecture(config.arch), config.size, len(classes.outputs))
    return ClassifierModule(config, model, class_weights, total_steps(config, parts), classes)
