"""What a training run says of its classifier: logits of prepared slices, its operating point, quick metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.refusal import PREFIX
from tumorlens.data.cards.weights import load_into, load_weights
from tumorlens.data.devices import pick_device
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization, normalization_of, to_batch


@dataclass(frozen=True)
class Seen:
    """What a network says of slices, and what it sees in them on the way.

    Attributes:
        logits: ``(n, 4)``, uncalibrated.
        features: ``(n, d)`` pooled feature maps of one layer.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


def look(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    layer: str,
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    half: bool = False,
) -> Seen:
    """Logits and the pooled features of a layer in one pass; see `predict_logits`."""
    kept: list[NDArray[np.float32]] = []
    module = model.get_submodule(layer)
    hook = module.register_forward_hook(lambda _m, _i, output: kept.append(pooled(output.float()).cpu().numpy()))
    try:
        logits = predict_logits(model, images_nhw, device, normalization, half=half)
    finally:
        hook.remove()
    return Seen(logits, np.concatenate(kept) if kept else np.zeros((0, 0), np.float32))


def predict_logits(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    batch_size: int = 32,
    half: bool = False,
) -> NDArray[np.float32]:
    """Uncalibrated logits ``(n, 4)`` of prepared slices ``(n, size, size)``, in fp32, or in bfloat16."""
    where = pick_device(device)
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    chunks = [np.zeros((0, len(CLASSES)), np.float32)]
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=half):
        for start in range(0, len(images_nhw), batch_size):
            batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(where)
            chunks.append(model(to_batch(batch, normalization)).float().cpu().numpy())
    return np.concatenate(chunks)


def pooled(output: torch.Tensor) -> torch.Tensor:
    """Mean and deviation of each feature map over its places, ``(n, 2 c)``."""
    return torch.cat([output.mean((2, 3)), output.std((2, 3), correction=0)], dim=1)


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
