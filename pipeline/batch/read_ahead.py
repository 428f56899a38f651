"""Scans of a batch, read and prepared by threads ahead of the networks, as far as memory allows."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.formats.open import open_scan, open_series, source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.case import Case, open_source, prepare
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.pipeline import AT_ONCE

_SCANS_AHEAD = 3 * AT_ONCE  # at most so many scans are read before the networks need them,
_BYTES_AHEAD = 192 * 1024**2  # and at most so many bytes
_UNPACKED_SHARE = 8  # voxels take about so many times the bytes of their compressed file


@dataclass(frozen=True)
class ReadJob:
    """A job whose scan was read, or the reason why it was not.

    Attributes:
        job: The job.
        case: The scan, prepared for the networks; None if there is an error or an earlier result.
        made_of: Everything that its result depends on, as ``result.json`` stores it.
        earlier: The content of an earlier ``result.json`` that still holds, or None.
        error: The error of the reading, or None.
    """

    job: Job
    case: Case | None = None
    made_of: dict[str, Any] = field(default_factory=dict)
    earlier: dict[str, Any] | None = None
    error: Exception | None = None

    @property
    def n_slices(self) -> int:
        """How many slices the networks will see."""
        return 0 if self.case is None else int(self.case.used.sum())

    @property
    def n_bytes(self) -> int:
        """Memory that the scan takes."""
        return 0 if self.case is None else self.case.n_bytes


def read_ahead(
    jobs: list[Job],
    size: int,
    options: RunOptions,
    settings: dict[str, Any],
    readers: int = 1,
    find_earlier: Callable[[Job], dict[str, Any] | None] = lambda job: None,
) -> Iterator[list[ReadJob]]:
    """Jobs in order, in groups of those that are ready: at least one, and no more slices than share a batch.

    Args:
        jobs: All of them.
        size: Side of the classifier's input in pixels.
        options: Settings of the run.
        settings: Everything but the source that a result depends on, from `pipeline.batch.resume.settings_of`.
        readers: Number of threads.
        find_earlier: Returns the earlier result of a job that need not be read, or None.
    """

    def read(job: Job) -> ReadJob:
        try:
            earlier = find_earlier(job)
            return ReadJob(job, earlier=earlier) if earlier else open_job(job, size, options, settings)
        except Exception as error:
            return ReadJob(job, error=error)

    with ThreadPoolExecutor(max(1, readers), thread_name_prefix="read") as pool:
        remaining = iter(jobs)
        waiting: deque[tuple[Job, Future[ReadJob]]] = deque()
        try:
            while True:
                for job in remaining:
                    waiting.append((job, pool.submit(read, job)))
                    if len(waiting) > 2 * readers and (
                        len(waiting) >= _SCANS_AHEAD or _n_bytes(waiting) > _BYTES_AHEAD
                    ):
                        break
                if not waiting:
                    return
                yield _take_ready(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def open_job(job: Job, size: int, options: RunOptions, settings: dict[str, Any]) -> ReadJob:
    """The job's scan, read and prepared.

    Raises:
        InputError: The scan cannot be used.
    """
    if job.error:
        raise InputError(job.error)
    begun = time.perf_counter()
    scan = open_series(job.files, options.frame) if job.files else open_scan(job.path, options.frame)
    scan = replace(scan, notes=(*job.notes, *scan.notes))
    made_of = {"source_sha256": hash_of(job), **settings, "frame": scan.frame}
    scan = open_source(scan, options)
    return ReadJob(job, prepare(scan, size, read_s=time.perf_counter() - begun), made_of)


def hash_of(job: Job) -> str:
    """SHA-256 of a file, or of the hashes of all files of a scan, whatever their names and order.

    Raises:
        InputError: A file cannot be read.
    """
    files = job.files or tuple(source_files(job.path))
    try:
        hashes = sorted(sha256_of(file) for file in files)
    except OSError as error:
        raise InputError(f"{job.path}: cannot be read ({error.strerror or error})") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _take_ready(waiting: deque[tuple[Job, Future[ReadJob]]]) -> list[ReadJob]:
    """The first scan, which is waited for, and those after it that are ready too."""
    group = [waiting.popleft()[1].result()]
    slices = group[0].n_slices
    while waiting and waiting[0][1].done():
        reading = waiting[0][1].result()
        slices += reading.n_slices
        if slices > AT_ONCE:
            break
        group.append(reading)
        waiting.popleft()
    return group


def _n_bytes(waiting: deque[tuple[Job, Future[ReadJob]]]) -> int:
    """Memory that the scans ahead take, or will take once they are read."""
    return sum(
        future.result().n_bytes if future.done() else _UNPACKED_SHARE * _file_bytes(job) for job, future in waiting
    )


def _file_bytes(job: Job) -> int:
    try:
        return sum(file.stat().st_size for file in job.files or (job.path,))
    except OSError:  # the file is gone; reading will say so
        return 0
