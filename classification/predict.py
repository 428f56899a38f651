"""A trained classifier, ready to answer: weights are loaded once and reused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classification.evaluate import predict_probabilities
from classification.model import ARCHITECTURE, build_classifier
from data.cards import load_into, load_weights
from data.compute import pick_device
from data.errors import InputError
from data.labels import CLASSES

SHIPPED = Path(__file__).parent / "weights" / "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """Stage one.

    Attributes:
        model: The network, on its device.
        card: What the weights are.
        device: Where it runs.
    """

    model: torch.nn.Module
    card: dict[str, Any]
    device: torch.device

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str = "auto") -> Classifier:
        """The shipped classifier, or one of your own.

        Args:
            weights: A ``.safetensors`` file with its card beside it, as a training run writes it.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.

        Raises:
            InputError: Files missing or damaged, another stage, architecture or class list.
        """
        path = Path(weights) if weights is not None else SHIPPED
        state, card = load_weights(path, "classification")
        if card.get("architecture") != ARCHITECTURE or card.get("classes") != list(CLASSES):
            raise InputError(
                f"{path}: a {card.get('architecture')} for {card.get('classes')}, "
                f"where a {ARCHITECTURE} for {list(CLASSES)} is needed"
            )
        model = build_classifier()
        load_into(model, state, path)
        where = pick_device(device)
        return cls(model.to(where).eval(), card, where)

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def tumor_threshold(self) -> float:
        """The tumor probability from which a slice is positive, chosen on validation patients."""
        return float(self.card["operating_point"]["tumor_threshold"])

    def predict(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities ``(n, 4)`` in the order of `data.labels.CLASSES` for prepared slices."""
        return predict_probabilities(self.model, images_nhw, str(self.device))
