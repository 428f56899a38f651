"""Stage two's network in PyTorch, from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.cards import load_into, load_weights
from data.compute import pick_device
from data.normalization import Normalization, normalization_of
from segmentation.evaluate import predict_maps
from segmentation.model import build_segmenter, encoder_normalization


@dataclass(frozen=True)
class TorchNetwork:
    """A `segmentation.predict.Network`.

    Attributes:
        model: In evaluation mode, on its device.
        device: Where it runs.
        normalization: What its weights expect of the pixels.
        half: Compute in bfloat16.
    """

    model: torch.nn.Module
    device: torch.device
    normalization: Normalization
    half: bool = False

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion maps of prepared slices, see `segmentation.predict.Network`."""
        return predict_maps(self.model, images_nhw, str(self.device), self.normalization, half=self.half)


def load_network(path: Path, device: str = "auto", half: bool = False) -> TorchNetwork:
    """The network of a weight file; arguments and errors as in `classification.torch_network.load_network`."""
    state, card = load_weights(path, "segmentation")
    model = build_segmenter(card["architecture"], card["encoder"], tuple(card["decoder_channels"]))
    load_into(model, state, path)
    where = pick_device(device)
    normalization = normalization_of(card, encoder_normalization(card["architecture"], card["encoder"]))
    return TorchNetwork(model.to(where).eval(), where, normalization, half)
