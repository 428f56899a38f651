"""The classifier's network in PyTorch: logits and features of prepared slices, and loading it from a weight file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.probabilities import with_all_classes
from tumorlens.classification.refusal import PREFIX as REFUSAL
from tumorlens.classification.sequence import PREFIX as SEQUENCE
from tumorlens.data.cards.weights import load_into, load_weights
from tumorlens.data.devices import pick_device
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.preprocessing.normalization import normalization_of
from tumorlens.data.training.networks import BatchedNetwork

_BATCH = 32
HEADS = (REFUSAL, SEQUENCE)  # how the names of tensors begin that are not the network's own


@dataclass(frozen=True)
class TorchNetwork(BatchedNetwork):
    """A `classification.predict.Network`.

    Attributes:
        layer: The layer whose pooled feature maps it returns with the logits; None for logits only.
        classes: The classes that the network was trained for.
    """

    layer: str | None = None
    classes: ClassList = SHIPPED_CLASSES

    def __call__(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits and features of prepared slices, see `classification.predict.Network`."""
        if self.layer is None:
            return self.logits(images_nhw), None
        return self.predict_with_features(images_nhw, self.layer)

    def logits(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uncalibrated logits ``(n, c)`` of all classes for prepared slices ``(n, size, size)``."""
        none = np.zeros((0, len(self.classes.outputs)), np.float32)
        return with_all_classes(np.concatenate([none, *self.batches(images_nhw, _BATCH, _array)]), self.classes)

    def predict_with_features(
        self, images_nhw: NDArray[np.uint8], layer: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Uncalibrated logits ``(n, c)`` and the pooled features ``(n, d)`` of a layer, in one pass."""
        features = [np.zeros((0, 0), np.float32)] if not len(images_nhw) else []
        module = self.model.get_submodule(layer)
        hook = module.register_forward_hook(lambda _m, _i, output: features.append(_array(pooled(output.float()))))
        try:
            logits = self.logits(images_nhw)
        finally:
            hook.remove()
        return logits, np.concatenate(features)


def _array(output: torch.Tensor) -> NDArray[np.float32]:
    return output.float().cpu().numpy()


def pooled(output: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each feature map over its pixels, ``(n, 2 c)``."""
    return torch.cat([output.mean((2, 3)), output.std((2, 3), correction=0)], dim=1)


def load_network(path: Path, device: str = "auto", half: bool = False) -> TorchNetwork:
    """The network of a weight file.

    Args:
        path: A ``.safetensors`` file, with its card in the same folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        half: Compute in bfloat16.

    Raises:
        InputError: Files missing or damaged, another stage or architecture, or a device that is not there.
    """
    state, card = load_weights(path, "classification")
    architecture, classes = find_architecture(card["architecture"]), ClassList.from_card(card)
    model = build_classifier(architecture, card["input_size"], len(classes.outputs))
    load_into(model, {name: tensor for name, tensor in state.items() if not name.startswith(HEADS)}, path)
    layer = _refusal_layer(card, model, path)
    where = pick_device(device)
    normalization = normalization_of(card, architecture.normalization)
    return TorchNetwork(model.to(where).eval(), where, normalization, half, layer, classes)


def _refusal_layer(card: dict[str, Any], model: torch.nn.Module, path: Path) -> str | None:
    """The layer that the card's refusal reads; None for weights without a refusal."""
    refusal = card.get("refusal")
    if refusal is None:
        return None
    layer = refusal["layer"]
    if layer not in dict(model.named_modules()):
        raise InputError(
            f"{path.with_suffix('.json')}: refusal.layer {layer!r} is not a layer of {card['architecture']}"
        )
    return str(layer)
