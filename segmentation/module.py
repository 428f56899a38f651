"""The segmenter's Lightning module: loss, optimizer, validation Dice."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import DiceMetric
from torch import nn
from torch.nn import functional as F

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, SEQUENCES, SHIPPED_CLASSES, ClassList
from tumorlens.data.masks.boxes import LESION, UNKNOWN, fill_boxes
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.training.loaders import total_steps
from tumorlens.data.training.module import StageModule
from tumorlens.data.training.networks import check_output
from tumorlens.data.training.partition import Partition
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.loss import LOSSES, UNTAUGHT, channels_of, dice_of_slices, taught_logits
from tumorlens.segmentation.model import build_segmenter, encoder_normalization


def check_input_size(model: nn.Module, config: SegmenterConfig, size: int) -> None:
    """Raise an `InputError` if a run's segmenter does not take inputs of this side in pixels."""
    name = config.arch if config.arch == "plain-unet" else f"{config.arch} with encoder {config.encoder}"
    check_output(model, name, size, (1, max(1, len(config.channel_names)), size, size))


def label_head(model: nn.Module, n_classes: int = len(CLASSES)) -> nn.Module:
    """A linear layer on the mean of the encoder's last features, ``(n, c, h, w)`` to ``(n, n_classes)``.

    Raises:
        InputError: The segmenter has no encoder of segmentation-models-pytorch.
    """
    channels = getattr(getattr(model, "encoder", None), "out_channels", None)
    if not channels:
        raise InputError("--label-weight needs a segmenter with an encoder; a plain U-Net has none")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], n_classes))


