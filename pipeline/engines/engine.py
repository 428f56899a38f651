"""`Engine`: what computes the networks, where, and in which precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tumorlens.data.errors import InputError


class UnsupportedNetworkError(InputError):
    """An engine cannot take a network that another one can."""


@dataclass(frozen=True)
class Engine:
    """What computes.

    Attributes:
        name: ``torch`` or ``openvino``.
        device: As torch names it; OpenVINO runs on the CPU.
        precision: ``fp32`` or ``bf16`` (of multiplications; sums and results are float32).
        threads: Of one network's computation; none leaves it to the engine.
    """

    name: str = "torch"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None

    def facts(self) -> dict[str, Any]:
        """For ``result.json``: what a result may depend on in its last digits."""
        return {key: value for key, value in asdict(self).items() if key != "threads"}


TORCH = Engine()
