"""The segmenter's Lightning module: loss, optimizer, validation Dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import DiceMetric
from torch import nn
from torch.nn import functional as F

from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.training.loaders import total_steps
from tumorlens.data.training.module import StageModule, adamw_one_cycle
from tumorlens.data.training.networks import check_output, freeze_stem_statistics
from tumorlens.data.training.partition import Partition
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.heads import OwnOutlines, label_head
from tumorlens.segmentation.loss import CrossEntropyDice
from tumorlens.segmentation.model import build_segmenter, encoder_normalization


def check_input_size(model: nn.Module, arch: str, encoder: str, size: int) -> None:
    """Raise an `InputError` if a segmenter does not take inputs of this side in pixels."""
    name = arch if arch == "plain-unet" else f"{arch} with encoder {encoder}"
    check_output(model, name, size, (1, 1, size, size))


class SegmenterModule(StageModule):
    """A segmenter with cross-entropy + Dice, AdamW and a one-cycle schedule. Its encoder may also classify the slice.

    Args:
        config: The run's settings.
        model: The network.
        total_steps: Optimizer steps of the whole run.
        outlined: Each data set's number of training slices with a lesion.
    """

    def __init__(
        self, config: SegmenterConfig, model: nn.Module, total_steps: int, outlined: Sequence[int] = (1,)
    ) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        self.normalization = encoder_normalization(config.arch, config.encoder)
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = CrossEntropyDice()
        self.label_head = label_head(model) if config.label_weight > 0 else None
        self.own = OwnOutlines(model, outlined) if config.own_outlines else None
        self.dice = DiceMetric(include_background=True, ignore_empty=False)

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return self.model(to_batch(images_nhw, self.normalization))

    def on_train_epoch_start(self) -> None:
        if self.config.freeze_stem:
            freeze_stem_statistics(self.model.get_submodule("encoder"))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        images = self.training_batch(batch["image"])
        logits, class_logits = self.draw_and_classify(images, batch["source"])
        truth = batch["mask"][:, None].float()
        if logits.shape != truth.shape:
            logits = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        loss = self.loss(logits, truth)
        labeled = batch["label"] >= 0
        if class_logits is not None and labeled.any():
            loss = loss + self.config.label_weight * F.cross_entropy(class_logits[labeled], batch["label"][labeled])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["mask"]))
        return loss

    def draw_and_classify(self, images: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the pixels ``(n, 1, h, w)`` and of the classes ``(n, 4)``; None for these without a label head.

        Args:
            images: A normalized batch.
            source: ``(n,)`` the data set of each slice, whose last layer draws it where each set has its own.
        """
        if self.label_head is None and self.own is None:
            return self.model(images).float(), None
        network: Any = self.model
        features = network.encoder(images)
        decoded = network.decoder(features)
        logits = network.segmentation_head(decoded) if self.own is None else self.own(decoded, source)
        return logits.float(), None if self.label_head is None else self.label_head(features[-1]).float()

    def on_validation_start(self) -> None:
        self.on_train_epoch_end()

    def on_train_epoch_end(self) -> None:  # before checkpoints are written
        if self.own is not None:
            self.own.give_mean(self.model)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        logits = self(batch["image"]).float()
        truth = batch["mask"][:, None].float()
        self.dice((logits > 0).float(), truth)
        self.log("val_loss", self.loss(logits, truth), batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        self.log("val_dice", float(self.dice.aggregate()), prog_bar=True)
        self.dice.reset()

    def configure_optimizers(self) -> Any:
        return adamw_one_cycle(self, self.config, self.total_steps)  # of the label head, too


def build_module(config: SegmenterConfig, parts: Partition, model: nn.Module | None = None) -> SegmenterModule:
    """A module around a model, whose schedule spans the whole run.

    Args:
        config: The run's settings.
        parts: The run's slices.
        model: The network; by default a new one.
    """
    model = model or build_segmenter(config.arch, config.encoder, config.decoder_channels)
    sick = parts.train.masks.any(axis=(1, 2))
    sources = np.array([sample.source for sample in parts.train.samples])
    outlined = np.bincount(sources[sick], minlength=len(config.data))
    return SegmenterModule(config, model, total_steps(config, parts, config.negative_share), outlined.tolist())
