"""The normalization of pixels that a network's weights expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of pixels 0..1, for each of the three channels: ``(pixel - mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # most encoders start from its weights


def normalization_of(card: dict[str, Any], default: Normalization) -> Normalization:
    """The normalization of a card of `data.cards.weights.load_weights`; `default` if the card has none."""
    entry = card.get("normalization")
    return default if entry is None else Normalization(tuple(entry["mean"]), tuple(entry["std"]))


def to_batch(images_nhw: NDArray[np.uint8] | torch.Tensor, normalization: Normalization = IMAGENET) -> torch.Tensor:
    """Prepared slices ``(n, size, size)`` uint8 -> normalized ``(n, 3, size, size)`` float32, channels last."""
    import torch

    images = torch.as_tensor(images_nhw).float().div_(255)
    mean = torch.tensor(normalization.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(normalization.std, device=images.device).view(1, 3, 1, 1)
    batch = (images[:, None] - mean) / std
    return batch.contiguous(memory_format=torch.channels_last)
