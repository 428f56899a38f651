"""Networks of any library: whether they work on an input, told before the data are read."""

from __future__ import annotations

import torch
from torch import nn

from tumorlens.data.errors import InputError, reason_of

_STEM = ("conv1", "bn1", "layer1")  # of every ResNet of torchvision, timm and segmentation-models-pytorch


def check_input(model: nn.Module, name: str, size: int, expected: tuple[int, ...]) -> None:
    """Send one black picture through a network on the CPU; its training mode stays as it is.

    Args:
        model: Takes ``(1, 3, size, size)``.
        name: What the user calls it.
        size: Side of the input in pixels.
        expected: Shape of the output.

    Raises:
        InputError: The network fails on that size, or answers in another shape.
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
        told = f"shape {shape}" if shape else f"a {type(output).__name__}"
        raise InputError(f"{name} does not take inputs of {size} pixels (it gives {told}, not shape {expected})")


def freeze_stem(network: nn.Module) -> None:
    """Leave a ResNet's first convolution and first stage as they are: edges and textures need no more learning, and the
    finest maps, which cost most, need no gradients.

    Raises:
        InputError: The network has no such parts.
    """
    if any(not isinstance(getattr(network, name, None), nn.Module) for name in _STEM):
        raise InputError("--freeze-stem is for ResNets; this network has other parts")
    for name in _STEM:
        getattr(network, name).requires_grad_(False)


def still_stem(network: nn.Module) -> None:
    """Keep the batch statistics of a frozen stem while the rest of the network is in training."""
    for name in _STEM:
        getattr(network, name).eval()
