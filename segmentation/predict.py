"""A trained segmenter: loaded once, it predicts any number of slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.cards.card import checked_card
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import Regions
from tumorlens.segmentation.config import SHIPPED as SHIPPED
from tumorlens.segmentation.postprocess import clean_map, move_threshold, threshold_u8


class Network(Protocol):
    """Stage two's network on an engine."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lesion probability of each pixel of prepared slices, ``(n, c, size, size)``; 255 is certain.

        Each channel outlines lesions by a convention of its own, see `Segmenter.outlines`, or a part of them, see
        `Segmenter.regions`.
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
        try:
            Regions.from_card(card)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
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

    @cached_property
    def regions(self) -> Regions:
        """The parts of a lesion that the network's channels outline; none where it outlines whole lesions."""
        return Regions.from_card(self.card)

    def channel_of(self, outline: str) -> int:
        """The channel that outlines lesions by a convention; the first where the card does not name it."""
        return self.outlines.index(outline) if outline in self.outlines else 0

    def predict(self, images_nhw: NDArray[np.uint8], channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Lesion maps ``(n, size, size)`` uint8 of prepared slices, as `finish` makes them.

        Args:
            images_nhw: Prepared slices.
            channels: The channel of each slice, from `channel_of`; the first by default.
        """
        return self.finish(self.look(images_nhw), channels)

    def predict_parts(
        self, images_nhw: NDArray[np.uint8], channels: Sequence[int] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The maps of `predict`, and those of each region, ``(n, c, size, size)``, in one pass; c is 0 without regions.

        Args:
            images_nhw: Prepared slices.
            channels: As in `predict`.
        """
        maps = self.look(images_nhw)
        if not self.regions:
            return self.finish(maps, channels), maps[:, :0].copy()  # a view would keep all maps in memory
        parts = self.finish_regions(maps)
        return np.asarray(parts.max(axis=1)), parts

    def look(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The network's maps ``(n, c, size, size)`` of prepared slices, with test-time augmentation where it is on."""
        maps = self.network(images_nhw)
        if self.tta:
            back = self.network(np.ascontiguousarray(images_nhw[:, :, ::-1]))[..., ::-1]
            maps = ((maps.astype(np.uint16) + back + 1) // 2).astype(np.uint8)
        return maps

    def finish(self, maps_nchw: NDArray[np.uint8], channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """One map of each slice, ``(n, size, size)`` uint8, without the smallest specks; 255 is certain.

        Channels may have thresholds of their own. Their maps are stretched, so that `mask_threshold` holds for all. A
        lesion is what lies in any of its regions.

        Args:
            maps_nchw: The network's maps.
            channels: As in `predict`.
        """
        if self.regions:
            return np.asarray(self.finish_regions(maps_nchw).max(axis=1))
        chosen = [0] * len(maps_nchw) if channels is None else channels
        finished = maps_nchw[:, 0].copy()
        for k, channel in enumerate(chosen):
            finished[k] = self._finished(maps_nchw[k, channel], channel)
        return finished

    def finish_regions(self, maps_nchw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A map of each region, ``(n, c, size, size)`` uint8, see `finish`."""
        finished = np.empty_like(maps_nchw)
        for k, maps in enumerate(maps_nchw):
            for channel, map_hw in enumerate(maps):
                finished[k, channel] = self._finished(map_hw, channel)
        return finished

    def paint(self, mask: NDArray[np.uint8], maps: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8] | None:
        """The value of each pixel's region, see `Regions.paint`, 0 outside of a mask; None without regions.

        Args:
            mask: 0 and 1, of any shape.
            maps: Of each region, on the grid of the mask; taken one after the other.
        """
        if not self.regions:
            return None
        painted, inside = np.zeros(mask.shape, np.uint8), mask != 0
        if inside.any():
            values = np.stack([map_[inside] for map_ in maps])
            painted[inside] = self.regions.label(values, threshold_u8(self.mask_threshold))
        return painted

    def _finished(self, map_hw: NDArray[np.uint8], channel: int) -> NDArray[np.uint8]:
        point: dict[str, Any] = self.card["operating_point"]
        if self.regions:
            point = point.get("by_region", {}).get(self.regions.names[channel], point)
        elif self.outlines:
            point = point.get("by_outline", {}).get(self.outlines[channel], point)
        cleaned = clean_map(map_hw, point["mask_threshold"], int(point["min_lesion_px"]))
        return move_threshold(cleaned, point["mask_threshold"], self.mask_threshold)


def _torch_network(path: Path, device: str) -> Network:
    from tumorlens.segmentation.network import load_network

    return load_network(path, device)
