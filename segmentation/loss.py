"""Cross-entropy + Dice in which tumor-free slices do teach."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn


class CrossEntropyDice(nn.Module):
    """Mean of pixel-wise binary cross-entropy and soft Dice (Milletari et al., 3DV 2016).

    Plain soft Dice is constant on an empty truth (SMP even masks it), so false masks cost nothing. Here the smoothing
    term of one pixel gives an empty slice the loss ``1 - 1 / (sum(p) + 1)``, whose gradient pushes p down, and the
    cross-entropy does so for large false masks, where that gradient fades.
    """

    def __init__(self, dice_weight: float = 0.5) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.cross_entropy = nn.BCEWithLogitsLoss()
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits_n1hw: torch.Tensor, truth_n1hw: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits against truth (0 and 1), both ``(n, 1, h, w)``."""
        cross_entropy = self.cross_entropy(logits_n1hw, truth_n1hw)
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * self.dice(logits_n1hw, truth_n1hw)
