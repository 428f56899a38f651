"""Stage one's network in PyTorch, from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classification.evaluate import look, predict_logits
from classification.model import build_classifier
from classification.refusal import PREFIX
from classification.zoo import find_architecture
from data.cards import load_into, load_weights
from data.compute import pick_device
from data.errors import InputError
from data.normalization import Normalization, normalization_of


@dataclass(frozen=True)
class TorchNetwork:
    """A `classification.predict.Network`.

    Attributes:
        model: In evaluation mode, on its device.
        device: Where it runs.
        normalization: What its weights expect of the pixels.
        layer: Whose pooled feature maps it gives besides the logits, or none.
        half: Compute in bfloat16.
    """

    model: torch.nn.Module
    device: torch.device
    normalization: Normalization
    layer: str | None = None
    half: bool = False

    def __call__(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits and features of prepared slices, see `classification.predict.Network`."""
        where = str(self.device)
        if self.layer is None:
            return predict_logits(self.model, images_nhw, where, self.normalization, half=self.half), None
        seen = look(self.model, images_nhw, self.layer, where, self.normalization, half=self.half)
        return seen.logits, seen.features


def load_network(path: Path, device: str = "auto", half: bool = False) -> TorchNetwork:
    """The network of a weight file.

    Args:
        path: A ``.safetensors`` file with its card beside it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        half: Compute in bfloat16.

    Raises:
        InputError: Files missing or damaged, another stage or architecture, no such device.
    """
    state, card = load_weights(path, "classification")
    architecture = find_architecture(card["architecture"])
    model = build_classifier(architecture, card["input_size"])
    load_into(model, {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}, path)
    layer = _layer_of(card, model, path)
    where = pick_device(device)
    normalization = normalization_of(card, architecture.normalization)
    return TorchNetwork(model.to(where).eval(), where, normalization, layer, half)


def _layer_of(card: dict[str, Any], model: torch.nn.Module, path: Path) -> str | None:
    """The layer that the card's refusal reads."""
    refusal = card.get("refusal")
    if refusal is None:
        return None
    if refusal["layer"] not in dict(model.named_modules()):
        card_path = path.with_suffix(".json")
        raise InputError(f"{card_path}: refusal.layer {refusal['layer']!r} is no layer of {card['architecture']}")
    return str(refusal["layer"])
