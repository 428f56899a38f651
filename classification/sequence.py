"""The sequence that a slice shows (T1, T1 with contrast agent, T2, FLAIR): a linear head on the classifier's features.

It reads the features that the refusal reads, so it costs no pass of its own, and weights without it stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.probabilities import softmax
from tumorlens.classification.refusal import Refusal
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SEQUENCES

if TYPE_CHECKING:
    import torch

PREFIX = "sequence."  # of its tensors in the weight file


@dataclass(frozen=True)
class SequenceHead:
    """The fitted head, a multinomial logistic regression.

    Attributes:
        weight: ``(4, d)``, rows in the order of `data.labels.SEQUENCES`.
        bias: ``(4,)``.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, standard_nd: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of each sequence ``(n, 4)``, from features that `Refusal.standardize` made comparable."""
        return softmax(standard_nd @ self.weight.T + self.bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the weight file holds besides the network's own."""
        import torch

        return {PREFIX + "weight": torch.from_numpy(self.weight), PREFIX + "bias": torch.from_numpy(self.bias)}


def take_sequence_head(
    state: dict[str, Any], card: dict[str, Any], refusal: Refusal | None, path: Path
) -> SequenceHead | None:
    """Take the head out of a state and return it; None for weights without one.

    Args:
        state: Tensors or arrays by name. Those of the head are removed.
        card: The weights' card.
        refusal: The refusal of the same weights, which standardizes the features.
        path: The weight file, for messages.

    Raises:
        InputError: Card and tensors do not go together.
    """
    arrays = {n.removeprefix(PREFIX): np.asarray(state.pop(n), np.float32) for n in list(state) if n.startswith(PREFIX)}
    if "sequence" not in card and not arrays:
        return None
    shapes = {name: array.shape for name, array in arrays.items()}
    width = 0 if refusal is None else len(refusal.mean)
    if shapes != {"weight": (len(SEQUENCES), width), "bias": (len(SEQUENCES),)} or card.get("sequence", {}).get(
        "names"
    ) != list(SEQUENCES):
        raise InputError(f"{path.with_suffix('.json')}: the card's sequence does not fit the weights")
    return SequenceHead(arrays["weight"], arrays["bias"])


def likeliest_sequence(probabilities_ns: NDArray[np.float32]) -> tuple[str, float]:
    """The sequence of a scan and its probability, from those of its slices ``(n, 4)``.

    Slices of one scan have one sequence: their log-probabilities are averaged, so that no slice decides alone.
    """
    scan = softmax(np.log(np.maximum(probabilities_ns, 1e-6)).mean(axis=0)[None])[0]
    best = int(scan.argmax())
    return SEQUENCES[best], float(scan[best])
