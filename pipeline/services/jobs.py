"""`JobQueue`: one loaded pipeline that runs scans, in a thread of its own. Small scans may share its batches."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError, is_disk_full, printable
from tumorlens.pipeline.options import RunOptions

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.batch.read_jobs import ReadJob
    from tumorlens.pipeline.pipeline import Decision, Pipeline
    from tumorlens.pipeline.result import Result

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
READING, CLASSIFYING, SEGMENTING, MEASURING = "reading", "classifying", "segmenting", "measuring"
STEPS = (READING, CLASSIFYING, SEGMENTING, MEASURING)
MOST_WAITING = 200
_AT_ONCE = 32  # slices between two reports of progress; both engines take whole batches of it
_CLOSE_S = 10.0
_SCANS_AHEAD = 16  # at most so many scans are read before the networks need them,
_BYTES_AHEAD = 192 * 1024**2  # and at most so many bytes
_MOST_WRITING = 4  # scans that the networks are done with, and whose results are still to be written
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class QueuedJob:
    """A scan in the queue, and what became of it. The queue's thread writes the fields; any thread may read them.

    Attributes:
        scan: The scan.
        options: Its treatment.
        folder: A private folder for its result. You delete it.
        id: Its name in addresses; nobody can guess it.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        step: One of `STEPS` while it runs.
        n_done: Slices of this step that are done.
        n_all: All slices of this step; 0 where it has none to count.
        error: Why it failed, in one sentence.
        lacks_room: Whether it failed because the disk is full.
        content: Everything about the result but the arrays, as `pipeline.result.Result.to_dict` returns it.
        made_of: Everything that the result depends on.
        seconds: Time from its start to its end.
        ended: Set once it is done, has failed or was cancelled, and nothing is written to its folder any more.
        together: Whether it may share batches with others, which run at the same time then.
        most_seconds: It fails if it runs longer.
        most_voxels: It fails if it is larger.
        write: Writes its result; by default `keep` does.
        on_end: Called once it has ended.
    """

    scan: Job
    options: RunOptions
    folder: Path
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = WAITING
    step: str = READING
    n_done: int = 0
    n_all: int = 0
    error: str = ""
    lacks_room: bool = False
    content: dict[str, Any] = field(default_factory=dict, repr=False)
    made_of: dict[str, Any] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    together: bool = False
    most_seconds: float = math.inf
    most_voxels: float = math.inf
    write: Callable[[QueuedJob, Result], dict[str, Any]] | None = field(default=None, repr=False)
    on_end: Callable[[QueuedJob], None] | None = field(default=None, repr=False)
    _stop: bool = False
    _begun: float = 0.0
    _reading: Future[ReadJob] | None = field(default=None, repr=False)
    _result: Result | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The scan's name."""
        return self.scan.name

    @property
    def result(self) -> Result:
        """The result. Its arrays lie in the folder, so that many of them take little memory.

        Raises:
            InputError: There is no result, or its folder is gone.
        """
        if self._result is None or not self.folder.is_dir():
            raise InputError(f"{self.name}: there is no result")
        return self._result

    def keep(self, result: Result) -> None:
        """Keep a result, with its arrays mapped from files in the folder."""
        import numpy as np

        def on_disk(array: Any, name: str) -> Any:
            if array is None:
                return None
            np.save(self.folder / f"{self.id}.{name}.npy", array, allow_pickle=False)
            return np.load(self.folder / f"{self.id}.{name}.npy", mmap_mode="r", allow_pickle=False)

        arrays = {name: on_disk(getattr(result, name), name) for name in ("mask", "heat", "lesion_map")}
        scan = replace(result.scan, voxels=on_disk(result.scan.voxels, "voxels"))
        self._result = replace(result, scan=scan, **arrays)


