"""The refusal of pictures that are not an MRI of the brain: a linear head on the classifier's own features.

A softmax over four classes is sure of any picture, photographs included. The features of the middle layers are not:
textures and shapes of brains fill a small part of their space. A logistic regression on them finds its border, taught
with pictures that are not brains (outlier exposure: D. Hendrycks et al., ICLR 2019). It is compared with distances and
energy in docs/background/benchmarks.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    import torch

ADMITTED = 0.993  # share of the validation slices below the limit, so that on others one brain in a hundred is refused
CLIP = 8.0  # deviations: one wild feature must not outvote two thousand
PREFIX = "refusal."  # of its tensors in the weight file


@dataclass(frozen=True)
class Refusal:
    """The fitted head.

    Attributes:
        layer: Name of the network's module whose output it reads.
        mean: ``(d,)`` of the brains' features.
        std: ``(d,)``.
        weight: ``(d,)``.
        bias: Scalar.
        limit: Strangeness above which a slice is refused.
    """

    layer: str
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: float
    limit: float

    def strangeness(self, features_nd: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-odds that slices are not brains, ``(n,)``."""
        return (self.standardize(features_nd) @ self.weight + self.bias).astype(np.float32)

    def standardize(self, features_nd: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features ``(n, d)`` in deviations from the mean of brains, within `CLIP`."""
        return ((features_nd - self.mean) / self.std).clip(-CLIP, CLIP)

    def limited(self, strangeness_n: NDArray[np.float32]) -> Refusal:
        """The head with a limit that lets in at least `ADMITTED` of some brain slices.

        The limit is never below even odds, because slices of other scanners lie nearer to the border.

        Args:
            strangeness_n: ``(n,)`` of brain slices that it was not taught with.
        """
        return replace(self, limit=max(0.0, float(np.quantile(strangeness_n, ADMITTED))))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the weight file holds besides the network's own."""
        import torch

        arrays = {"mean": self.mean, "std": self.std, "weight": self.weight}
        return {PREFIX + name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}

    def facts(self) -> dict[str, Any]:
        """The entries for the card."""
        return {"layer": self.layer, "bias": round(self.bias, 6), "limit": round(self.limit, 4)}


def take_refusal(state: dict[str, Any], card: dict[str, Any], path: Path) -> Refusal | None:
    """Take the head out of a state and return it; None for weights without one.

    Args:
        state: Tensors or arrays by name. Those of the head are removed.
        card: The weights' card.
        path: The weight file, for messages.

    Raises:
        InputError: Card and tensors do not go together.
    """
    arrays = {n.removeprefix(PREFIX): np.asarray(state.pop(n), np.float32) for n in list(state) if n.startswith(PREFIX)}
    facts = card.get("refusal")
    if facts is None and not arrays:
        return None
    try:
        mean, std, weight = (arrays[name] for name in ("mean", "std", "weight"))
        entries: dict[str, Any] = facts or {}
        head = Refusal(str(entries["layer"]), mean, std, weight, float(entries["bias"]), float(entries["limit"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path.with_suffix('.json')}: the card's refusal does not fit the weights") from None
    if len({a.shape for a in (mean, std, weight)}) != 1 or mean.ndim != 1:
        raise InputError(f"{path}: the tensors of the refusal have different shapes")
    return head
