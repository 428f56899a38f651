"""Batches whose inputs or results lie in a store, or whose scans a cluster runs: `tumorlens run --ray`, or with a URL.

What a scan becomes is `pipeline.batch.run`'s business, in every worker as without one.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

from tumorlens.data.devices import keep_freed_memory
from tumorlens.data.errors import InputError
from tumorlens.data.labels import ClassList
from tumorlens.data.masks.regions import Regions
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_jobs import hash_of
from tumorlens.pipeline.batch.resume import find_earlier, quarantine_record, settings_of
from tumorlens.pipeline.batch.run import BatchReport, Done, Table, Written, row_of, run_jobs, write_batch
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.outputs import QUARANTINE, TABLE
from tumorlens.pipeline.outputs.table import columns_of, error_row
from tumorlens.pipeline.outputs.write import result_text
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.services.stores.mirror import Input
from tumorlens.pipeline.services.stores.output import RESULT, Output, pull_result, push_result
from tumorlens.pipeline.services.stores.parcel import Parcel, parcel_of
from tumorlens.pipeline.services.stores.store import Store

MOST_TRIES = 3  # of a scan whose worker dies
START_SECONDS = 600.0  # to load the models
_SCANS, _BYTES = 16, 64 * 2**20  # that a worker gets at once: enough to read ahead and to share batches
_TABLE_EVERY = 60.0  # seconds
_HASH_SECONDS = 60.0  # to read a scan that has killed its workers


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
        seconds: Its process ends if one scan takes longer, or the models `START_SECONDS`. Infinite, so that neither
            counts, for a worker in the process of the user.
    """

    def __init__(
        self,
        load: LoadOptions,
        options: RunOptions,
        out: Path | Store,
        readers: int = 1,
        seconds: float = math.inf,
    ) -> None:
        self.load, self.options, self.out, self.readers, self.seconds = load, options, out, readers, seconds

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
        with _alarm(START_SECONDS if self.seconds < math.inf else math.inf):
            self.pipeline = self.load_pipeline()
        self.settings = settings_of(self.pipeline, self.options)
        return self.pipeline.classes, self.pipeline.segmenter.regions, self.settings

    def run(self, parcels: Sequence[Parcel], resume: bool) -> list[Outcome]:
        """Run scans. A result that is there is kept, if `resume` is set.

        Raises:
            InputError: No later scan can be written either.
        """
        store = self.out if isinstance(self.out, Store) else None
        with ScratchFolder() as scratch, _alarm(self.seconds) as set_alarm:
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
                return find_earlier(job, out, self.settings, self.seconds)

            def after(job: Job, content: dict[str, Any]) -> None:
                if store:
                    push_result(store, job.folder, out / job.folder, content["files"], there.get(job.name, ()))
                else:
                    (out / job.folder / QUARANTINE).unlink(missing_ok=True)

            columns = columns_of(self.pipeline.classes, self.pipeline.segmenter.regions)
            rows = _Outcomes(out, store, columns, there, set_alarm)
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
    set_alarm: Callable[[], None]

    def __post_init__(self) -> None:
        self.all: list[Outcome] = []

    def add(self, job: Job, written: Written, kept: bool) -> None:
        row, content = row_of(job, written, self.out, self.columns)
        if self.store and row["error"]:
            row["error"] = row["error"].replace(str(self.out), self.store.place)
            with suppress(InputError):  # an earlier result must not look like one of this call
                self.store.remove([name for name in self.there.get(job.name, ()) if not name.endswith(QUARANTINE)])
        self.all.append(Outcome(job.name, row, content, kept))
        self.set_alarm()

    def close(self, waiting: object) -> None:
        pass


@contextmanager
def _alarm(seconds: float) -> Iterator[Callable[[], None]]:
    """A block that ends this process if it takes longer; call what it yields, and the time starts again.

    This also ends native code that holds Python's lock. The log of the process says where it was.
    """
    if seconds == math.inf:
        yield lambda: None
        return

    def start() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True)

    start()
    try:
        yield start
    finally:
        faulthandler.cancel_dump_traceback_later()


# From a scan that has ended its workers to its outcome; with the seconds that it may take, if it took longer.
GiveUp = Callable[[Parcel, float | None], Outcome]


class Crew(Protocol):
    """Those who run the scans."""

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        """Start, and return classes, regions and settings."""

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: GiveUp) -> Iterator[Outcome]:
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

        records: list[tuple[Thread, Job, dict[str, Any]]] = []

        def give_up(parcel: Parcel, job_seconds: float | None) -> Outcome:
            job = parcel.job
            record = quarantine_record(job, settings, MOST_TRIES, job_seconds)

            def add_hash() -> None:
                record["made_of"]["source_sha256"] = _hash_of(parcel)

            thread = Thread(target=add_hash, name="record", daemon=True)  # the other scans do not wait for it
            thread.start()
            records.append((thread, job, record))
            return Outcome(job.name, error_row(job.name, job.with_path(record["error"]), table.columns), {}, False)

        def write_records(unfinished: bool) -> None:
            for one in [one for one in records if unfinished or not one[0].is_alive()]:
                records.remove(one)
                _, job, record = one
                out.write(f"{job.folder}/{QUARANTINE}", json.dumps(record, indent=2) + "\n")

        with closing(table), _in_any_case(lambda: write_records(unfinished=True)):  # then some lack their hash
            for name, row, content, kept in crew.run([parcel_of(j, inputs, shared) for j in jobs], resume, give_up):
                if content:
                    out.note(f"{by_name[name].folder}/{RESULT}", result_text(content))
                table.add_row(by_name[name], row, content, kept and resume)
                write_records(unfinished=False)
                if time.monotonic() - pushed > _TABLE_EVERY:
                    out.push([TABLE])
                    pushed = time.monotonic()
            for thread, _, _ in records:
                thread.join()

    with _in_any_case(out.push):
        return write_batch(run, jobs, out.folder, classes, regions, resume, options, done, parquet=True)


@contextmanager
def _in_any_case(action: Callable[[], None]) -> Iterator[None]:
    """Run an action after a block, even if the block fails. The block's own error is the one that is raised."""
    try:
        yield
    except BaseException:
        with suppress(InputError, OSError):
            action()
        raise
    action()


def _hash_of(parcel: Parcel) -> str | None:
    """The hash of a scan's content; None if it cannot be read, or not in time."""
    found: list[str] = []

    def read() -> None:
        with suppress(InputError, OSError), ScratchFolder() as scratch:
            place = Path(scratch) / "in"
            parcel.fetch(place)
            found.append(hash_of(parcel.open_in(place)))

    # A daemon: the store that has kept a worker waiting for ever must not keep this process.
    thread = Thread(target=read, name="hash", daemon=True)
    thread.start()
    thread.join(_HASH_SECONDS)
    return found[0] if found else None


@dataclass
class Here:
    """One worker, in this process: a batch without Ray whose inputs or results lie in a store."""

    worker: Worker

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        return self.worker.start()

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: GiveUp) -> Iterator[Outcome]:
        queue = Queue(parcels, 1, resume)
        while not queue.empty:
            yield from self.worker.run(*queue.take())


class Queue:
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
