"""Layers that only training needs: an output layer per data set, and a classification layer on the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES


class OwnOutlines(nn.Module):
    """A segmenter's last layer, once for each data set.

    Data sets outline the same lesions in different ways: BRISC's outlines of figshare's gliomas agree with figshare's
    own by a Dice of 0.71. All layers but the last are shared, and a slice teaches the last layer of its own set. The
    trained segmenter has one last layer: their mean, weighted by the sets' numbers of slices with a lesion. For a
    linear layer that is the mean of the logits.

    Args:
        model: A segmenter of segmentation-models-pytorch.
        outlined: Each data set's number of training slices with a lesion.

    Raises:
        InputError: The segmenter has no such last layer.
    """

    share: torch.Tensor

    def __init__(self, model: nn.Module, outlined: Sequence[int]) -> None:
        super().__init__()
        last = self._last_of(model)
        wide: Any = nn.Conv2d(last.in_channels, len(outlined), last.kernel_size, padding=last.padding)
        with torch.no_grad():
            wide.weight.copy_(last.weight.expand_as(wide.weight))
            wide.bias.copy_(last.bias.expand_as(wide.bias))
        self.layer = wide
        share = torch.tensor(outlined, dtype=torch.float32)
        self.register_buffer("share", share / share.sum())

    def forward(self, decoded_nchw: torch.Tensor, source_n: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, 1, h, w)`` of the decoder's features, each slice by the layer of its data set.

        Args:
            decoded_nchw: The decoder's output.
            source_n: ``(n,)`` index of each slice's data set.
        """
        every = self.layer(decoded_nchw)
        return every[torch.arange(len(every), device=every.device), source_n][:, None]

    def give_mean(self, model: nn.Module) -> None:
        """Write the mean of all layers into the segmenter's last layer."""
        last = self._last_of(model)
        with torch.no_grad():
            last.weight.copy_((self.share[:, None, None, None] * self.layer.weight).sum(0, keepdim=True))
            last.bias.copy_((self.share * self.layer.bias).sum(0, keepdim=True))

    @staticmethod
    def _last_of(model: nn.Module) -> Any:
        head: Any = getattr(model, "segmentation_head", [None])
        if not isinstance(head[0], nn.Conv2d):
            raise InputError("--own-outlines needs a segmenter of segmentation-models-pytorch, not a plain U-Net")
        return head[0]


def label_head(model: nn.Module) -> nn.Module:
    """A linear layer on the mean of the encoder's last features, ``(n, c, h, w)`` to ``(n, 4)``.

    Raises:
        InputError: The segmenter has no encoder of segmentation-models-pytorch.
    """
    channels = getattr(getattr(model, "encoder", None), "out_channels", None)
    if not channels:
        raise InputError("--label-weight needs a segmenter with an encoder; a plain U-Net has none")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], len(CLASSES)))
