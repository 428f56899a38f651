"""Choosing an engine, a device and a precision: your choice, or the best of this machine."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.util import find_spec

from tumorlens.data.errors import InputError, needs
from tumorlens.pipeline.engines.engine import Engine

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16")
_DRIVERS = ("libcuda.so.1", "libamdhip64.so")  # NVIDIA and AMD


def choose_engine(
    engine: str = "auto", device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine of a run.

    Args:
        engine: ``auto`` (OpenVINO where everything runs on the CPU, else torch), ``torch`` or ``openvino``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (OpenVINO: bfloat16 where the hardware computes it; torch: fp32), ``fp32`` or ``bf16``.
        threads: At least 1, or None for all cores.

    Raises:
        InputError: A value is not one of the list, the device is missing, OpenVINO or PyTorch is needed and not
            installed, OpenVINO is to run on another device than the CPU, or bfloat16 on hardware that lacks it.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads} is less than 1")
    installed = find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise InputError("engine openvino needs the package openvino; install it with pip install openvino")
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise InputError(f"engine openvino runs on the CPU, not on device {device!r}")
    if engine == "openvino" or (engine == "auto" and installed and _stays_on_cpu(device)):
        from tumorlens.pipeline.engines.openvino_engine import computes_bf16

        return Engine("openvino", "cpu", _precision(precision, computes_bf16(), "cpu"), threads)
    from tumorlens.data.devices import has_bf16, pick_device

    with needs("engine torch" if device in ("auto", "cpu") else f"device {device!r}", "train"):
        torch_device = pick_device(device)
    # auto means fp32: in PyTorch's bfloat16 masks agree with those in fp32 by a Dice of only 0.988
    # (docs/background/performance.md).
    precision = "fp32" if precision == "auto" else precision
    return Engine("torch", str(torch_device), _precision(precision, has_bf16(torch_device), str(torch_device)), threads)


def _precision(precision: str, has_bf16: bool, device: str) -> str:
    if precision == "bf16" and not has_bf16:
        raise InputError(f"precision bf16: {device} does not compute it in hardware; use fp32")
    return precision if precision != "auto" else "bf16" if has_bf16 else "fp32"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _stays_on_cpu(device: str) -> bool:
    """Whether a run on this device is a run on the CPU; answers without importing torch, which takes seconds."""
    if device != "auto":
        return device == "cpu"
    if find_spec("torch") is None:
        return True  # only PyTorch computes on other devices
    may_have_mps = sys.platform == "darwin" and platform.machine() == "arm64"
    if not may_have_mps and not any(_loads(name) for name in _DRIVERS):
        return True  # a device needs a driver
    from tumorlens.data.devices import pick_device

    return pick_device("auto").type == "cpu"
