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

_AROUND = ("encoder", "model")  # parts whose layers stand for themselves
_SEQUENCES = ("features", "blocks", "stages", "layers")  # in which timm and torchvision keep a network's layers


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


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that have weights, by name, from input to output.

    A layer is a child of the network, such as ``layer3``, of its encoder, or of what holds a sequence of layers, such
    as ``blocks.7``.
    """
    layers: dict[str, nn.Module] = {}
    for name, part in network.named_children():
        inner = layers_of(part) if name in _AROUND else {}
        if name in _SEQUENCES:
            inner = {
                f"{name}.{step}": layer
                for step, layer in part.named_children()
                if next(layer.parameters(), None) is not None
            }
        if inner:
            layers |= inner
        elif next(part.parameters(), None) is not None:
            layers[name] = part
    return layers


def layers_until(network: nn.Module, last: str) -> list[nn.Module]:
    """The layers of a network up to one of them; none for an empty name.

    Raises:
        InputError: The network has no such layer, or none would be left.
    """
    if not last:
        return []
    layers = layers_of(network)
    names = list(layers)
    if last not in names[:-1]:
        raise InputError(
            f"layer {last!r} cannot be frozen: this network has {', '.join(names[:-1])}, and {names[-1]} has to learn"
        )
    return list(layers.values())[: names.index(last) + 1]


def freeze(network: nn.Module, last: str) -> None:
    """Freeze the weights of `layers_until` and those in front of all layers, such as a transformer's positions.

    Edges and textures need little learning, and the finest maps, which cost most, then need no gradients. Batch
    statistics are frozen at the start of each epoch, see `data.training.module.StageModule`.
    """
    frozen = layers_until(network, last)
    for layer in frozen:
        layer.requires_grad_(False)
    if frozen:
        for parameter in network.parameters(recurse=False):
            parameter.requires_grad_(False)


def layer_rates(network: nn.Module, rate: float, decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """The weights that learn, in groups with a learning rate each, from the last layer down.

    Each layer learns slower than the one after it (ULMFiT: J. Howard and S. Ruder, ACL 2018; BEiT: H. Bao et al., ICLR
    2022). A normalization layer learns as fast as the layer before it.

    Args:
        network: The network. A part of it that is no layer, such as a transformer's positions, learns slowest.
        rate: Of the last layer.
        decay: Factor from one layer to the one before it; with 1, one group holds everything.
    """
    if decay == 1:
        return [(rate, [p for p in network.parameters() if p.requires_grad])]
    groups: list[tuple[float, list[nn.Parameter]]] = []
    steps = 0
    waiting: list[nn.Parameter] = []
    for layer in reversed(layers_of(network).values()):
        waiting += [p for p in layer.parameters() if p.requires_grad]
        if all(p.dim() < 2 for p in layer.parameters()):
            continue  # joins the layer before it
        groups.append((rate * decay**steps, waiting))
        steps, waiting = steps + 1, []
    grouped = {id(p) for _, group in groups for p in group}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in grouped]
    return [group for group in [*groups, (rate * decay**steps, rest)] if group[1]]
