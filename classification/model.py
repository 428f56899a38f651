"""The classifier's network and its initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tumorlens.classification.architectures import Architecture
from tumorlens.classification.config import DEFAULT, SHIPPED
from tumorlens.data.cards.lineage import card_of
from tumorlens.data.cards.weights import read_state
from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.networks import rows_by_name


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


def last_layers(model: nn.Module) -> list[nn.Module]:
    """All layers that turn features into logits: timm's ``classifier``, or the last linear layer.

    A distilled network has two, one without linear layers none.
    """
    classifier: Any = getattr(model, "get_classifier", None)
    if classifier is not None:
        head = classifier()
        layers = head if isinstance(head, (tuple, list)) else [head]
        return [layer for layer in layers if isinstance(layer, nn.Module)]
    linear: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1:]


def initialize(
    model: nn.Module, architecture: Architecture, init: str = "imagenet", classes: Sequence[str] = CLASSES
) -> InitReport:
    """Load the initial weights of a new classifier.

    Args:
        model: From `build_classifier`.
        architecture: The model's architecture.
        init: ``"imagenet"`` (downloaded; nothing for an architecture without such weights), ``"shipped"``, ``"none"``,
            or a ``.safetensors``, ``.pth`` or ``.ckpt`` file of such a network, or of a segmenter with such an encoder.
            Tensors that the file lacks keep their random weights. Of a classifier's last layer, the outputs of the
            classes that both have are taken.
        classes: The names of the model's outputs.

    Raises:
        InputError: The download fails, the file is missing, none of its tensors fits, or the shipped classifier is of
            another architecture, or the card is damaged.
    """
    card: dict[str, Any] = {}
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
                f"{reason_of(error)}); give {'--init shipped, ' if architecture.name == DEFAULT else ''}a file with "
                "--init FILE, or --init none"
            ) from None
        source = "ImageNet"
    else:
        path = SHIPPED if init == "shipped" else Path(init)
        state, card = read_state(path), card_of(path)
        source = "the shipped classifier" if init == "shipped" else path.name
    kind = card.get("architecture") if card.get("stage") == "classification" else None
    if init == "shipped" and kind != architecture.name:
        raise InputError(
            f"--init shipped: the shipped classifier is a {kind}, not a {architecture.name}; give --arch {kind}"
        )
    own = model.state_dict()
    state = _of_encoder(state, own)
    new = _renew_outputs(init, state, own, model, card["classes"], classes) if kind == architecture.name else ()
    fitting = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        remedy = f"; it is a {kind}, give --arch {kind}" if kind else ""
        raise InputError(f"{init}: none of its {len(state)} tensors fits {architecture.name}{remedy}")
    model.load_state_dict(fitting, strict=False)
    return _report(model, set(fitting), source, new)


def _renew_outputs(
    init: str,
    state: dict[str, Any],
    own: Mapping[str, Any],
    model: nn.Module,
    had: Sequence[str],
    wanted: Sequence[str],
) -> tuple[str, ...]:
    """Give the state's last layer the outputs of these classes, in place; returns what is new of it, in words."""
    new = [name for name in wanted if name not in had]
    last = {id(parameter) for layer in last_layers(model) for parameter in layer.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in last and name in state and state[name].shape[1:] == own[name].shape[1:]:
            if len(state[name]) != len(had):
                raise InputError(
                    f"{init}: its card names {len(had)} classes, its last layer has {len(state[name])} outputs; take "
                    "the card that was written with these weights"
                )
            state[name] = rows_by_name(state[name], own[name], had, wanted)
    return (f"the output{'s' * (len(new) > 1)} of {', '.join(new)}",) if last and new else ()


def _of_encoder(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state with a segmenter's encoder under the names that a classifier has."""
    return {name if name in own else name.removeprefix("encoder."): tensor for name, tensor in state.items()}


def _report(model: nn.Module, loaded: set[str], source: str, new: tuple[str, ...] = ()) -> InitReport:
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    missing = [n for n in names if n not in loaded]
    parts: dict[str, tuple[int, int]] = {}
    for name in names:
        part = name.split(".")[0]
        lost, total = parts.get(part, (0, 0))
        parts[part] = (lost + (name in missing), total + 1)
    fresh = tuple(p if lost == total else f"{p} ({lost} of {total})" for p, (lost, total) in parts.items() if lost)
    return InitReport(source, len(names) - len(missing), len(names), fresh + new)
