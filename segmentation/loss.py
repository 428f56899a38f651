"""The segmenter's loss: cross-entropy + Dice, to which tumor-free slices contribute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from segmentation_models_pytorch.losses import JaccardLoss, LovaszLoss
from torch import nn


def channels_of(maps_nchw: torch.Tensor, channel_n: torch.Tensor) -> torch.Tensor:
    """One channel of each slice, ``(n, 1, h, w)``.

    Args:
        maps_nchw: Logits of all channels.
        channel_n: ``(n,)`` the chosen ones.
    """
    return maps_nchw[torch.arange(len(maps_nchw), device=maps_nchw.device), channel_n][:, None]


def taught_logits(logits_nchw: torch.Tensor, truth_n1hw: torch.Tensor, channel_n: torch.Tensor) -> torch.Tensor:
    """The logits ``(n, 1, h, w)`` that each slice's truth teaches.

    A slice with a lesion teaches the channel of its own outline, which says nothing about the others. A slice without
    a lesion teaches the highest logit of each pixel: where that is low, all are. So a false pixel costs as much as with
    one channel, and no more in a channel that does not mark it.

    Args:
        logits_nchw: A logit for each channel.
        truth_n1hw: 0 and 1.
        channel_n: ``(n,)`` the channel of each slice's outline.
    """
    sick = truth_n1hw.flatten(1).any(dim=1)[:, None, None, None]
    return torch.where(sick, channels_of(logits_nchw, channel_n), logits_nchw.amax(dim=1, keepdim=True))


UNTAUGHT = -1e4  # a logit that is certain to be no lesion: where the truth is 0, it teaches nothing


class CrossEntropyDice(nn.Module):
    """Pixel-wise binary cross-entropy and soft Dice (F. Milletari et al., 3DV 2016), per slice and over the batch.

    Dice of a tumor-free slice alone teaches almost nothing: SMP masks it, and with a smoothing term its gradient fades
    as soon as more than a few pixels are wrong. Such a segmenter outlines something in healthy slices, too. Over the
    batch, as in nnU-Net (F. Isensee et al., Nature Methods 2021), a false pixel costs the same in every slice. Slices
    with a lesion also have a Dice of their own, because small lesions count little next to large ones.

    Args:
        dice_weight: Share of Dice in the loss.
    """

    def __init__(self, dice_weight: float = 0.5) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.cross_entropy = nn.BCEWithLogitsLoss()
        self.each = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        self.batch = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, batch=True)

    def forward(self, logits_n1hw: torch.Tensor, truth_n1hw: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits against truth (0 and 1), both ``(n, 1, h, w)``."""
        sick = truth_n1hw.flatten(1).any(dim=1)
        each = self.each(logits_n1hw[sick], truth_n1hw[sick]) if sick.any() else logits_n1hw.new_zeros(())
        dice = 0.5 * each + 0.5 * self.batch(logits_n1hw, truth_n1hw)
        return (1 - self.dice_weight) * self.cross_entropy(logits_n1hw, truth_n1hw) + self.dice_weight * dice


def dice_of_slices(drawn_n1hw: torch.Tensor, truth_n1hw: torch.Tensor) -> torch.Tensor:
    """Dice of each slice, ``(n,)``: 1 where both are empty.

    Args:
        drawn_n1hw: Boolean masks.
        truth_n1hw: Boolean masks.
    """
    overlap = (drawn_n1hw & truth_n1hw).flatten(1).sum(1)
    size = drawn_n1hw.flatten(1).sum(1) + truth_n1hw.flatten(1).sum(1)
    return torch.where(size > 0, 2 * overlap / size.clamp(min=1), 1.0)


# Those with Dice take it over the batch and smooth it, so that slices without a lesion teach something, too.
_OVER_BATCH = {"sigmoid": True, "batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
LOSSES: dict[str, Callable[[], nn.Module]] = {  # logits and truth, both (n, 1, h, w) -> scalar
    "bce-dice": CrossEntropyDice,
    "dice": lambda: DiceLoss(**_OVER_BATCH),
    "dicece": lambda: DiceCELoss(**_OVER_BATCH),
    "dicefocal": lambda: DiceFocalLoss(**_OVER_BATCH),
    "focal": FocalLoss,
    "generalized-dice": lambda: GeneralizedDiceLoss(**_OVER_BATCH),
    "tversky": lambda: TverskyLoss(**_OVER_BATCH, alpha=0.3, beta=0.7),  # S. Salehi et al., MLMI 2017: recall counts
    "jaccard": lambda: JaccardLoss("binary", smooth=1.0),
    "lovasz": lambda: LovaszLoss("binary"),
}
