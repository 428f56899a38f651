"""`Engine`: the library, device and precision that compute the networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tumorlens.data.errors import InputError


class UnsupportedNetworkError(InputError):
    """This engine cannot compute a network. Another engine may."""


@dataclass(frozen=True)
class Engine:
    """The library, device and precision that compute the networks.

    Attributes:
        name: ``torch`` or ``openvino``.
        device: PyTorch's name of the device; OpenVINO runs on the CPU.
        precision: ``fp32``, or ``bf16`` for multiplications (sums and results are float32).
        threads: Threads that compute one network; None leaves the number to the engine.
    """

    name: str = "torch"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.precision} on {self.device}"

    def facts(self) -> dict[str, Any]:
        """The entry in ``result.json``: everything that may change the last digits of a result."""
        return {key: value for key, value in asdict(self).items() if key != "threads"}


TORCH = Engine()
