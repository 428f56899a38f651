"""The least time a slice can take: the operations of both networks, at the processor's matrix-multiply rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SIDE = 2048
_REPEATS = 5


def operations_of(classifier: Path, segmenter: Path) -> float:
    """Floating-point operations of both networks for one slice; a multiplication and an addition are two.

    Args:
        classifier: Weights of stage one.
        segmenter: The same for stage two.
    """
    return _operations(classifier, "classification") + _operations(segmenter, "segmentation")


def matrix_product(precision: str) -> tuple[Callable[[], Any], float]:
    """Some large matrix products, to be timed, and their number of operations.

    Args:
        precision: ``fp32`` or ``bf16``.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(_SIDE, _SIDE).to(kind) for _ in range(2))
    return lambda: [one @ other for _ in range(_REPEATS)], _REPEATS * 2.0 * _SIDE**3


def _operations(path: Path, stage: str) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    from tumorlens.pipeline.engines.graphs import load_graph

    graph, size = load_graph(path, stage)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(torch.zeros(1, size, size, dtype=torch.uint8))
    return float(counter.get_total_flops())
