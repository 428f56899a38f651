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

from tumorlens.data.errors import InputError, is_disk_full
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, JobQueue, QueuedJob, internal_error
from tumorlens.pipeline.services.spool import Spool, StoredJob, is_elsewhere

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.inputs import Work
    from tumorlens.pipeline.batch.job import Job

_JOBS_AHEAD = 24  # jobs that are begun at the same time: their scans are read while the networks see others
_MOST_FETCHING = 4  # studies that are fetched at the same time; slow servers keep no other job waiting
_MOST_SCANS = 500  # of one job
_UID = r"\d+(\.\d+){4,}(\.dcm)?"  # as a file's name
_WORDS = (  # of our sentences
    "a|an|and|archive|are|at|be|brain|but|by|can|CT|data|dicom|files?|folder|for|has|header|images?|in|is|it|its|masks?"
    "|modality|MR|no|not|of|on|one|or|pixels?|PT|series|slices?|stud(y|ies)|T1|T2|the|to|too|two|upload|US|volumes?|was"
)
_OURS = re.compile(rf"source|unpacked|results|{_UID}|scan[-.\w]*|\d{{1,3}}|\W*|.|(?i:{_WORDS})")
_FROM_FILES = re.compile(  # what sentences of `data.formats` quote from a header, or from the list of an archive
    r"(?<=data file ).+(?= is missing)|(?<=data files ).+(?= are not a pattern)|(?<=own folder, in ).+(?=; put both)"
    r"|(?<=leads out of it \().+(?=\); nothing)"
)
_FREE_BYTES = 200e6  # no job is begun while the disk has less
_LOOK_S = 1.0  # seconds after which to look for jobs, if nothing happens
_DELETE_S = 60.0  # between two looks for old jobs
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0  # until a job is tried again for which the disk was full
_log = logging.getLogger(__name__)
Fetch = Callable[[StoredJob, Callable[[], bool]], None]


