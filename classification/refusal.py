"""What is no MRI of the brain: a linear head on the classifier's own features, learnt at the end of a training run.

A softmax over four classes is sure of anything, a photograph included. The features of the middle layers are not:
textures and shapes of brains lie in a small part of their space. A logistic regression on them, taught with pictures
that are no brains (outlier exposure: D. Hendrycks et al., ICLR 2019), finds its border. How it compares with distances
and energy is in docs/benchmarks.md.
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

# Share of the validation slices that are let in. At most one brain in a hundred may be refused on others.
ADMITTED = 0.993
CLIP = 8.0  # deviations: one wild feature must not outvote two thousand
PREFIX = "refusal."  # of its tensors in the weight file


@dataclass(frozen=True)
class Refusal:
    """The head.

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
        """How little like a brain slices are, ``(n,)``: log-odds, any number."""
        standard = ((features_nd - self.mean) / self.std).clip(-CLIP, CLIP)
        return (standard @ self.weight + self.bias).astype(np.float32)

    def limited(self, strangeness_n: NDArray[np.float32]) -> Refusal:
        """The head with a limit at which at least `ADMITTED` of some brain slices are let in, and whatever is likelier
        a brain than not, for slices of other scanners lie nearer to the border than those of a training's kind.

        Args:
            strangeness_n: ``(n,)`` of brain slices that taught it nothing.
        """
        return replace(self, limit=max(0.0, float(np.quantile(strangeness_n, ADMITTED))))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept in the weight file, beside the network's own tensors."""
        import torch

        arrays = {"mean": self.mean, "std": self.std, "weight": self.weight}
        return {PREFIX + name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}

    def facts(self) -> dict[str, Any]:
        """What is kept on the card."""
        return {"layer": self.layer, "bias": round(self.bias, 6), "limit": round(self.limit, 4)}


def take_refusal(state: dict[str, Any], card: dict[str, Any], path: Path) -> Refusal | None:
    """Take the head's tensors, or arrays, out of a state; None for weights without one.

    Raises:
        InputError: Card and tensors do not go together.
    """
    found = {n.removeprefix(PREFIX): np.asarray(state.pop(n), np.float32) for n in list(state) if n.startswith(PREFIX)}
    facts = card.get("refusal")
    if facts is None and not found:
        return None
    try:
        mean, std, weight = (found[name] for name in ("mean", "std", "weight"))
        told: dict[str, Any] = facts or {}
        head = Refusal(str(told["layer"]), mean, std, weight, float(told["bias"]), float(told["limit"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path.with_suffix('.json')}: the card's refusal does not fit the weights") from None
    if len({a.shape for a in (mean, std, weight)}) != 1 or mean.ndim != 1:
        raise InputError(f"{path}: the tensors of the refusal have different shapes")
    return head
