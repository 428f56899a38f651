"""Cross-entropy + Dice in which tumor-free slices do teach."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn


class CrossEntropyDice(nn.Module):
    """Pixel-wise binary cross-entropy and soft Dice (Milletari et al., 3DV 2016), each slice's and the whole batch's.

    Dice of a tumor-free slice alone teaches next to nothing: SMP masks it, and with a smoothing term its gradient fades
    as soon as more than a few pixels are wrong, so that a segmenter outlines something in healthy slices, too. Over the
    batch, as nnU-Net does it (F. Isensee et al., Nature Methods 2021), a false pixel costs the same wherever it lies.
    The slices with a lesion keep a Dice of their own, or small lesions would count for nothing beside large ones.
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
