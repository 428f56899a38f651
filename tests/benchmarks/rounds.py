"""Two sides that take turns, and their ratio, which is refused where it differs too much from turn to turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]  # (.., wall and processor time), mostly in seconds

_ROUNDS = 3
_FEWEST_ROUNDS = 2  # where one takes longer than _LONG_S
_LONG_S = 20.0
_MOST_SPREAD = 1.25  # largest by smallest ratio; what we decide by ratios is rarely less than a quarter


def run_rounds(*sides: Callable[[], Any], rounds: int | None = None, warm: int = 0) -> Costs:
    """What every side costs in each round, (rounds, sides, what a side returns).

    Args:
        sides: They take turns, so that what slows the machine slows all. Each returns its cost.
        rounds: Number of rounds; by default 3, or 2 where the first takes longer than 20 seconds.
        warm: Rounds before these that do not count.
    """
    for _ in range(warm):
        for side in sides:
            side()
    begun = time.perf_counter()
    costs = [[side() for side in sides]]
    if rounds is None:
        rounds = _FEWEST_ROUNDS if time.perf_counter() - begun > _LONG_S else _ROUNDS
    costs += [[side() for side in sides] for _ in range(rounds - 1)]
    return np.array(costs)


def ratio_of(costs: Costs) -> dict[str, float | None]:
    """How many times less ours is: ``median``, ``least`` and ``most`` of the rounds.

    ``median`` is None where ``most`` is more than 1.25 times ``least``.

    Args:
        costs: (rounds, ours and baseline).
    """
    ratios = costs[:, 1] / np.maximum(costs[:, 0], 1e-9)
    least, most = float(ratios.min()), float(ratios.max())
    median = None if most > _MOST_SPREAD * least else round(float(np.median(ratios)), 2)
    return {"median": median, "least": round(least, 2), "most": round(most, 2)}


def as_text(ratio: dict[str, float | None] | None) -> str:
    """The median, or why there is none."""
    if ratio is None:
        return "-"
    if ratio["median"] is None:
        return f"too noisy ({ratio['least']:g} to {ratio['most']:g})"
    return f"{ratio['median']:g}"


def now() -> Costs:
    """Wall time, and processor time of all threads of this process, in seconds."""
    return np.array((time.perf_counter(), time.process_time()))


def spent(call: Callable[[], Any]) -> Costs:
    """What a call takes of both, in seconds."""
    begun = now()
    call()
    return now() - begun
