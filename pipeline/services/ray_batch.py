"""`tumorlens run --ray`: the scans of a batch, in worker processes on one machine or many.

Ray starts the workers, and reports when one dies. What a scan becomes is `pipeline.batch.run`'s business, in every
worker as without Ray. We use Ray's actors, not Ray Data: its pools try a task whose worker dies again and again, for
ever, and a file that kills each worker must not stop the others.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tumorlens.data.devices import keep_freed_memory, usable_cores
from tumorlens.data.errors import InputError, needs, reason_of
from tumorlens.data.labels import ClassList
from tumorlens.data.masks.regions import Regions
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.resume import find_earlier, quarantine_record, settings_of
from tumorlens.pipeline.batch.run import BatchReport, Done, Table, Written, row_of, run_jobs, write_batch
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.outputs import QUARANTINE, TABLE
from tumorlens.pipeline.outputs.table import columns_of, error_row
from tumorlens.pipeline.outputs.write import result_text
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.services.remote import RESULT, Input, Output, Parcel, parcel_of, pull_result, push_result
from tumorlens.pipeline.services.stores import Store

MOST_TRIES = 3  # of a scan whose worker dies
_SCANS, _BYTES = 16, 64 * 2**20  # that a worker gets at once: enough to read ahead and to share batches
_CORES = 4  # of a worker; more make one scan faster, not the batch
_OBJECTS = 80 * 2**20  # bytes of Ray's store: what we send is small
_STARTS = 3  # workers in a row that may die while they load the models
_TABLE_EVERY = 60.0  # seconds
_PATIENCE = 30.0
_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a scan: its row of the table, its ``result.json``, and whether this is of an earlier call."""

    name: str
    row: dict[str, str]
    content: dict[str, Any]
    kept: bool


class Worker:
    """Holds the models, and turns parcels into files.

    Args:
        load: The models.
        options: Settings of the run.
        out: The place of the results: a folder that this process sees, or a store.
        readers: Number of threads that fetch and read scans ahead.
    """

    def __init__(self, load: LoadOptions, options: RunOptions, out: Path | Store, readers: int = 1) -> None:
        self.load, self.options, self.out, self.readers = load, options, out, readers

    def load_pipeline(self) -> Pipeline:
        """The models."""
        return Pipeline.load(**vars(self.load))

    def start(self, folder: str = "") -> tuple[ClassList, Regions, dict[str, Any]]:
        """Load the models, and return their classes and regions, and all settings of a result.

        Args:
            folder: Where relative paths of scans and models begin, in another process than the user's.

        Raises:
            InputError: The models cannot be loaded.
        """
        with suppress(OSError):  # another machine may not have it; reading will say so
            os.chdir(folder or ".")
        keep_freed_memory()
        self.pipeline = self.load_pipeline()
        self.settings = settings_of(self.pipeline, self.options)
        return self.pipeline.classes, self.pipeline.segmenter.regions, self.settings

    def run(self, parcels: Sequence[Parcel], resume: bool) -> list[Outcome]:
        """Run scans. A result that is there is kept, if `resume` is set.

        Raises:
            InputError: No later scan can be written either.
        """
        store = self.out if isinstance(self.out, Store) else None
        with ScratchFolder() as scratch:
            out = self.out if isinstance(self.out, Path) else Path(scratch) / "out"
            places = {parcel.job.name: Path(scratch) / "in" / str(n) for n, parcel in enumerate(parcels)}
            by_name = {parcel.job.name: parcel for parcel in parcels}
            there: dict[str, list[str]] = {}

            def earlier(job: Job) -> dict[str, Any] | None:
                by_name[job.name].fetch(places[job.name])
                if not resume:
                    return None
                if store:
                    there[job.name] = pull_result(store, job.folder, out / job.folder)
                return find_earlier(job, out, self.settings)

            def after(job: Job, content: dict[str, Any]) -> None:
                if store:
                    push_result(store, job.folder, out / job.folder, content["files"], there.get(job.name, ()))
                else:
                    (out / job.folder / QUARANTINE).unlink(missing_ok=True)

            rows = _Outcomes(out, store, columns_of(self.pipeline.classes, self.pipeline.segmenter.regions), there)
            jobs = [parcel.open_in(places[parcel.job.name]) for parcel in parcels]
            run_jobs(self.pipeline, jobs, out, self.options, rows, self.readers, earlier, after)
            return rows.all


@dataclass
class _Outcomes:
    """The outcomes of the scans that a worker gets at once."""

    out: Path
    store: Store | None
    columns: Sequence[str]
    there: dict[str, list[str]]

    def __post_init__(self) -> None:
        self.all: list[Outcome] = []

    def add(self, job: Job, written: Written, kept: bool) -> None:
        row, content = row_of(job, written, self.out, self.columns)
        if self.store and row["error"]:
            row["error"] = row["error"].replace(str(self.out), self.store.place)
            with suppress(InputError):  # an earlier result must not look like one of this call
                self.store.remove([name for name in self.there.get(job.name, ()) if not name.endswith(QUARANTINE)])
        self.all.append(Outcome(job.name, row, content, kept))

    def close(self, waiting: object) -> None:
        pass


