"""A trained segmenter: loaded once, it predicts any number of slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.cards.card import checked_card
from tumorlens.segmentation.postprocess import clean_map

SHIPPED = Path(__file__).parent / "weights" / "segmenter.safetensors"


class Network(Protocol):
    """Stage two's network on an engine."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion probability of each pixel of prepared slices, ``(n, size, size)``; 255 is certain."""
        ...


@dataclass(frozen=True)
class Segmenter:
    """Stage two.

    Attributes:
        network: The network on an engine.
        card: The weights' card.
        tta: Test-time augmentation: each slice is also drawn mirrored left to right, and the maps are averaged. It
            takes twice the time.
    """

    network: Network
    card: dict[str, Any]
    tta: bool = False

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "auto",
        tta: bool = False,
        network: Callable[[Path], Network] | None = None,
    ) -> Segmenter:
        """The shipped segmenter, or one of your own; arguments and errors as in `classification.predict.Classifier`."""
        path = Path(weights) if weights is not None else SHIPPED
        card = checked_card(path, "segmentation")
        return cls(network(path) if network else _torch_network(path, device), card, tta)

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def mask_threshold(self) -> float:
        """The lesion probability from which a pixel belongs to the mask."""
        return float(self.card["operating_point"]["mask_threshold"])

    def predict(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion maps ``(n, size, size)`` uint8 of prepared slices, without the smallest specks; 255 is certain."""
        smallest = int(self.card["operating_point"]["min_lesion_px"])
        maps = self.network(images_nhw)
        if self.tta:
            back = self.network(np.ascontiguousarray(images_nhw[:, :, ::-1]))[:, :, ::-1]
            maps = ((maps.astype(np.uint16) + back + 1) // 2).astype(np.uint8)
        return np.stack([clean_map(m, self.mask_threshold, smallest) for m in maps]) if len(maps) else maps


def _torch_network(path: Path, device: str) -> Network:
    from tumorlens.segmentation.network import load_network

    return load_network(path, device)
