"""From logits to probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits_nc: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probabilities ``(n, c)`` of logits."""
    if not len(logits_nc):
        return np.zeros(logits_nc.shape, np.float32)
    raised = np.exp(logits_nc.astype(np.float64) - logits_nc.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