@dataclass(frozen=True)
class JobLimits:
    """What one job may take.

    Attributes:
        most_seconds: Time of one scan, and of fetching the files of one job.
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
    fetch_until: float | None = None  # while its files are fetched
    names: set[str] = field(default_factory=set)  # of its files and folders, which no sentence may quote
    rests: bool = False  # nothing of it runs any more, and it is to wait again


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
        fetch: Fetch = lambda job, is_wanted: None,
        on_end: Callable[[str], None] = lambda id: None,
        together: bool = True,
    ) -> None:
        """Args:
        spool: Nobody else runs its jobs.
        queue: It holds the models.
        limits: Of each job.
        fetch: Gets the files of a job that lie elsewhere (`spool.is_elsewhere`), in a thread that nobody waits for.
            Its second argument says whether they are still wanted; ask it before you write each.
        on_end: Called, in a thread, with the id of each job that has ended.
        together: Whether small scans share batches.
        """
        self.spool, self.queue, self.limits = spool, queue, limits
        self._fetch, self._on_end, self._together = fetch, on_end, together
        self._running: dict[str, _Running] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # of a job for which the disk was full: how long, until when
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="spool")
        self._openers = ThreadPoolExecutor(2, "open")
        self._fetched: set[str] = set()  # jobs whose files were elsewhere, and are here

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
            with suppress(InputError):  # the disk is full: `recover` does it, see `note_stop`
                self.spool.put_back(one.job.id)
            for scan in one.scans:
                self.queue.cancel(scan)
        if self._thread.is_alive():
            self._thread.join()
            self.spool.note_stop()
        self._openers.shutdown(cancel_futures=True)

    def scans_of(self, id: str) -> list[QueuedJob]:
        """The scans of a job that is running, as far as they are known."""
        with self.spool.changed:
            running = self._running.get(id)
            return [] if running is None else list(running.scans)

    def _work(self) -> None:
        looked, problem = 0.0, ""
        while not self._closing:
            try:
                self._stop_cancelled()
                if self.limits.keep_hours is not None and time.monotonic() - looked > _DELETE_S:
                    looked = time.monotonic()
                    self.spool.delete_ended(3600 * self.limits.keep_hours)
                self._put_back_resting()
                with self.spool.changed:  # held until it waits, so that it misses no job
                    begun = [_Running(job, rests=True) for job in self._claim()]  # until it has started
                    self._running |= {running.job.id: running for running in begun}
                    for running in begun:
                        self._start(running)
                        running.rests = False
                    if not self._closing:
                        self.spool.changed.wait(_LOOK_S)
            except Exception as error:  # the disk is full, or there are too many threads; it may have room again
                if repr(error) != problem:  # once, not at every look
                    if isinstance(error, InputError):
                        _log.error("tumorlens: %s", error)
                    else:
                        internal_error(error, "the spool")
                problem = repr(error)
                time.sleep(_LOOK_S)
            else:
                problem = ""

    def _claim(self) -> list[StoredJob]:
        if not self.queue.ready or self._closing:
            return []
        if self.spool.free_bytes() < _FREE_BYTES:
            raise InputError("the disk is nearly full; no other job is begun until it has room again")
        n_away = sum(running.fetch_until is not None for running in self._running.values())
        n_here = len(self._running) - n_away
        resting = {id for id, (_, until) in self._pauses.items() if until > time.monotonic()}
        paused = ((id, self.spool.job(id)) for id in self._pauses)
        self._pauses = {id: self._pauses[id] for id, job in paused if job is not None and not job.ended}
        return self.spool.claim(_JOBS_AHEAD - n_here, _MOST_FETCHING - n_away, resting, self._fetched)

    def _stop_cancelled(self) -> None:
        """Cancel what nobody wants any more, and give up what is not fetched in time."""
        with self.spool.changed:
            running = list(self._running.values())
        for one in running:
            job = self.spool.job(one.job.id)
            is_cancelled = job is None or job.stop  # deleted, or cancelled
            if is_cancelled:
                for scan in self.scans_of(one.job.id):
                    self.queue.cancel(scan)
            is_late = one.fetch_until is not None and time.monotonic() > one.fetch_until
            if (is_cancelled or is_late) and self._end_fetching(one):
                seconds = f"{self.limits.most_seconds:g} seconds"
                self._end(one.job, FAILED, f"fetching the study took longer than the {seconds} that are allowed", [])

    def _start(self, running: _Running) -> None:
        if not is_elsewhere(running.job) or running.job.id in self._fetched:
            self._openers.submit(self._begin, running)
            return
        running.fetch_until = time.monotonic() + self.limits.most_seconds
        # A daemon: a server that sends a byte now and then must not keep this one from stopping.
        threading.Thread(target=self._fetch_files, args=(running,), name="fetch", daemon=True).start()

    def _fetch_files(self, running: _Running) -> None:
        job, problem = running.job, None
        try:
            self._fetch(job, lambda: self._is_fetching(running))
        except Exception as error:
            problem = error
        with self.spool.changed:
            if not self._end_fetching(running):  # nobody wants it any more
                return
            if problem is None:
                self._fetched.add(job.id)
                running.rests = True  # until its turn comes: a job that may kill the server runs alone
                self.spool.changed.notify_all()
                return
        self._fail(job, problem)

    def _is_fetching(self, running: _Running) -> bool:
        return not self._closing and running.fetch_until is not None

    def _end_fetching(self, running: _Running) -> bool:
        """Whether a job's files were still being fetched. From now on they are not: whoever asked goes on with it."""
        with self.spool.changed:
            was_fetching = self._is_fetching(running)
            if was_fetching:
                running.fetch_until = None
            return was_fetching

    def _begin(self, running: _Running) -> None:
        """Find the scans in a job's files and queue them."""
        job = running.job
        with self.spool.changed:
            if self._running.get(job.id) is not running or running.rests:  # a try for which there was no thread
                return
        try:
            now = self.spool.job(job.id)
            if self._closing or now is None or now.stop:
                self._end(job, CANCELLED, "", [])
                return
            scans = self._scans(job)
            names = _names_in(job.folder)
            with self.spool.changed:
                running.scans, running.n_open, running.names = scans, len(scans), names
                if self._closing:
                    raise InputError("the server stops")
            self.queue.add(scans)
        except Exception as error:
            self._fail(job, error)

    def _scans(self, job: StoredJob) -> list[QueuedJob]:
        from tumorlens.pipeline.batch.inputs import collect
        from tumorlens.pipeline.outputs.write import write_result

        unpacked = job.folder / "unpacked"
        for folder in (unpacked, job.results):
            shutil.rmtree(folder, ignore_errors=True)
        unpacked.mkdir(mode=0o700)
        files = sorted(str(file) for file in job.files.iterdir())
        work = collect(files, job.results, unpacked, needs_room=True)
        if len(work.jobs) > _MOST_SCANS:
            raise InputError(f"{len(work.jobs)} scans are more than the {_MOST_SCANS} of one job; send several jobs")
        return [
            QueuedJob(
                scan,
                RunOptions(**job.options),
                job.results / str(number),
                together=self._together,
                most_seconds=self.limits.most_seconds,
                most_voxels=self.limits.most_voxels,
                write=lambda scan, result: write_result(result, scan.folder, scan.name, scan.made_of, scan.options),
                on_end=lambda scan: self._note(job, scan),
            )
            for number, scan in enumerate(_with_neutral_names(work), start=1)
        ]

    def _note(self, job: StoredJob, scan: QueuedJob) -> None:
        """A scan has ended. With the last one, the job has."""
        with self.spool.changed:
            running = self._running[job.id]
            running.n_open -= 1
            n_open = running.n_open
        if scan.lacks_room:  # all of the job will run again
            for other in running.scans:
                self.queue.cancel(other)
        if n_open:
            return
        if any(scan.lacks_room for scan in running.scans):
            self._rest(job)
            return
        states = [scan.state for scan in running.scans]
        rows = [_row(job, scan, running.names) for scan in running.scans]
        if CANCELLED in states:
            self._end(job, CANCELLED, "", [])
        elif DONE in states:
            self._end(job, DONE, "", rows)
        else:
            self._end(job, FAILED, next((row["error"] for row in rows), "there is no scan in it"), rows)

    def _fail(self, job: StoredJob, error: Exception) -> None:
        """End a job that could not be begun."""
        if is_disk_full(error):
            self._rest(job)
        elif isinstance(error, InputError):
            self._end(job, FAILED, _neutral(str(error), job, "the upload", _names_in(job.folder)), [])
        else:
            self._end(job, FAILED, internal_error(error, "a job"), [])

    def _end(self, job: StoredJob, state: str, error: str, rows: list[dict[str, Any]]) -> None:
        try:
            self._finish(job, state, error, rows)
        except InputError:  # the file of jobs is full, too
            self._rest(job)
        except Exception as problem:  # the job runs again after the next start
            internal_error(problem, "a job")
            self._forget(job)

    def _finish(self, job: StoredJob, state: str, error: str, rows: list[dict[str, Any]]) -> None:
        """Raises:
        InputError: The file of jobs cannot be written.
        """
        now = self.spool.job(job.id)
        is_wanted = now is not None and not now.stop
        if self._closing and is_wanted and state != DONE:  # it waits for the next start
            self._forget(job)
            return
        shutil.rmtree(job.folder / "unpacked", ignore_errors=True)
        if not is_wanted:
            state, error, rows = CANCELLED, "", []
        self.spool.finish(job.id, state, error, rows)
        self._forget(job)
        try:
            self._on_end(job.id)
        except Exception as problem:
            internal_error(problem, "a job")

    def _forget(self, job: StoredJob) -> None:
        with self.spool.changed:
            self._running.pop(job.id, None)
            self._pauses.pop(job.id, None)
            self._fetched.discard(job.id)
            self.spool.changed.notify_all()

    def _rest(self, job: StoredJob) -> None:
        """Let a job wait for room on the disk: the longer, the more often there was none."""
        with suppress(InputError):  # what cannot be read has not ended
            now = self.spool.job(job.id)
            if now is not None and now.state != RUNNING:  # it has ended, or waits for the next start
                self._forget(job)
                return
        fetched = job.files.glob("*") if is_elsewhere(job) else ()
        for folder in (job.folder / "unpacked", job.results, *fetched):
            shutil.rmtree(folder, ignore_errors=True)
        with self.spool.changed:
            last, _ = self._pauses.get(job.id, (_FIRST_PAUSE_S / 2, 0.0))
            pause = min(2 * last, _LONGEST_PAUSE_S)
            self._pauses[job.id] = pause, time.monotonic() + pause
            self._fetched.discard(job.id)
            self._running[job.id].rests = True
            self.spool.changed.notify_all()
        _log.warning("tumorlens: the disk is full; a job that was running waits, and is tried again in %.0f s", pause)

    def _put_back_resting(self) -> None:
        """Raises:
        InputError: The file of jobs is full, too. The jobs rest until it has room.
        """
        with self.spool.changed:
            resting = [one.job for one in self._running.values() if one.rests]
        for job in resting:
            now = self.spool.job(job.id)
            if now is None or now.stop:  # nobody wants it any more
                self._finish(job, CANCELLED, "", [])
                continue
            self.spool.put_back(job.id)
            with self.spool.changed:
                del self._running[job.id]


