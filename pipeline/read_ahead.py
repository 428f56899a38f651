"""Scans that threads read and prepare ahead of the networks, as far as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tumorlens.pipeline.case import Case

AT_ONCE = 8  # slices that the networks take together
_SCANS_AHEAD = 3 * AT_ONCE  # at most so many scans are read before the networks need them,
_BYTES_AHEAD = 192 * 1024**2  # and at most so many bytes


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A scan that was read and prepared for the networks, or the reason why not.

    Attributes:
        case: The scan; None if it has an error or does not need the networks.
        error: The error of the reading, or None.
    """

    case: Case | None = None
    error: Exception | None = None

    @property
    def n_slices(self) -> int:
        """How many slices the networks will see."""
        return 0 if self.case is None else int(self.case.used.sum())

    @property
    def n_bytes(self) -> int:
        """Memory that the scan takes."""
        return 0 if self.case is None else self.case.n_bytes


Source = TypeVar("Source")
Read = TypeVar("Read", bound=Reading)


def read_ahead(
    sources: Iterable[Source],
    read: Callable[[Source], Read],
    readers: int = 1,
    expected_bytes: Callable[[Source], int] = lambda source: 0,
) -> Iterator[list[Read]]:
    """Scans in order, in groups of those that are ready: at least one, and no more slices than share a batch.

    Args:
        sources: All scans.
        read: Reads one. It runs in a thread, and what it raises is raised here, after the scans before it.
        readers: Number of threads.
        expected_bytes: The memory that a scan will take once it is read.
    """
    with ThreadPoolExecutor(max(1, readers), thread_name_prefix="read") as pool:
        remaining = iter(sources)
        waiting: deque[tuple[Source, Future[Read]]] = deque()
        try:
            while True:
                for source in remaining:
                    waiting.append((source, pool.submit(read, source)))
                    n_bytes = sum(expected_bytes(s) if not _is_read(f) else f.result().n_bytes for s, f in waiting)
                    if len(waiting) > 2 * readers and (len(waiting) >= _SCANS_AHEAD or n_bytes > _BYTES_AHEAD):
                        break
                if not waiting:
                    return
                yield _take_ready(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_read(reading: Future[Read]) -> bool:
    return reading.done() and reading.exception() is None


def _take_ready(waiting: deque[tuple[Source, Future[Read]]]) -> list[Read]:
    """The first scan, which is waited for, and those after it that are ready too."""
    group = [waiting.popleft()[1].result()]
    slices = group[0].n_slices
    while waiting and _is_read(waiting[0][1]):
        reading = waiting[0][1].result()
        slices += reading.n_slices
        if slices > AT_ONCE:
            break
        group.append(reading)
        waiting.popleft()
    return group
