"""The least time a slice can take: the operations of both networks, at the processor's matrix-multiply rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

_SIDE = 2048
_REPEATS = 5


@dataclass(frozen=True)
class Floor:
    """The least time of a slice.

    Attributes:
        operations: Floating-point operations of both networks for one slice; a multiplication and an addition are two.
        rate: Operations a second of a large matrix product, all threads, in the precision of the run.
    """

    operations: float
    rate: float

    @property
    def ms(self) -> float:
        """Of one slice that passes both stages."""
        return 1000 * self.operations / self.rate


def measure_floor(classifier: Path, segmenter: Path, precision: str) -> Floor:
    """Count both networks' operations and measure the rate of this processor.

    Args:
        classifier: Weights of stage one.
        segmenter: The same for stage two.
        precision: ``fp32`` or ``bf16``.
    """
    operations = _operations(classifier, "classification") + _operations(segmenter, "segmentation")
    return Floor(operations, _rate(precision))


def _operations(path: Path, stage: str) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    from tumorlens.pipeline.engines.graphs import load_graph

    graph, size = load_graph(path, stage)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(torch.zeros(1, size, size, dtype=torch.uint8))
    return float(counter.get_total_flops())


def _rate(precision: str) -> float:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(_SIDE, _SIDE).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - begun)
    return 2 * _SIDE**3 / best
