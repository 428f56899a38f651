"""The segmenter's network in PyTorch: lesion maps of prepared slices, and loading it from a weight file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tumorlens.data.cards.weights import load_into, load_weights
from tumorlens.data.devices import pick_device
from tumorlens.data.preprocessing.normalization import normalization_of
from tumorlens.data.training.networks import BatchedNetwork
from tumorlens.segmentation.model import build_segmenter, encoder_normalization

_BATCH = 16


@dataclass(frozen=True)
class TorchNetwork(BatchedNetwork):
    """A `segmentation.predict.Network`."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion maps of prepared slices, see `segmentation.predict.Network`."""
        return np.concatenate(self.batches(images_nhw, _BATCH, _bytes) or [images_nhw[:, None]])


def _bytes(logits_nchw: torch.Tensor) -> NDArray[np.uint8]:
    """Lesion probability of each pixel, ``(n, c, h, w)``; 255 is certain."""
    return (logits_nchw.float().sigmoid() * 255).round().cpu().numpy().astype(np.uint8)


def load_network(path: Path, device: str = "auto", half: bool = False) -> TorchNetwork:
    """The network of a weight file; arguments and errors as in `classification.network.load_network`."""
    state, card = load_weights(path, "segmentation")
    channels = len(card.get("regions") or card.get("outlines") or (None,))
    model = build_segmenter(card["architecture"], card["encoder"], tuple(card["decoder_channels"]), channels)
    load_into(model, state, path)
    where = pick_device(device)
    normalization = normalization_of(card, encoder_normalization(card["architecture"], card["encoder"]))
    return TorchNetwork(model.to(where).eval(), where, normalization, half)
