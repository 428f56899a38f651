"""Which device and which precision this machine really has."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(wish: str = "auto") -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        InputError: The device is unknown or not there.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wish == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, colon, number = wish.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdigit()
    if kind not in ("cpu", "cuda", "mps") or (colon and not numbered):
        raise InputError(f"device {wish!r} is none of auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda" and (not cuda or int(number or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {wish!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not mps:
        raise InputError("device 'mps' is not there")
    return torch.device(wish)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware (AMX, AVX512-BF16, CUDA from Ampere on), not emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        found = cpu_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return False


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether a run computes in bfloat16: asked for, or left to a machine that has it in hardware.

    Args:
        precision: ``auto``, ``bf16`` or ``fp32``.
        device: Where it runs.
    """
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def cpu_capabilities() -> dict[str, object]:
    """What this processor's instruction sets are, as torch reports them; empty where it cannot tell."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)  # not there in the oldest torch that is supported
    return dict(ask()) if ask else {}


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)
_PAD_BYTES = 256 * 1024**2


def keep_freed_memory() -> bool:
    """Let glibc keep what a training step frees, for the next one needs as much. By itself it gives each large tensor
    back to the system and asks for it anew, page by page; where pages are dear (virtual machines, sandboxes) that was
    half of a step's time. Returns whether the allocator was told; others than glibc's keep memory by themselves.
    """
    if not sys.platform.startswith("linux"):
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:  # musl
        return False
    return all([tell(_M_MMAP_MAX, 0), tell(_M_TRIM_THRESHOLD, 2**31 - 1), tell(_M_TOP_PAD, _PAD_BYTES)])


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
