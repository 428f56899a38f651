"""The classifier's network and its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tumorlens.classification.architectures import Architecture
from tumorlens.data.cards.weights import read_state
from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.labels import CLASSES


@dataclass(frozen=True)
class InitReport:
    """The result of an initialization.

    Attributes:
        source: Where the weights come from.
        loaded: Number of tensors that fitted.
        total: Number of the network's tensors.
        fresh: Parts of the network that start from random weights.
    """

    source: str
    loaded: int
    total: int
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        if not self.loaded:
            return f"all {self.total} tensors from chance{self.source.removeprefix('nothing')}"
        rest = f"; from chance: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.loaded} of {self.total} tensors from {self.source}{rest}"


def build_classifier(architecture: Architecture, size: int | None = None, n_classes: int = len(CLASSES)) -> nn.Module:
    """A network with random weights and one logit per class.

    Args:
        architecture: From `classification.architectures.find_architecture`.
        size: Side of the input in pixels, by default the architecture's own.
        n_classes: Number of classes, by default that of the shipped list.

    Input ``(n, 3, size, size)`` as `data.preprocessing.normalization.to_batch` gives it; logits ``(n, n_classes)``.

    Raises:
        InputError: The architecture cannot be built for that size.
    """
    return architecture.build(size or architecture.input_size, n_classes)


def initialize(model: nn.Module, architecture: Architecture, init: str = "imagenet") -> InitReport:
    """Load the initial weights of a new classifier.

    Args:
        model: From `build_classifier`.
        architecture: The model's architecture.
        init: ``"imagenet"`` (downloaded; nothing for an architecture without such weights), ``"none"``, or a
            ``.safetensors`` or ``.pth`` file of such a network, or of a segmenter with such an encoder. Tensors that
            the file lacks keep their random weights.

    Raises:
        InputError: The download fails, the file is missing, or none of its tensors fits.
    """
    if init == "none":
        return _report(model, set(), "nothing")
    if init == "imagenet":
        if architecture.pretrained is None:
            return _report(model, set(), "nothing (it has no ImageNet weights)")
        try:
            state = architecture.pretrained()
        except Exception as error:  # hub clients raise types of their own for every way to be offline
            raise InputError(
                f"ImageNet weights of {architecture.name} cannot be downloaded ({type(error).__name__}: "
                f"{reason_of(error)}); give a file with --init FILE, or --init none"
            ) from None
        source = "ImageNet"
    else:
        state, source = read_state(Path(init)), Path(init).name
    own = model.state_dict()
    fitting = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in _of_encoder(state, own).items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise InputError(f"{init}: none of its {len(state)} tensors fits {architecture.name}")
    model.load_state_dict(fitting, strict=False)
    return _report(model, set(fitting), source)


def _of_encoder(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state with a segmenter's encoder under the names that a classifier has."""
    return {name if name in own else name.removeprefix("encoder."): tensor for name, tensor in state.items()}


def _report(model: nn.Module, loaded: set[str], source: str) -> InitReport:
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    missing = [n for n in names if n not in loaded]
    parts: dict[str, tuple[int, int]] = {}
    for name in names:
        part = name.split(".")[0]
        lost, total = parts.get(part, (0, 0))
        parts[part] = (lost + (name in missing), total + 1)
    fresh = tuple(p if lost == total else f"{p} ({lost} of {total})" for p, (lost, total) in parts.items() if lost)
    return InitReport(source, len(names) - len(missing), len(names), fresh)