class Crew(Protocol):
    """Those who run the scans."""

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        """Start, and return classes, regions and settings."""

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: Callable[[Parcel], Outcome]) -> Iterator[Outcome]:
        """The outcomes of all parcels, in any order."""


def run_with(
    crew: Crew,
    jobs: list[Job],
    inputs: Sequence[Input],
    out: Output,
    resume: bool = False,
    options: RunOptions = RunOptions(),
    done: Done | None = None,
    shared: bool = True,
) -> BatchReport:
    """Run every job, as `pipeline.batch.run.run_batch` does; results are the same, file by file.

    Args:
        crew: Runs the scans.
        jobs: From `pipeline.batch.inputs.collect`.
        inputs: Those of its inputs that lie in stores.
        out: The place of the results.
        resume: Keep results of an earlier call.
        options: Settings of the run.
        done: As in `run_batch`.
        shared: Whether the crew sees the temporary files of this process.

    Raises:
        InputError: As `run_batch`; or the store cannot be used, or no worker can be started.
    """
    classes, regions, settings = crew.start()

    def run(jobs: list[Job], table: Table) -> None:
        out.push()
        by_name = {job.name: job for job in jobs}
        pushed = time.monotonic()

        def give_up(parcel: Parcel) -> Outcome:
            job = parcel.job
            record = _record_of(parcel, settings)
            out.write(f"{job.folder}/{QUARANTINE}", json.dumps(record, indent=2) + "\n")
            return Outcome(job.name, error_row(job.name, job.with_path(record["error"]), table.columns), {}, False)

        try:
            for name, row, content, kept in crew.run([parcel_of(j, inputs, shared) for j in jobs], resume, give_up):
                if content:
                    out.note(f"{by_name[name].folder}/{RESULT}", result_text(content))
                table.add_row(by_name[name], row, content, kept and resume)
                if time.monotonic() - pushed > _TABLE_EVERY:
                    out.push([TABLE])
                    pushed = time.monotonic()
        finally:
            table.close()

    try:
        return write_batch(run, jobs, out.folder, classes, regions, resume, options, done, parquet=True)
    finally:
        out.push()


def _record_of(parcel: Parcel, settings: dict[str, Any]) -> dict[str, Any]:
    with ScratchFolder() as scratch:
        place = Path(scratch) / "in"
        with suppress(InputError):  # then it has no hash, and is tried again by the next call
            parcel.fetch(place)
        return quarantine_record(parcel.open_in(place), settings, MOST_TRIES)


@dataclass
class Here:
    """One worker, in this process: a batch without Ray whose inputs or results lie in a store."""

    worker: Worker

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        return self.worker.start()

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: Callable[[Parcel], Outcome]) -> Iterator[Outcome]:
        queue = _Queue(parcels, 1, resume)
        while not queue.empty:
            yield from self.worker.run(*queue.take())


