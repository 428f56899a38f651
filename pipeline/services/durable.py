"""`Worker`: gives the jobs of a spool to the queue that holds the models, and ends them."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, JobQueue, QueuedJob, internal_error
from tumorlens.pipeline.services.spool import Spool, StoredJob

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.inputs import Work
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.result import Result

_JOBS_AHEAD = 24  # jobs that are begun at the same time: their scans are read while the networks see others
_LOOK_S = 1.0  # seconds after which to look for jobs, if nothing happens
_DELETE_S = 60.0  # between two looks for old jobs
_log = logging.getLogger(__name__)
Fetch = Callable[[StoredJob], None]


@dataclass(frozen=True)
class JobLimits:
    """What one job may take.

    Attributes:
        most_seconds: Time of one scan.
        most_voxels: Size of one scan.
        keep_hours: Ended jobs are deleted after so many; None keeps them.
    """

    most_seconds: float = 600
    most_voxels: float = 500e6
    keep_hours: float | None = 24


@dataclass
class _Running:
    """A job that is begun, and its scans once they are known."""

    job: StoredJob
    scans: list[QueuedJob] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    n_open: int = 0


class Worker:
    """Runs the jobs of a spool on a queue. The queue's other scans take turns with them.

    It begins once the models are loaded. When the queue closes, jobs that have not ended wait in the spool for the
    next start.
    """

    def __init__(
        self,
        spool: Spool,
        queue: JobQueue,
        limits: JobLimits = JobLimits(),
        fetch: Fetch = lambda job: None,
        on_end: Callable[[str], None] = lambda id: None,
        together: bool = True,
    ) -> None:
        """Args:
        spool: Nobody else runs its jobs.
        queue: It holds the models.
        limits: Of each job.
        fetch: Called, in a thread, before a job is looked into: gets files that lie elsewhere.
        on_end: Called, in a thread, with the id of each job that has ended.
        together: Whether small scans share batches.
        """
        self.spool, self.queue, self.limits = spool, queue, limits
        self._fetch, self._on_end, self._together = fetch, on_end, together
        self._running: dict[str, _Running] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="spool")
        self._openers = ThreadPoolExecutor(2, "open")

    def start(self) -> None:
        """Begin, in the background, with what a process that was killed left behind."""
        self.spool.recover()
        self._thread.start()

    def close(self) -> None:
        """Begin no other job, and put back what has not ended. Close the queue next."""
        with self.spool.changed:
            self._closing = True
            running = list(self._running.values())
            self.spool.changed.notify_all()
        for one in running:
            self.spool.put_back(one.job.id)
            for scan in one.scans:
                self.queue.cancel(scan)
        if self._thread.is_alive():
            self._thread.join()
        self._openers.shutdown(cancel_futures=True)

    def scans_of(self, id: str) -> list[QueuedJob]:
        """The scans of a job that is running, as far as they are known."""
        with self.spool.changed:
            running = self._running.get(id)
            return [] if running is None else list(running.scans)

    def _work(self) -> None:
        looked = 0.0
        while not self._closing:
            try:
                self._stop_cancelled()
                if self.limits.keep_hours is not None and time.monotonic() - looked > _DELETE_S:
                    looked = time.monotonic()
                    self.spool.delete_ended(3600 * self.limits.keep_hours)
                with self.spool.changed:  # held until it waits, so that it misses no job
                    for job in self._claim():
                        self._running[job.id] = _Running(job)
                        self._openers.submit(self._begin, job)
                    if not self._closing:
                        self.spool.changed.wait(_LOOK_S)
            except InputError as error:  # the disk is full; it may have room again
                _log.error("tumorlens: %s", error)
                time.sleep(_LOOK_S)

    def _claim(self) -> list[StoredJob]:
        return self.spool.claim(_JOBS_AHEAD - len(self._running)) if self.queue.ready and not self._closing else []

    def _stop_cancelled(self) -> None:
        with self.spool.changed:
            running = list(self._running)
        for id in running:
            job = self.spool.job(id)
            if job is None or job.stop:  # deleted, or cancelled
                for scan in self.scans_of(id):
                    self.queue.cancel(scan)

    def _begin(self, job: StoredJob) -> None:
        """Find the scans in a job's files and queue them."""
        try:
            self._fetch(job)
            scans = self._scans(job)
            with self.spool.changed:
                running = self._running[job.id]
                running.scans, running.n_open = scans, len(scans)
                if self._closing:
                    raise InputError("the server stops")
            self.queue.add(scans)
        except InputError as error:
            self._end(job, FAILED, _neutral(str(error), job, None), [])
        except Exception as error:
            self._end(job, FAILED, internal_error(error, "a job"), [])

    def _scans(self, job: StoredJob) -> list[QueuedJob]:
        from tumorlens.pipeline.batch.inputs import collect

        unpacked = job.folder / "unpacked"
        for folder in (unpacked, job.results):
            shutil.rmtree(folder, ignore_errors=True)
        unpacked.mkdir(mode=0o700)
        files = sorted(str(file) for file in job.files.iterdir())
        work = collect(files, job.results, unpacked)
        return [
            QueuedJob(
                scan,
                RunOptions(**job.options),
                job.results / str(number),
                together=self._together,
                most_seconds=self.limits.most_seconds,
                most_voxels=self.limits.most_voxels,
                write=_write,
                on_end=lambda scan: self._note(job, scan),
            )
            for number, scan in enumerate(_with_neutral_names(work), start=1)
        ]

    def _note(self, job: StoredJob, scan: QueuedJob) -> None:
        """A scan has ended. With the last one, the job has."""
        with self.spool.changed:
            running = self._running[job.id]
            running.n_open -= 1
            if running.n_open:
                return
        states = [scan.state for scan in running.scans]
        rows = [_row(job, scan) for scan in running.scans]
        if CANCELLED in states:
            self._end(job, CANCELLED, "", [])
        elif DONE in states:
            self._end(job, DONE, "", rows)
        else:
            self._end(job, FAILED, next((row["error"] for row in rows), "there is no scan in it"), rows)

    def _end(self, job: StoredJob, state: str, error: str, rows: list[dict[str, Any]]) -> None:
        try:
            now = self.spool.job(job.id)
            is_wanted = now is not None and not now.stop
            if self._closing and is_wanted and state != DONE:  # it waits for the next start
                return
            shutil.rmtree(job.folder / "unpacked", ignore_errors=True)
            if not is_wanted:
                state, error, rows = CANCELLED, "", []
            self.spool.finish(job.id, state, error, rows)
            self._on_end(job.id)
        except Exception as problem:  # the job runs again after the next start
            internal_error(problem, "a job")
        finally:
            with self.spool.changed:
                self._running.pop(job.id, None)
                self.spool.changed.notify_all()


