"""`JobQueue`: one loaded pipeline that runs scans one after the other, in a thread of its own."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError, printable
from tumorlens.pipeline.options import RunOptions

if TYPE_CHECKING:
    from tumorlens.pipeline.batch.job import Job
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.result import Result

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
READING, CLASSIFYING, SEGMENTING, MEASURING = "reading", "classifying", "segmenting", "measuring"
STEPS = (READING, CLASSIFYING, SEGMENTING, MEASURING)
MOST_WAITING = 200
_AT_ONCE = 32  # slices between two reports of progress; both engines take whole batches of it
_CLOSE_S = 10.0
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
        content: Everything about the result but the arrays, as `pipeline.result.Result.to_dict` returns it.
        made_of: Everything that the result depends on.
        seconds: Time from its start to its end.
        ended: Set once it is done, has failed or was cancelled, and nothing is written to its folder any more.
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
    content: dict[str, Any] = field(default_factory=dict, repr=False)
    made_of: dict[str, Any] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _stop: bool = False
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
        self._load, self._give_up, self._most_waiting = load, give_up, most_waiting
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[QueuedJob] = deque()
        self._running: QueuedJob | None = None
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
            jobs = [*self._waiting, *([self._running] if self._running else [])]
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
        runnable = [job for job in jobs if not job.scan.error]
        with self._changed:
            if self._closed:
                raise InputError("the server is about to stop; start it again, then drop the files again")
            if len(self._waiting) + len(runnable) > self._most_waiting:
                n = len(self._waiting)
                raise InputError(f"{n} scans are waiting, and {self._most_waiting} may; try again in a few minutes")
            self._waiting += runnable
            self._changed.notify_all()
        for job in jobs:
            if job.scan.error:
                _end(job, FAILED, job.scan.error)
        if self.problem:
            self._fail_waiting()
        return jobs

    def position(self, job: QueuedJob) -> int:
        """How many scans run before this one; 0 for one that is not waiting."""
        with self._changed:
            before = self._waiting.index(job) if job in self._waiting else None
            return 0 if before is None else before + (self._running is not None)

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
            self.problem = str(error) if isinstance(error, InputError) else _internal(error, "the models")
            self._fail_waiting()
            self._give_up()
            return
        self._ready.set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.state = RUNNING
            begun = time.perf_counter()
            state, problem = self._outcome(pipeline, job)
            job.seconds = time.perf_counter() - begun
            with self._changed:
                self._running = None
            _end(job, state, problem)

    def _outcome(self, pipeline: Pipeline, job: QueuedJob) -> tuple[str, str]:
        """The state in which a scan ends, and its error."""
        try:
            _run(pipeline, job)
        except _Stopped:
            return CANCELLED, ""
        except InputError as error:
            return FAILED, job.scan.with_path(str(error))
        except Exception as error:  # a fault of ours must not cost you the other scans
            if job._stop:  # its folder is gone already
                return CANCELLED, ""
            return FAILED, job.scan.with_path(_internal(error, "a scan"))
        return DONE, ""

    def _fail_waiting(self) -> None:
        with self._changed:
            jobs = list(self._waiting)
            self._waiting.clear()
        for job in jobs:
            _end(job, FAILED, self.problem)

    def _watched(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline, with networks that report the progress of the running scan and stop when it is cancelled."""

        def report(step: str, n_done: int, n_all: int) -> None:
            if self._running is not None:
                _report(self._running, step, n_done, n_all)

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


def _run(pipeline: Pipeline, job: QueuedJob) -> None:
    from tumorlens.pipeline.batch.read_jobs import open_job
    from tumorlens.pipeline.batch.resume import settings_of

    settings = settings_of(pipeline, job.options)
    reading = open_job(job.scan, pipeline.classifier.input_size, job.options, settings)
    case = reading.case
    assert case is not None
    (decision,) = pipeline.decide([case], job.options.force, job.options.explain)
    _report(job, MEASURING, 0, 0)
    result = pipeline.conclude(case, decision)
    job.keep(result)
    content = result.to_dict()
    job.made_of = reading.made_of
    job.content = content | {"scan": {"name": job.name, **content["scan"]}}


def _report(job: QueuedJob, step: str, n_done: int, n_all: int) -> None:
    if job._stop:
        raise _Stopped
    if STEPS.index(step) >= STEPS.index(job.step):  # other planes of a volume go back to the first stage for a moment
        job.step, job.n_done, job.n_all = step, n_done, n_all


def _end(job: QueuedJob, state: str, error: str = "") -> None:
    for separator in ("/", "\\"):
        error = error.replace(f"{job.folder}{separator}", "")
    job.error = printable(error.replace(str(job.folder), job.name))
    job.state = state
    job.ended.set()


def _internal(error: Exception, what: str) -> str:
    # Only its type and place are logged: its text may quote a header, and so a patient.
    sentence = f"internal error, please report it ({type(error).__name__})"
    _log.error("tumorlens: %s: %s", what, sentence)
    _log.info("%s", "".join(traceback.format_tb(error.__traceback__)))
    return sentence
