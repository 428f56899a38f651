"""A trained segmenter: loaded once, it predicts any number of slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.cards.card import checked_card
from tumorlens.segmentation.config import SHIPPED as SHIPPED
from tumorlens.segmentation.postprocess import clean_map, move_threshold


class Network(Protocol):
    """Stage two's network on an engine."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion probability of each pixel of prepared slices, ``(n, c, size, size)``; 255 is certain.

        Lesions are outlined by the convention of each channel, see `Segmenter.outlines`.
        """
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
        """The lesion probability from which a pixel of `predict`'s maps belongs to the mask."""
        return float(self.card["operating_point"]["mask_threshold"])

    @property
    def outlines(self) -> tuple[str, ...]:
        """The conventions of the network's channels, of `data.labels.OUTLINES`; empty for one without a name."""
        return tuple(self.card.get("outlines", ()))

    def channel_of(self, outline: str) -> int:
        """The channel that outlines lesions by a convention; the first where the card does not name it."""
        return self.outlines.index(outline) if outline in self.outlines else 0

    def predict(self, images_nhw: NDArray[np.uint8], channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Lesion maps ``(n, size, size)`` uint8 of prepared slices, as `finish` makes them.

        Args:
            images_nhw: Prepared slices.
            channels: The channel of each slice, from `channel_of`; the first by default.
        """
        maps = self.network(images_nhw)
        if self.tta:
            back = self.network(np.ascontiguousarray(images_nhw[:, :, ::-1]))[..., ::-1]
            maps = ((maps.astype(np.uint16) + back + 1) // 2).astype(np.uint8)
        return self.finish(maps, channels)

    def finish(self, maps_nchw: NDArray[np.uint8], channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """One map of each slice, ``(n, size, size)`` uint8, without the smallest specks; 255 is certain.

        Channels may have thresholds of their own. Their maps are stretched, so that `mask_threshold` holds for all.

        Args:
            maps_nchw: The network's maps.
            channels: As in `predict`.
        """
        finished = maps_nchw[:, 0].copy()
        for k, maps in enumerate(maps_nchw):
            channel = channels[k] if channels is not None else 0
            point = self._point_of(channel)
            cleaned = clean_map(maps[channel], point["mask_threshold"], int(point["min_lesion_px"]))
            finished[k] = move_threshold(cleaned, point["mask_threshold"], self.mask_threshold)
        return finished

    def _point_of(self, channel: int) -> dict[str, Any]:
        """The threshold and the smallest lesion of a channel."""
        point: dict[str, Any] = self.card["operating_point"]
        return point.get("by_outline", {}).get(self.outlines[channel], point) if self.outlines else point


def _torch_network(path: Path, device: str) -> Network:
    from tumorlens.segmentation.network import load_network

    return load_network(path, device)
