"""The device and the precision that this machine supports."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        InputError: The device is unknown, or this machine does not have it.
    """
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdigit()
    if kind not in ("auto", "cpu", "cuda", "mps") or (colon and not numbered):
        raise InputError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if kind == "cuda" and (not cuda or int(number or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if kind == "mps" and not mps:
        raise InputError("device 'mps' is not there; use --device cpu")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware (AMX, AVX512-BF16, CUDA from Ampere on), not emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = _cpu_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether a run computes in bfloat16.

    Args:
        precision: ``bf16``, ``fp32``, or ``auto``: bfloat16 if the device has it in hardware.
        device: The device of the run.
    """
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def _cpu_capabilities() -> dict[str, object]:
    """The processor's instruction sets as torch reports them; empty in a version of torch that does not."""
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # the oldest supported torch lacks it
    return dict(get_capabilities()) if get_capabilities else {}


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt(3)
_MIB = 1024**2
_KEPT_OF_SCANS = {_M_MMAP_THRESHOLD: 32 * _MIB, _M_TRIM_THRESHOLD: 256 * _MIB, _M_TOP_PAD: 16 * _MIB}
_KEPT_OF_TRAINING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 256 * _MIB}


def keep_freed_memory(training: bool = False) -> bool:
    """Let glibc keep the memory that is freed, because the next training step, or the next scan, needs as much.

    By default glibc returns each large array to the system and requests it again, page by page. Where pages are
    expensive (virtual machines, sandboxes) this was half of a training step's time and a fifth of preprocessing's.

    Args:
        training: Keep all that is freed. Otherwise arrays of a slice are kept, and what a volume takes is returned.

    Returns:
        Whether the setting was made. Other allocators than glibc's keep memory anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = _KEPT_OF_TRAINING if training else _KEPT_OF_SCANS
    return all([mallopt(*setting) for setting in settings.items()])  # noqa: C419  each is made, whatever the others say


def usable_cores() -> int:
    """The number of cores that this process may use; in a container, fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
