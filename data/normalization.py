"""What a network's weights expect of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of the three channels (of pixels 0..1) that a network's weights expect to be taken out."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # most encoders start from its weights


def normalization_of(card: dict[str, Any], default: Normalization) -> Normalization:
    """The normalisation that a card of `data.cards.load_weights` tells; `default` where it tells none."""
    told = card.get("normalization")
    return default if told is None else Normalization(tuple(told["mean"]), tuple(told["std"]))