class _Queue:
    """The parcels that nobody has taken, in order: some at once, fewer towards the end, so that all end together."""

    def __init__(self, parcels: Sequence[Parcel], n_workers: int, resume: bool) -> None:
        self.n_workers, self.resume = n_workers, resume
        self.waiting = deque(parcels)
        self.alone: deque[Parcel] = deque()  # parcels whose worker has died, with others or by their fault

    @property
    def empty(self) -> bool:
        return not (self.waiting or self.alone)

    def take(self) -> tuple[list[Parcel], bool]:
        """Some parcels, and whether results of them may be there."""
        if self.alone:
            return [self.alone.popleft()], True
        most = max(1, min(_SCANS, len(self.waiting) // (2 * self.n_workers)))
        taken, n_bytes = [self.waiting.popleft()], 0
        while self.waiting and len(taken) < most and n_bytes < _BYTES:
            n_bytes += taken[-1].n_bytes
            taken.append(self.waiting.popleft())
        return taken, self.resume


class RayCrew:
    """Workers that Ray starts, and starts again where they die.

    Args:
        ray: The package, connected to a cluster.
        make: Makes a worker, whose number of threads is given.
        load: The models, with device and threads.
        n_workers: By default one for each GPU or, without any, for every 4 cores.
    """

    def __init__(
        self, ray: Any, make: Callable[[LoadOptions], Worker], load: LoadOptions, n_workers: int | None = None
    ) -> None:
        self.ray = ray
        self.n_workers, cores, gpus = shape_of(ray.cluster_resources(), load, n_workers)
        worker = make(load if gpus or cores >= usable_cores() else replace(load, threads=cores))
        arguments = worker.load, worker.options, worker.out, worker.readers
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_restarts=0, max_task_retries=0)(type(worker))
        self._hire = lambda: remote.remote(*arguments)
        self.settings: dict[str, Any] | None = None
        self.busy: dict[Any, tuple[Any, list[Parcel]]] = {}  # reference to an answer -> worker, parcels
        self.idle: list[Any] = []
        self.dead_starts = 0

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        for _ in range(self.n_workers):
            self._add_worker()
        while True:
            actor, _, answer = self._next()
            if answer is not None:
                self.idle.append(actor)
                return answer

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: Callable[[Parcel], Outcome]) -> Iterator[Outcome]:
        queue, tries = _Queue(parcels, self.n_workers, resume), Counter[str]()
        while True:
            while self.idle and not queue.empty:
                actor = self.idle.pop()
                some, may_be_there = queue.take()
                self.busy[actor.run.remote(some, may_be_there)] = actor, some
            if queue.empty and not any(some for _, some in self.busy.values()):
                return
            actor, some, answer = self._next()
            if answer is not None:
                self.idle.append(actor)
                yield from answer if some else ()
                continue
            if len(some) == 1:  # nobody else can be blamed
                tries[some[0].job.name] += 1
            if len(some) == 1 and tries[some[0].job.name] >= MOST_TRIES:
                yield give_up(some[0])
            else:
                queue.alone.extend(some)

    def _add_worker(self) -> None:
        actor = self._hire()
        self.busy[actor.start.remote(str(Path.cwd()))] = actor, []

    def _next(self) -> tuple[Any, list[Parcel], Any]:
        """A worker, what it had to do (nothing: to start), and its answer; None if it has died, and has a successor."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self.ray.wait([*self.busy], num_returns=1, timeout=_PATIENCE)
            if not ready and self.settings is None:
                _log.warning("no worker has started yet; the cluster has no free cores, or is still starting machines")
        actor, some = self.busy.pop(ready[0])
        try:
            answer = self.ray.get(ready[0])
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                raise cause from None
            _log.warning("a worker has died; another takes its place")
            self.dead_starts += not some
            if self.dead_starts >= _STARTS:
                raise InputError(
                    f"the workers die while they load the models ({reason_of(error)}); give them more memory, or have "
                    "fewer of them with --workers"
                ) from None
            self.ray.kill(actor)
            self._add_worker()
            return actor, some, None
        if not some:
            self.dead_starts = 0
            self._check_settings(answer[1])
        return actor, some, answer

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Check that all workers compute alike, so that it makes no difference which one gets a scan."""
        if self.settings is None:
            self.settings = settings
        elif self.settings != settings:
            different = [name for name in settings if settings[name] != self.settings.get(name)]
            raise InputError(
                f"the machines of the cluster do not compute alike ({', '.join(different)}); give --device, --engine "
                "and --precision that all of them have, and install one version of tumorlens"
            )

    def end(self) -> None:
        """End all workers."""
        for actor in (*self.idle, *(actor for actor, _ in self.busy.values())):
            self.ray.kill(actor)


def shape_of(resources: dict[str, float], load: LoadOptions, n_workers: int | None) -> tuple[int, int, float]:
    """The number of workers, and the cores and GPUs of each.

    Args:
        resources: What the cluster has, as Ray reports it.
        load: Device and threads.
        n_workers: What you asked for, or None.
    """
    n_cores, n_gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    if n_gpus and load.engine != "openvino" and load.device in ("auto", "cuda"):
        n = n_workers or n_gpus
        return n, load.threads or max(1, min(_CORES, n_cores // n)), min(1.0, n_gpus / n)
    cores = load.threads or max(1, min(_CORES, n_cores // (n_workers or 1)))
    return n_workers or max(1, n_cores // cores), cores, 0


@contextmanager
def connected(address: str, n_cores: int | None = None) -> Iterator[Any]:
    """The package Ray, connected to a cluster.

    Args:
        address: ``local`` starts one on this machine, which ends with the block; ``auto`` or ``HOST:PORT`` is one that
            runs.
        n_cores: Cores of the local one, by default all.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":  # only this machine can reach it, with a token that lives as long as this process
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default any other program goes before the workers
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # a busy machine takes longer than the 20 s
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: listen on 127.0.0.1, on any system
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    with needs("--ray"):
        import ray
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL", "namespace": "tumorlens"}
    on_termination = signal.getsignal(signal.SIGTERM)
    with ScratchFolder() as scratch:
        try:
            if address == "local":
                ray.init(
                    "local",
                    num_cpus=max(usable_cores(), n_cores or 1),
                    include_dashboard=False,
                    object_store_memory=_OBJECTS,
                    _temp_dir=scratch,
                    _plasma_directory=scratch,  # /dev/shm of a container may hold 64 MB
                    **quiet,
                )
            else:
                _check_answers(address)
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises errors of many kinds
            where = "Ray cannot start on this machine" if address == "local" else f"no Ray cluster answers at {address}"
            raise InputError(f"{where} ({reason_of(error)})") from None
        # Ray prints to our standard output that a worker has died, whatever `log_to_driver` says; --json is there.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_termination)  # Ray has put its own handler there
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise an `OSError` at once if nothing answers at an address; Ray would try for more than a minute."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
