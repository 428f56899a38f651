"""What a trained segmenter is worth: masks on prepared slices, Dice with a policy for empty cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tumorlens.data.cards.weights import load_into, load_weights
from tumorlens.data.devices import pick_device
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization, normalization_of, to_batch
from tumorlens.segmentation.model import build_segmenter, encoder_normalization, probabilities


def predict_maps(
    model: nn.Module,
    images_nhw: NDArray[np.uint8],
    device: str = "auto",
    normalization: Normalization = IMAGENET,
    batch_size: int = 16,
    half: bool = False,
) -> NDArray[np.uint8]:
    """Lesion probability of prepared slices: ``(n, size, size)`` uint8, 255 is certain; in fp32, or in bfloat16."""
    where = pick_device(device)
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    maps = np.zeros(images_nhw.shape, np.uint8)
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=half):
        for start in range(0, len(images_nhw), batch_size):
            batch = torch.from_numpy(images_nhw[start : start + batch_size]).to(where)
            lesion = probabilities(model, to_batch(batch, normalization))
            maps[start : start + batch_size] = (lesion * 255).round().cpu().numpy()
    return maps


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
    """The network of a weight file; arguments and errors as in `classification.network.load_network`."""
    state, card = load_weights(path, "segmentation")
    model = build_segmenter(card["architecture"], card["encoder"], tuple(card["decoder_channels"]))
    load_into(model, state, path)
    where = pick_device(device)
    normalization = normalization_of(card, encoder_normalization(card["architecture"], card["encoder"]))
    return TorchNetwork(model.to(where).eval(), where, normalization, half)