class JobQueue:
    """Scans that wait for the models, which are loaded once, in the background.

    Attributes:
        problem: Why the models cannot be loaded; empty while they can.
        pipeline: The models, once they are loaded.
    """

    def __init__(
        self,
        load: Callable[[], Pipeline],
        most_waiting: int = MOST_WAITING,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        load: Loads the models.
        most_waiting: So many scans may wait.
        give_up: Called if the models cannot be loaded.
        """
        self.problem = ""
        self.pipeline: Pipeline | None = None
        self._load, self._give_up, self._most_waiting = load, give_up, most_waiting
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[QueuedJob] = deque()
        self._running: list[QueuedJob] = []  # until their results are written
        self._computing: list[QueuedJob] = []  # those that the networks see now
        self._closed = False
        # Not a daemon: one that is in native code while Python ends aborts the process.
        self._thread = threading.Thread(target=self._work, name="jobs")

    def start(self) -> None:
        """Load the models and begin, in the background."""
        self._thread.start()

    def close(self) -> None:
        """Cancel everything, and wait a little for the running scan to stop.

        The process ends only when the queue's thread has, so close every queue that was started.
        """
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    @property
    def ready(self) -> bool:
        """Whether the models are loaded."""
        return self._ready.is_set()

    def submit(self, scans: Sequence[Job], folder: Path, options: RunOptions = RunOptions()) -> list[QueuedJob]:
        """Queue scans. Those that cannot be run have failed at once.

        Args:
            scans: From `pipeline.batch.inputs.collect`.
            folder: Where they lie; a private folder, which messages do not name. Results go there too.
            options: Their treatment.

        Raises:
            InputError: Too many scans are waiting.
        """
        jobs = [QueuedJob(scan, options, folder) for scan in scans]
        with self._changed:
            if len(self._waiting) + sum(not scan.error for scan in scans) > self._most_waiting:
                n = len(self._waiting)
                raise InputError(f"{n} scans are waiting, and {self._most_waiting} may; try again in a few minutes")
            self.add(jobs)
        return jobs

    def add(self, jobs: Sequence[QueuedJob]) -> None:
        """Queue scans, however many wait. Those that cannot be run have failed at once.

        Raises:
            InputError: The queue is closed.
        """
        with self._changed:
            if self._closed:
                raise InputError("the server is about to stop; start it again, then drop the files again")
            self._waiting += [job for job in jobs if not job.scan.error]
            self._changed.notify_all()
        for job in jobs:
            if job.scan.error:
                _end(job, FAILED, job.scan.error)
        if self.problem:
            self._fail_waiting()

    def position(self, job: QueuedJob) -> int:
        """How many scans run before this one; 0 for one that is not waiting."""
        with self._changed:
            before = self._waiting.index(job) if job in self._waiting else None
            return 0 if before is None else before + bool(self._running)

    def cancel(self, job: QueuedJob) -> None:
        """Cancel a scan: at once if it is waiting, after the next few slices if it is running."""
        with self._changed:
            job._stop = True
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        _end(job, CANCELLED)

    def _work(self) -> None:
        try:
            pipeline = self._watched(self._load())
            if self._closed:
                return
            self._warm_up(pipeline)
        except Exception as error:
            self.problem = str(error) if isinstance(error, InputError) else internal_error(error, "the models")
            self._fail_waiting()
            self._give_up()
            return
        self.pipeline = pipeline
        self._ready.set()
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            writing: deque[Future[None]] = deque()
            while group := self._take(pipeline, reader):
                for job, reading, decision in self._decide(pipeline, group):
                    writing.append(writer.submit(self._conclude, pipeline, job, reading, decision))
                while len(writing) > _MOST_WRITING:
                    writing.popleft().result()
            reader.shutdown(cancel_futures=True)

    def _take(self, pipeline: Pipeline, reader: ThreadPoolExecutor) -> list[QueuedJob]:
        """The scan that is next, once it is read, with those after it that are read and may share its batch.

        It is empty when the queue is closed.
        """
        from tumorlens.pipeline.read_ahead import AT_ONCE

        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            self._read_ahead(pipeline, reader)
            first = self._start_next()
        assert first._reading is not None
        wait([first._reading])
        group, n_slices = [first], _slices_of(first)
        with self._changed:
            while first.together and self._waiting:
                other = self._waiting[0]
                n_slices += _slices_of(other)
                if not other.together or other.options != first.options or not _is_read(other) or n_slices > AT_ONCE:
                    break
                group.append(self._start_next())
            self._read_ahead(pipeline, reader)
        return group

    def _start_next(self) -> QueuedJob:
        job = self._waiting.popleft()
        self._running.append(job)
        job.state, job._begun = RUNNING, time.perf_counter()
        return job

    def _read_ahead(self, pipeline: Pipeline, reader: ThreadPoolExecutor) -> None:
        """Have the first waiting scans read, as far as memory allows."""
        n_bytes = 0
        for n, job in enumerate(islice(self._waiting, _SCANS_AHEAD)):
            n_bytes += _bytes_of(job)
            if n and n_bytes > _BYTES_AHEAD:
                return
            if job._reading is None:
                job._reading = reader.submit(_read, pipeline, job)

    def _decide(
        self, pipeline: Pipeline, group: list[QueuedJob]
    ) -> list[tuple[QueuedJob, ReadJob | None, Decision | Exception]]:
        """Each scan as it was read, and what the networks say of it or why they cannot."""
        answers: list[tuple[QueuedJob, ReadJob | None, Decision | Exception]] = []
        good: list[tuple[QueuedJob, ReadJob]] = []
        for job in group:
            assert job._reading is not None
            try:
                reading, job._reading = job._reading.result(), None
                good.append((job, reading))
            except Exception as error:
                answers.append((job, None, error))
        decisions = self._ask(pipeline, good)
        return answers + [(*one, decision) for one, decision in zip(good, decisions, strict=True)]

    def _ask(self, pipeline: Pipeline, scans: list[tuple[QueuedJob, ReadJob]]) -> list[Decision | Exception]:
        """The networks' answers to scans that share batches. If that fails, one by one, so that each costs no other."""
        if not scans:
            return []
        self._computing = [job for job, _ in scans]
        options = scans[0][0].options
        try:
            cases = [reading.case for _, reading in scans if reading.case is not None]
            return list(pipeline.decide(cases, options.force, options.explain, options.maps))
        except Exception as error:
            if len(scans) == 1:
                return [error]
            return [decision for scan in scans for decision in self._ask(pipeline, [scan])]
        finally:
            self._computing = []

    def _conclude(
        self, pipeline: Pipeline, job: QueuedJob, reading: ReadJob | None, decision: Decision | Exception
    ) -> None:
        """End a scan that the networks are done with."""
        state, problem = DONE, ""
        try:
            if isinstance(decision, Exception):
                raise decision
            assert reading is not None and reading.case is not None
            _report(job, MEASURING, 0, 0)
            result = pipeline.conclude(reading.case, decision, job.options.maps)
            job.made_of = reading.made_of
            job.content = (job.write or _keep)(job, result)
        except _Stopped:
            state = CANCELLED
        except InputError as error:
            state, problem, job.lacks_room = FAILED, job.scan.with_path(str(error)), is_disk_full(error)
        except Exception as error:  # a fault of ours must not cost you the other scans
            job.lacks_room = is_disk_full(error)
            if job._stop:  # its folder is gone already
                state = CANCELLED
            elif job.lacks_room:
                state, problem = FAILED, job.scan.with_path("the disk is full")
            else:
                state, problem = FAILED, job.scan.with_path(internal_error(error, "a scan"))
        job.seconds = time.perf_counter() - job._begun
        with self._changed:
            self._running.remove(job)
        _end(job, state, problem)

    def _fail_waiting(self) -> None:
        with self._changed:
            jobs = list(self._waiting)
            self._waiting.clear()
        for job in jobs:
            _end(job, FAILED, self.problem)

    def _watched(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline, with networks that report the progress of the running scans and stop when all are cancelled."""

        def report(step: str, n_done: int, n_all: int) -> None:
            jobs = self._computing
            for job in [job for job in jobs if not job._stop] or jobs:
                _report(job, step, n_done, n_all)

        one, two = pipeline.classifier, pipeline.segmenter
        return replace(
            pipeline,
            classifier=replace(one, network=_WatchedNetwork(one.network, CLASSIFYING, report)),
            segmenter=replace(two, network=_WatchedNetwork(two.network, SEGMENTING, report)),
        )

    def _warm_up(self, pipeline: Pipeline) -> None:
        """Run a phantom, so that the first scan of the user does not wait for what networks do only once."""
        from tumorlens.data.phantom import phantom_slice

        pipeline.run(phantom_slice(7, "meningioma").image, RunOptions(explain=True))


class _Stopped(Exception):  # noqa: N818 - somebody asked for it; nothing went wrong
    """The scan was cancelled."""


class _WatchedNetwork:
    """A network of either stage that reports after every few slices."""

    def __init__(self, network: Any, step: str, report: Callable[[str, int, int], None]) -> None:
        self._network, self._step, self._report = network, step, report

    def __call__(self, images_nhw: Any) -> Any:
        import numpy as np

        n = len(images_nhw)
        parts = []
        for start in range(0, max(n, 1), _AT_ONCE):
            self._report(self._step, start, n)
            parts.append(self._network(images_nhw[start : start + _AT_ONCE]))
        self._report(self._step, n, n)
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], tuple):  # logits, and features if there are any
            return tuple(None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True))
        return np.concatenate(parts)

    def __getattr__(self, name: str) -> Any:  # Grad-CAM asks for the network's model
        return getattr(self._network, name)


def _read(pipeline: Pipeline, job: QueuedJob) -> ReadJob:
    from tumorlens.data.scan import voxels_limited
    from tumorlens.pipeline.batch.read_jobs import open_job
    from tumorlens.pipeline.batch.resume import settings_of

    with voxels_limited(job.most_voxels):
        return open_job(job.scan, pipeline.classifier.input_size, job.options, settings_of(pipeline, job.options))


def _is_read(job: QueuedJob) -> bool:
    return job._reading is not None and job._reading.done()


def _what_was_read(job: QueuedJob) -> ReadJob | None:
    reading = job._reading
    return reading.result() if reading is not None and reading.done() and reading.exception() is None else None


def _slices_of(job: QueuedJob) -> int:
    """How many slices of a scan that was read the networks will see."""
    reading = _what_was_read(job)
    return 0 if reading is None else reading.n_slices


def _bytes_of(job: QueuedJob) -> int:
    """The memory that a scan takes, or will take once it is read."""
    from tumorlens.pipeline.batch.read_jobs import expected_bytes

    reading = _what_was_read(job)
    return expected_bytes(job.scan) if reading is None else reading.n_bytes


def _keep(job: QueuedJob, result: Result) -> dict[str, Any]:
    job.keep(result)
    content = result.to_dict()
    return content | {"scan": {"name": job.name, **content["scan"]}}


def _report(job: QueuedJob, step: str, n_done: int, n_all: int) -> None:
    if job._stop:
        raise _Stopped
    if time.perf_counter() - job._begun > job.most_seconds:
        raise InputError(f"the scan took longer than the {job.most_seconds:g} seconds that are allowed")
    if STEPS.index(step) >= STEPS.index(job.step):  # other planes of a volume go back to the first stage for a moment
        job.step, job.n_done, job.n_all = step, n_done, n_all


def _end(job: QueuedJob, state: str, error: str = "") -> None:
    for separator in ("/", "\\"):
        error = error.replace(f"{job.folder}{separator}", "")
    job.error = printable(error.replace(str(job.folder), job.name))
    job.state = state
    job.ended.set()
    try:
        if job.on_end is not None:
            job.on_end(job)
    except Exception as problem:  # it must not cost you the other scans
        internal_error(problem, "a scan")


def internal_error(error: Exception, what: str) -> str:
    """Log a fault of ours, and return the sentence about it."""
    # Only its type and place are logged: its text may quote a header, and so a patient.
    sentence = f"internal error, please report it ({type(error).__name__})"
    _log.error("tumorlens: %s: %s", what, sentence)
    _log.info("%s", "".join(traceback.format_tb(error.__traceback__)))
    return sentence
