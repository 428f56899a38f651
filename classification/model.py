"""The classifier's network, and where its weights start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tumorlens.classification.architectures import Architecture
from tumorlens.data.cards.weights import read_state
from tumorlens.data.errors import InputError, reason_of


@dataclass(frozen=True)
class InitReport:
    """What an initialisation gave: how many tensors fitted, and which parts of the network start from chance."""

    source: str
    loaded: int
    total: int
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        if not self.loaded:
            return f"all {self.total} tensors from chance{self.source.removeprefix('nothing')}"
        rest = f"; from chance: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.loaded} of {self.total} tensors from {self.source}{rest}"


def build_classifier(architecture: Architecture, size: int | None = None) -> nn.Module:
    """The network with one logit per class of `data.labels.CLASSES`, from chance.

    Args:
        architecture: From `classification.architectures.find_architecture`.
        size: Side of the input in pixels, by default the architecture's own.

    Input ``(n, 3, size, size)`` as `data.preprocessing.normalization.to_batch` gives it; output logits ``(n, 4)``.

    Raises:
        InputError: The architecture cannot be built for that size.
    """
    return architecture.build(size or architecture.input_size)


def initialise(model: nn.Module, architecture: Architecture, init: str = "imagenet") -> InitReport:
    """Give a fresh classifier its first weights.

    Args:
        model: From `build_classifier`.
        architecture: What it is.
        init: ``"imagenet"`` (downloaded; nothing for an architecture that has no such weights), ``"none"``, or a
            ``.safetensors`` or ``.pth`` file with the network's names, or of a segmenter whose encoder has them; what
            the file lacks stays as it is.

    Raises:
        InputError: No download possible, no such file, or nothing in it fits.
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
    """The state; of a segmenter, its encoder's tensors under the names that they have in a classifier."""
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
