"""A trained segmenter, ready to draw: weights are loaded once and reused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.cards import load_into, load_weights
from data.compute import pick_device
from data.loaders import Normalization, normalization_of
from segmentation.evaluate import predict_maps
from segmentation.model import build_segmenter, encoder_normalization
from segmentation.postprocess import clean_map

SHIPPED = Path(__file__).parent / "weights" / "segmenter.safetensors"


@dataclass(frozen=True)
class Segmenter:
    """Stage two.

    Attributes:
        model: The network, on its device.
        card: What the weights are.
        device: Where it runs.
        tta: Whether each slice is also drawn mirrored left to right and the maps are averaged (test-time augmentation):
            twice the time.
    """

    model: torch.nn.Module
    card: dict[str, Any]
    device: torch.device
    tta: bool = False

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str = "auto", tta: bool = False) -> Segmenter:
        """The shipped segmenter, or one of your own; arguments and errors as in `classification.predict.Classifier`."""
        path = Path(weights) if weights is not None else SHIPPED
        state, card = load_weights(path, "segmentation")
        model = build_segmenter(card["architecture"], card["encoder"], tuple(card["decoder_channels"]))
        load_into(model, state, path)
        where = pick_device(device)
        return cls(model.to(where).eval(), card, where, tta)

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def normalization(self) -> Normalization:
        """What the weights expect of the pixels: as the card says, else as the encoder's first weights do."""
        return normalization_of(self.card, encoder_normalization(self.card["architecture"], self.card["encoder"]))

    @property
    def mask_threshold(self) -> float:
        """The lesion probability from which a pixel belongs to the mask, chosen on validation patients."""
        return float(self.card["operating_point"]["mask_threshold"])

    def predict(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion maps ``(n, size, size)`` uint8 for prepared slices; 255 is certain, specks are gone."""
        smallest = int(self.card["operating_point"]["min_lesion_px"])
        maps = predict_maps(self.model, images_nhw, str(self.device), self.normalization)
        if self.tta:
            mirrored = np.ascontiguousarray(images_nhw[:, :, ::-1])
            back = predict_maps(self.model, mirrored, str(self.device), self.normalization)[:, :, ::-1]
            maps = ((maps.astype(np.uint16) + back + 1) // 2).astype(np.uint8)
        return np.stack([clean_map(m, self.mask_threshold, smallest) for m in maps]) if len(maps) else maps
