"""The jobs of a batch, read and prepared ahead of the networks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.formats.open import open_scan, open_series, source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.read_ahead import Reading, read_ahead

_UNPACKED_SHARE = 8  # voxels take about so many times the bytes of their compressed file


@dataclass(frozen=True)
class ReadJob(Reading):
    """A job whose scan was read, or the reason why it was not. It has no case if there is an earlier result.

    Attributes:
        job: The job.
        made_of: Everything that its result depends on, as ``result.json`` stores it.
        earlier: The content of an earlier ``result.json`` that still holds, or None.
    """

    job: Job
    made_of: dict[str, Any] = field(default_factory=dict)
    earlier: dict[str, Any] | None = None


def read_jobs(
    jobs: list[Job],
    size: int,
    options: RunOptions,
    settings: dict[str, Any],
    readers: int = 1,
    find_earlier: Callable[[Job], dict[str, Any] | None] = lambda job: None,
) -> Iterator[list[ReadJob]]:
    """Jobs in order, in groups, see `pipeline.read_ahead.read_ahead`. A job that cannot be read has its error.

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

    return read_ahead(jobs, read, readers, expected_bytes)


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
    return ReadJob(job, made_of, case=prepare(scan, size, read_s=time.perf_counter() - begun))


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


def expected_bytes(job: Job) -> int:
    """The memory that a scan will take once it is read."""
    try:
        return _UNPACKED_SHARE * sum(file.stat().st_size for file in job.files or (job.path,))
    except OSError:  # the file is gone; reading will say so
        return 0
