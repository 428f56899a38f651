"""Networks of any library: run on slices, checked on an input size, frozen in part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.preprocessing.normalization import Normalization, to_batch

_STEM = ("conv1", "bn1", "layer1")  # of every ResNet of torchvision, timm and segmentation-models-pytorch


def mix_in_start(model: nn.Module, start: nn.Module, share: float) -> None:
    """Move trained weights a part of the way back to their initial ones, so that less of what these knew is lost.

    WiSE-FT: M. Wortsman et al., CVPR 2022.

    Args:
        model: The trained network, changed in place.
        start: A network of the same kind with the initial weights.
        share: Of the initial weights, 0 to 1.
    """
    initial = start.state_dict()
    mixed = {
        name: tensor.lerp(initial[name].to(tensor), share) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(mixed)


def rows_by_name(tensor: torch.Tensor, fresh: torch.Tensor, had: Sequence[str], wanted: Sequence[str]) -> torch.Tensor:
    """A tensor of a last layer for other outputs: the rows of the names that it had, fresh rows for the others.

    Args:
        tensor: ``(len(had), ...)`` of trained weights.
        fresh: ``(len(wanted), ...)`` of the new network.
        had: Names of the trained outputs.
        wanted: Names of the new network's outputs.
    """
    rows = fresh.clone()
    for row, name in enumerate(wanted):
        if name in had:
            rows[row] = tensor[had.index(name)]
    return rows


@dataclass(frozen=True)
class BatchedNetwork:
    """A network that predicts in batches. Each stage adds what its outputs mean.

    Attributes:
        model: The network.
        device: Where it runs.
        normalization: The normalization of pixels that its weights expect.
        half: Compute in bfloat16 instead of fp32.
    """

    model: nn.Module
    device: torch.device
    normalization: Normalization
    half: bool = False

    def batches(
        self, images_nhw: NDArray[np.uint8], batch_size: int, finish: Callable[[torch.Tensor], NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """The outputs for prepared slices ``(n, size, size)``, one array a batch, without gradients.

        Args:
            images_nhw: Prepared slices.
            batch_size: Slices a batch.
            finish: Makes an array of the network's output.
        """
        model = self.model.to(self.device).to(memory_format=torch.channels_last).eval()
        outputs: list[NDArray[Any]] = []
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            for start in range(0, len(images_nhw), batch_size):
                batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(self.device)
                outputs.append(finish(model(to_batch(batch, self.normalization))))
        return outputs


def check_output(model: nn.Module, name: str, size: int, expected: tuple[int, ...]) -> None:
    """Check a network with one black picture on the CPU. Its training mode stays as it is.

    Args:
        model: Takes ``(1, 3, size, size)``.
        name: The user's name for it.
        size: Side of the input in pixels.
        expected: Shape of the output.

    Raises:
        InputError: The network fails on that size, or its output has another shape.
    """
    training = model.training
    try:
        with torch.inference_mode():
            output = model.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # a thousand networks of three libraries fail on a wrong size in as many ways
        raise InputError(f"{name} does not take inputs of {size} pixels ({reason_of(error)})") from None
    finally:
        model.train(training)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
    if shape != expected:
        output_text = f"shape {shape}" if shape else f"a {type(output).__name__}"
        raise InputError(f"{name} does not take inputs of {size} pixels (it gives {output_text}, not shape {expected})")


def freeze_stem(network: nn.Module) -> None:
    """Freeze a ResNet's first convolution and first stage.

    Edges and textures need no more learning, and the finest maps, which cost most, then need no gradients.

    Raises:
        InputError: The network has no such parts.
    """
    if any(not isinstance(getattr(network, name, None), nn.Module) for name in _STEM):
        raise InputError("--freeze-stem is for ResNets; this network has other parts")
    for name in _STEM:
        getattr(network, name).requires_grad_(False)


def freeze_stem_statistics(network: nn.Module) -> None:
    """Keep the batch statistics of a frozen stem while the rest of the network is in training mode."""
    for name in _STEM:
        getattr(network, name).eval()
