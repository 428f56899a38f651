"""Scans of a batch, read and prepared by threads ahead of the networks, as far as memory allows."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.formats.open import open_scan, open_series, source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.case import Case, open_source, prepare
from tumorlens.pipeline.options import RunOptions

AT_ONCE = 8  # slices that the networks take together
_AHEAD = 3 * AT_ONCE  # scans read before the networks want them, at most
_BUDGET = 192 * 1024**2  # and bytes
_GROWS = 8  # a compressed file's voxels, before it is read


@dataclass(frozen=True)
class Opened:
    """A scan that was read.

    Attributes:
        case: For the networks.
        made_of: What its result depends on, as ``result.json`` will keep it.
    """

    case: Case
    made_of: dict[str, Any]


Reading = tuple[Job, "Future[Opened] | dict[str, Any]"]  # or the result of an earlier run


def read_ahead(
    jobs: list[Job],
    size: int,
    options: RunOptions,
    settings: dict[str, Any],
    readers: int = 1,
    earlier: Callable[[Job], dict[str, Any] | None] = lambda job: None,
) -> Iterator[list[Reading]]:
    """Jobs in order, in groups of what is ready: one at least, and no more slices than go into a common batch.

    Args:
        jobs: All of them.
        size: Side of the classifier's input in pixels.
        options: Settings of the run.
        settings: What every result depends on.
        readers: Threads.
        earlier: Gives the result of an earlier run for a job that need not be read.
    """
    with ThreadPoolExecutor(max(1, readers), thread_name_prefix="read") as pool:
        left = iter(jobs)
        waiting: deque[Reading] = deque()
        try:
            while True:
                for job in left:
                    kept = earlier(job)
                    waiting.append((job, kept or pool.submit(_open, job, size, options, settings)))
                    if len(waiting) > 2 * readers and (len(waiting) >= _AHEAD or _weight(waiting) > _BUDGET):
                        break
                if not waiting:
                    return
                yield _take(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _take(waiting: deque[Reading]) -> list[Reading]:
    """The first one, waited for, and those after it that are ready, too."""
    group: list[Reading] = []
    slices = 0
    while waiting:
        reading = waiting[0][1]
        if isinstance(reading, Future):
            if group and not reading.done():
                break
            slices += 0 if reading.exception() else int(reading.result().case.used.sum())
        if group and slices > AT_ONCE:
            break
        group.append(waiting.popleft())
    return group


def _weight(waiting: deque[Reading]) -> int:
    """Bytes that the scans ahead take, or will."""
    total = 0
    for job, reading in waiting:
        if not isinstance(reading, Future):
            continue
        if not reading.done():
            total += _GROWS * _size_of(job)
        elif reading.exception() is None:
            total += reading.result().case.n_bytes
    return total


def _size_of(job: Job) -> int:
    try:
        return sum(file.stat().st_size for file in job.files or (job.path,))
    except OSError:  # gone; its reader will say so
        return 0


def _open(job: Job, size: int, options: RunOptions, settings: dict[str, Any]) -> Opened:
    if job.error:
        raise InputError(job.error)
    begun = time.perf_counter()
    scan = open_series(job.files, options.frame) if job.files else open_scan(job.path, options.frame)
    scan = replace(scan, notes=(*job.notes, *scan.notes))
    made_of = {"source_sha256": hash_of(job), **settings, "frame": scan.frame}
    scan = open_source(scan, options)
    return Opened(prepare(scan, size, read_s=time.perf_counter() - begun), made_of)


def hash_of(job: Job) -> str:
    """SHA-256 of a file, or of the hashes of all files that a scan has, whatever their names and order.

    Raises:
        InputError: One of them is gone.
    """
    files = job.files or tuple(source_files(job.path))
    try:
        hashes = sorted(sha256_of(file) for file in files)
    except OSError as error:
        raise InputError(f"{job.path}: cannot be read ({error.strerror or error})") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
