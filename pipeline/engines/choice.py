"""Which engine, on which device, in which precision: asked for, or what this machine does best."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.util import find_spec

from tumorlens.data.errors import InputError
from tumorlens.pipeline.engines.engine import Engine

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16")
_DRIVERS = ("libcuda.so.1", "libamdhip64.so")  # of NVIDIA and AMD


def choose_engine(
    engine: str = "auto", device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine of a run.

    Args:
        engine: ``auto`` (OpenVINO where everything runs on the CPU, else torch), ``torch`` or ``openvino``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (OpenVINO: bfloat16 where the hardware computes it; torch: fp32), ``fp32`` or ``bf16``.
        threads: At least 1, or none.

    Raises:
        InputError: An unknown word, a device that is not there, OpenVINO off the CPU or not installed, or bfloat16 on a
            processor that lacks it.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
    if precision == "int8":
        raise InputError(
            "precision int8 is not offered: its masks agree with those of fp32 by a Dice of 0.97, not by the "
            "0.995 that are asked for"
        )
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads} is not 1 or more")
    installed = find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise InputError("engine openvino needs the package openvino: pip install openvino")
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise InputError(f"engine openvino runs on the CPU, not on device {device!r}")
    if engine == "openvino" or (engine == "auto" and installed and _stays_on_cpu(device)):
        from tumorlens.pipeline.engines.openvino_engine import computes_bf16

        return Engine("openvino", "cpu", _precision(precision, computes_bf16(), "cpu"), threads)
    from tumorlens.data.devices import has_bf16, pick_device

    where = pick_device(device)
    # By itself fp32: in PyTorch's bfloat16 masks agree by 0.988 only with those of fp32 (docs/performance.md).
    wish = "fp32" if precision == "auto" else precision
    return Engine("torch", str(where), _precision(wish, has_bf16(where), str(where)), threads)


def _precision(wish: str, capable: bool, device: str) -> str:
    if wish == "bf16" and not capable:
        raise InputError(f"precision bf16: {device} does not compute it in hardware; use fp32")
    return wish if wish != "auto" else "bf16" if capable else "fp32"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _stays_on_cpu(device: str) -> bool:
    """Whether a run on this device is one on the CPU, told without the seconds that importing torch takes."""
    if device != "auto":
        return device == "cpu"
    may_have_mps = sys.platform == "darwin" and platform.machine() == "arm64"
    if not may_have_mps and not any(_loads(name) for name in _DRIVERS):
        return True  # no driver, so no device
    from tumorlens.data.devices import pick_device

    return pick_device("auto").type == "cpu"