def _row(job: StoredJob, scan: QueuedJob, names: set[str]) -> dict[str, Any]:
    content = scan.content
    error = ""
    if scan.state != DONE:
        paths = {str(path) for path in (*scan.scan.files, scan.scan.path, scan.scan.shown_path())}
        error = _neutral(scan.error, job, scan.name, names | paths)
    return {
        "name": scan.name,
        "error": error,
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


def _neutral(error: str, job: StoredJob, name: str, names: set[str]) -> str:
    """A sentence with a scan's name instead of paths and names of files, which may be those of a patient."""
    error = _FROM_FILES.sub("...", error)
    # One pass, so that nothing is replaced in what was put in; of the names that occur, as there may be thousands.
    known = sorted({text for text in (*names, name) if text and text in error}, key=len, reverse=True)
    # Short names and numbers are parts of other words.
    words = [rf"(?<!\w){re.escape(n)}(?!\w)" if len(n) < 4 or n.isdigit() else re.escape(n) for n in known]
    place = re.escape(str(job.folder)) + r"[^:;,()]*"
    error = re.sub("|".join([*words, place]), lambda _: name, error)
    return error.replace(f"{name}: {name}: ", f"{name}: ")


def _names_in(folder: Path) -> set[str]:
    """Names of the files and folders of a job, as far as they may be a patient's.

    Words of our sentences are not among them: nobody is called so, and the sentence needs them. Nor are UIDs, which
    name the object that is damaged, and no patient.
    """
    names = set()
    for path in folder.rglob("*"):
        names.add(path.name)
        if path.suffix.lower() == ".zip" and path.parent.name == "source":
            with (
                suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError),
                zipfile.ZipFile(path) as archive,
            ):
                names |= {part for entry in archive.namelist() for part in entry.split("/")}
    return {name for name in names if not _OURS.fullmatch(name)}
