"""Waiting for other threads and processes: long where they are slow, no longer than they need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(is_true: Callable[[], Value], seconds: float = 300, what: Callable[[], object] = lambda: "") -> Value:
    """Call `is_true` until what it returns is true, and return that.

    Fails after so many seconds, with what `what` returns then.
    """
    ends = time.monotonic() + seconds
    while not (value := is_true()):
        assert time.monotonic() < ends, what()
        time.sleep(0.02)
    return value
