"""Readers with a fault each: a harness that does not report them finds nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tumorlens.data.errors import InputError


def seeds() -> list[dict[str, bytes]]:
    """A file that all of them read without a fault."""
    return [{"a": bytes(64)}]


def _is_bad(path: Path) -> bool:
    """Whether the file is damaged so that the fault shows; other damage is refused as it should be."""
    data = path.read_bytes()
    if len(data) % 2:
        raise InputError("an odd length")
    return any(data)


def _crash(path: Path) -> None:
    if _is_bad(path):
        os.kill(os.getpid(), signal.SIGSEGV)


def _hang(path: Path) -> None:
    while _is_bad(path):
        time.sleep(0.01)


def _hog(path: Path) -> None:
    if _is_bad(path):
        held = [bytearray(b"\1" * 2**20) for _ in range(1500)]
        raise InputError(f"{len(held)} MB were taken")


def _too_much(path: Path) -> None:
    """More memory than a process may have at all."""
    if _is_bad(path):
        bytearray(2**50)


def _value_error(path: Path) -> None:
    if _is_bad(path):
        int("no number")


READERS = {"crash": _crash, "hang": _hang, "hog": _hog, "memory": _too_much, "value": _value_error, "none": _is_bad}
