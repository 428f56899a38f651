"""Batch normalization over the slices of all processes, so that several learn as one with the same batch does."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins import LayerSync
from timm.layers.norm_act import convert_sync_batchnorm
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedLayers(LayerSync):
    """Lets Lightning's several processes share the statistics of batch normalization.

    PyTorch's own layers do on GPUs, in the version of timm, which keeps the activation that some of its layers hold.
    PyTorch has none for the CPU.

    Args:
        cpu: The processes compute on CPUs.
    """

    def __init__(self, cpu: bool) -> None:
        self.cpu = cpu

    def apply(self, model: nn.Module) -> nn.Module:
        if not self.cpu:
            converted: nn.Module = convert_sync_batchnorm(model)
            return converted
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.__class__ = _synced(type(layer))  # type: ignore[assignment]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Give the layers their own class back. PyTorch's need not be: in evaluation mode they work alone."""
        for layer in model.modules():
            if isinstance(layer, _Synced):
                layer.__class__ = type(layer).__mro__[2]
        return model


class _Synced(nn.Module):
    """The training mode of batch normalization, with mean and variance of all processes' values."""

    def forward(self: Any, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            result: torch.Tensor = super().forward(values)
            return result
        axes, shape = [0, *range(2, values.dim())], [1, -1, *[1] * (values.dim() - 2)]
        number = values.numel() // values.shape[1] * distributed.get_world_size()  # all have as many
        mean = all_reduce(values.float().sum(axes)) / number
        centered = values.float() - mean.view(shape)
        variance = all_reduce(centered.square().sum(axes)) / number
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * number / max(1, number - 1), share)
        scale = (variance + self.eps).rsqrt()
        scaled = centered * (scale * self.weight if self.affine else scale).view(shape)
        scaled = (scaled + self.bias.view(shape) if self.affine else scaled).to(values.dtype)
        for part in ("drop", "act"):  # of timm's layers
            scaled = getattr(self, part)(scaled) if hasattr(self, part) else scaled
        return scaled


def _synced(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Synced{kind.__name__}", (_Synced, kind), {})
