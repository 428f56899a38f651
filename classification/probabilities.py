"""From logits to probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR, ClassList


def softmax(logits_nc: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probabilities ``(n, c)`` of logits."""
    if not len(logits_nc):
        return np.zeros(logits_nc.shape, np.float32)
    raised = np.exp(logits_nc.astype(np.float64) - logits_nc.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


_NEVER = -1e4  # logit of a class that no slice is of


def with_all_classes(logits_nc: NDArray[np.float32], classes: ClassList) -> NDArray[np.float32]:
    """Logits of all classes ``(n, len(classes))`` from those of the network ``(n, outputs)``.

    Of a list without ``no_tumor``, its logit is so low that its probability is 0.
    """
    if classes.gate:
        return logits_nc
    return np.concatenate([np.full((len(logits_nc), 1), _NEVER, np.float32), logits_nc], axis=1)


def has_gate(logits_nc: NDArray[np.floating[Any]]) -> bool:
    """Whether ``no_tumor`` is among the answers that some logits of all classes stand for."""
    return not len(logits_nc) or bool(logits_nc[:, NO_TUMOR].max() > _NEVER / 10)