class SegmenterModule(StageModule):
    """A segmenter with its loss. Its encoder may also classify the slice.

    Args:
        config: The run's settings.
        model: The network.
        total_steps: Optimizer steps of the whole run.
        classes: Of the labels of the slices.
    """

    channel: torch.Tensor

    def __init__(
        self, config: SegmenterConfig, model: nn.Module, total_steps: int, classes: ClassList = SHIPPED_CLASSES
    ) -> None:
        super().__init__()
        self.config, self.total_steps, self.untyped = config, total_steps, classes.untyped
        self.normalization = encoder_normalization(config.arch, config.encoder)
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = LOSSES[config.loss]()
        self.regions = config.regions
        self.label_head = label_head(model, len(classes)) if config.label_weight > 0 else None
        self.outputs = classes.names if config.label_weight > 0 else ()
        # By data set and sequence; the last column is that of slices whose sequence is not known, whose index is -1.
        table = [[config.channel_of(k, sequence) for sequence in (*SEQUENCES, "")] for k in range(len(config.data))]
        self.register_buffer("channel", torch.tensor(table), persistent=False)
        self.dice = DiceMetric(include_background=True, ignore_empty=False)
        self.sick: list[torch.Tensor] = []  # the validation slices that have a lesion, by region

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return self.model(to_batch(images_nhw, self.normalization))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        images = self.training_batch(batch["image"])
        batch, logits, class_logits = self.from_all(batch, *self.draw_and_classify(images))
        mask = batch["mask"][:, None]
        if logits.shape[-2:] != mask.shape[-2:]:
            logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False)
        channel = self.channel_n(batch)
        loss = self.loss_of(logits, mask, channel)
        labeled = (batch["label"] >= 0) & (batch["label"] != self.untyped)
        if class_logits is not None and labeled.any():
            loss = loss + self.config.label_weight * F.cross_entropy(class_logits[labeled], batch["label"][labeled])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["mask"]))
        drawn, truth = self.drawn_and_truth(logits.detach(), mask, channel)
        if not self.regions:
            drawn, truth = drawn & (mask != UNKNOWN), mask == LESION
        dice = dice_of_slices(drawn.flatten(0, 1)[:, None], truth.flatten(0, 1)[:, None]).mean()
        self.log("train_dice", dice, on_step=False, on_epoch=True, batch_size=len(batch["mask"]))
        return loss

    def drawn_and_truth(
        self, logits_nchw: torch.Tensor, mask_n1hw: torch.Tensor, channel_n: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is drawn and what is true, boolean ``(n, c, h, w)``: a plane for each region, else one."""
        if self.regions:
            return logits_nchw > 0, self.planes(mask_n1hw)
        return channels_of(logits_nchw, channel_n) > 0, mask_n1hw > 0

    def planes(self, bits_n1hw: torch.Tensor) -> torch.Tensor:
        """A boolean mask of each region ``(n, c, h, w)``, see `Regions.planes`."""
        return torch.cat([(bits_n1hw >> k) & 1 for k in range(len(self.regions))], dim=1) > 0

    def draw_and_classify(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the pixels ``(n, c, h, w)`` and of the classes ``(n, classes)``; None without a label head.

        There is a channel for each kind of outline, or for each region.

        Args:
            images: A normalized batch.
        """
        if self.label_head is None:
            return self.model(images).float(), None
        network: Any = self.model
        features = network.encoder(images)
        logits = network.segmentation_head(network.decoder(features))
        return logits.float(), self.label_head(features[-1]).float()

    def loss_of(self, logits_nchw: torch.Tensor, mask_n1hw: torch.Tensor, channel_n: torch.Tensor) -> torch.Tensor:
        """The loss of a batch's pixels; of regions, the mean over them. Pixels of `data.masks.boxes.UNKNOWN`, where a
        box leaves the truth open, teach nothing."""
        if self.regions:
            each = zip(logits_nchw.split(1, dim=1), self.planes(mask_n1hw).float().split(1, dim=1), strict=True)
            return torch.stack([self.loss(logits, truth) for logits, truth in each]).mean()
        taught = taught_logits(logits_nchw, mask_n1hw > 0, channel_n).masked_fill(mask_n1hw == UNKNOWN, UNTAUGHT)
        return self.loss(taught, (mask_n1hw == LESION).float())

    def channel_n(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(n,)`` the channel of each slice's outline."""
        return self.channel[batch["source"], batch["sequence"]]

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        batch, logits = self.from_all(batch, self(batch["image"]).float())
        mask, channel = batch["mask"][:, None], self.channel_n(batch)
        drawn, truth = (each.float() for each in self.drawn_and_truth(logits, mask, channel))
        # Truth that is boxes is compared with the boxes around what is drawn. Boxes have no regions.
        boxed = [] if self.regions else (mask == UNKNOWN).flatten(1).any(dim=1).nonzero().flatten().tolist()
        for i in boxed:
            for map_n1hw in (drawn, truth):
                map_n1hw[i, 0] = torch.from_numpy(fill_boxes(map_n1hw[i, 0].cpu().numpy()))
        self.dice(drawn, truth)
        self.sick.append(truth.flatten(2).any(dim=2))
        self.log("val_loss", self.loss_of(logits, mask, channel), batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        """Log the Dice of all slices and of those with a lesion: of each region, and the means over the regions."""
        self.log("val_dice", float(self.dice.aggregate()), prog_bar=True)
        sick_nc = torch.cat(self.sick)
        scores_nc = self.dice.get_buffer()[: len(sick_nc)]  # MONAI appends those of other processes, which are the same
        # A region that no validation slice shows has no Dice.
        of_region = {k: scores_nc[sick, k].mean() for k, sick in enumerate(sick_nc.T) if sick.any()}
        for k, dice in of_region.items() if self.regions else ():
            self.log(f"val_dice_{self.regions.names[k]}", float(dice))
        self.log("val_dice_tumor", float(torch.stack(list(of_region.values())).mean()))
        self.dice.reset()
        self.sick.clear()


def build_module(config: SegmenterConfig, parts: Partition, model: nn.Module | None = None) -> SegmenterModule:
    """A module around a model, whose schedule spans the whole run.

    Args:
        config: The run's settings.
        parts: The run's slices.
        model: The network; by default a new one.
    """
    model = model or new_segmenter(config)
    return SegmenterModule(config, model, total_steps(config, parts, config.negative_share), parts.classes)


def new_segmenter(config: SegmenterConfig) -> nn.Module:
    """The network of a run, with random weights; errors as in `build_segmenter`."""
    return build_segmenter(config.arch, config.encoder, config.decoder_channels, max(1, len(config.channel_names)))