def _write(scan: QueuedJob, result: Result) -> dict[str, Any]:
    from tumorlens.pipeline.outputs.write import write_result

    return write_result(result, scan.folder, scan.name, scan.made_of, scan.options)


def _row(job: StoredJob, scan: QueuedJob) -> dict[str, Any]:
    content = scan.content
    return {
        "name": scan.name,
        "error": _neutral(scan.error, job, scan) if scan.state != DONE else "",
        "folder": scan.folder.name,
        "files": [*content["files"], "result.json"] if content else [],
        "label": content.get("label"),
        "confidence": content.get("confidence"),
        "source_sha256": scan.made_of.get("source_sha256"),
        "seconds": round(scan.seconds, 3),
    }


def _with_neutral_names(work: Work) -> list[Job]:
    """The scans, called ``MR series 5`` or ``scan-2.png``: names of files and folders may be those of patients."""
    from tumorlens.pipeline.batch.job import split_extension
    from tumorlens.pipeline.services.uploads import series_name

    series = {name: candidate.series for name, candidate in work.candidates}
    scans = []
    for number, scan in enumerate(work.jobs, start=1):
        suffix = "" if len(work.jobs) == 1 else f"-{number}"
        found = series.get(scan.name)
        name = f"scan{suffix}{split_extension(scan.name)[1]}" if found is None else f"{series_name(found)}{suffix}"
        scans.append(replace(scan, name=name, plain_name=""))
    return scans


def _neutral(error: str, job: StoredJob, scan: QueuedJob | None) -> str:
    """A sentence with the scan's name instead of paths, which may name a patient."""
    name = "the upload" if scan is None else scan.name
    if scan is not None:
        for path in {*scan.scan.files, scan.scan.path, scan.scan.shown_path()}:
            error = error.replace(str(path), name)
    error = re.sub(re.escape(str(job.folder)) + r"[^:;,()]*", name, error)
    for known in sorted(_names_in(job.folder), key=len, reverse=True):
        error = error.replace(known, name)
    return error.replace(f"{name}: {name}: ", f"{name}: ")


def _names_in(folder: Path) -> set[str]:
    """Names of the files and folders of a job, as far as they say more than `source/scan.png`."""
    ours = re.compile(r"(source|unpacked|results|\d+|scan[-.\w]*|.{1,3})")
    names = {path.name for path in folder.rglob("*")}
    for file in folder.glob("source/*.zip"):
        with suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(file) as archive:
            names |= {part for name in archive.namelist() for part in name.split("/")}
    return {name for name in names if not ours.fullmatch(name)}
