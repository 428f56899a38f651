"""Many scans in one call: read ahead, run, write, go on after a failure, take up where a run was cut off."""

from __future__ import annotations

import errno
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError, printable
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_ahead import Opened, Reading, read_ahead
from tumorlens.pipeline.batch.resume import (
    beside_earlier,
    earlier_result,
    place_of,
    remove_earlier_results,
    settings_of,
)
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import TABLE
from tumorlens.pipeline.outputs.table import csv_row, error_row, read_table, write_table
from tumorlens.pipeline.outputs.write import remove_result, write_result
from tumorlens.pipeline.pipeline import Decision, Pipeline

_TABLE_EVERY_S = 5.0
_WAITING = 2  # judged scans, masks and all, whose files are still to be written
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later scan can be written either
_log = logging.getLogger(__name__)
Done = Callable[[Job, dict[str, str], dict[str, Any]], None]


@dataclass
class BatchReport:
    """What became of a batch.

    Attributes:
        rows: The rows of ``results.csv``.
        failed: Number of scans with an error.
        kept: Number of scans left as an earlier run had finished them.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    failed: int = 0
    kept: int = 0


def check_output(out: Path, jobs: list[Job], overwrite: bool, resume: bool) -> None:
    """Raise an `InputError` if `out` cannot take results, holds some and neither flag says what to do, or holds a table
    that is none of ours. Results count as well where the table has been moved away."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; -o takes a folder")
    if (out / TABLE).exists() and not (overwrite or resume):
        raise InputError(f"{out}: results are here already; use --continue to add to them or --overwrite")
    there = next((out / job.folder for job in jobs if job.folder and (out / job.folder / "result.json").exists()), None)
    if there and not (overwrite or resume):
        raise InputError(f"{there}: a result is here already; use --continue to add to it or --overwrite")
    read_table(out / TABLE)  # raises if it is none of ours


def run_batch(
    pipeline: Pipeline,
    jobs: list[Job],
    out: Path,
    resume: bool = False,
    readers: int = 1,
    options: RunOptions = RunOptions(),
    done: Done | None = None,
) -> BatchReport:
    """Run every job; a failure is a row with its error, and the others are done.

    Args:
        pipeline: The loaded models.
        jobs: From `pipeline.batch.inputs.collect`.
        out: The output folder.
        resume: Keep scans that an earlier run finished with the same source, models and settings; without, the results
            in the table that is there are replaced.
        readers: Threads that read scans ahead.
        options: Settings of the run.
        done: Called after each job, with the name and folder that it got, its row and the content of its
            ``result.json``, empty where it failed.

    Raises:
        InputError: The output folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror})") from None
    if not resume:
        remove_earlier_results(out)
    else:
        jobs = beside_earlier(jobs, out)
    settings = settings_of(pipeline, options)
    names = {job.name for job in jobs}
    earlier = [row for row in read_table(out / TABLE) if row["scan"] not in names] if resume else []
    report = BatchReport(rows=earlier)
    record = _Record(report, out, done)
    kept = (lambda job: earlier_result(job, out, settings)) if resume else (lambda job: None)
    groups = read_ahead(jobs, pipeline.classifier.input_size, options, settings, readers, kept)
    desk = _Desk(pipeline, out, options, report)
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:  # files are written while the next are judged
        waiting: deque[tuple[Job, Future[dict[str, Any]]]] = deque()
        try:
            for group in groups:
                waiting.extend(desk.judge(group, writer))
                while len(waiting) > _WAITING + len(group):
                    _take_first(waiting, record)
            while waiting:
                _take_first(waiting, record)
        finally:  # also when the user stops the run: what is done stays on record
            try:
                writer.shutdown(wait=True, cancel_futures=True)
            finally:
                record.close(waiting)
    return report


def _take_first(waiting: deque[tuple[Job, Future[dict[str, Any]]]], record: _Record) -> None:
    wait([waiting[0][1]])  # before it leaves the queue: who stops the run here must not lose its row
    record.take(*waiting.popleft())


class _Desk:
    """Where scans that were read meet the networks."""

    def __init__(self, pipeline: Pipeline, out: Path, options: RunOptions, report: BatchReport) -> None:
        self.pipeline, self.out, self.options, self.report = pipeline, out, options, report

    def judge(self, group: list[Reading], writer: ThreadPoolExecutor) -> Iterator[tuple[Job, Future[dict[str, Any]]]]:
        """For each scan the content of its ``result.json``, as it will be once its files are written; or the error that
        it met."""
        opened: dict[int, Opened] = {}
        futures: dict[int, Future[dict[str, Any]]] = {}
        for n, (_, reading) in enumerate(group):
            if isinstance(reading, dict):
                self.report.kept += 1
                futures[n] = _ready(reading)
                continue
            try:
                opened[n] = reading.result()
            except Exception as error:
                futures[n] = _ready(error)
        decisions = dict(zip(opened, self._decide([one.case for one in opened.values()]), strict=True))
        for n, (job, _) in enumerate(group):  # one by one, so that whoever stops the run loses no row that is written
            yield job, futures[n] if n in futures else self._submit(job, opened[n], decisions[n], writer)

    def _submit(
        self, job: Job, opened: Opened, decision: Decision | Exception, writer: ThreadPoolExecutor
    ) -> Future[dict[str, Any]]:
        if isinstance(decision, Exception):
            return _ready(decision)
        return writer.submit(self._conclude, job, opened, decision)

    def _decide(self, cases: list[Case]) -> list[Decision | Exception]:
        """All at once; where that fails, one by one, so that a scan's fault costs no other scan."""
        if not cases:
            return []
        try:
            return list(self.pipeline.decide(cases, self.options.force, self.options.explain))
        except Exception as error:
            if len(cases) == 1:
                return [error]
            return [decision for case in cases for decision in self._decide([case])]

    def _conclude(self, job: Job, opened: Opened, decision: Decision) -> dict[str, Any]:
        result, folder = self.pipeline.conclude(opened.case, decision), self.out / job.folder
        return write_result(result, folder, job.name, opened.made_of, self.options, place_of(job))


def _ready(outcome: dict[str, Any] | Exception) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


class _Record:
    """The table of a batch, kept up to date on disk."""

    def __init__(self, report: BatchReport, out: Path, done: Done | None) -> None:
        self.report, self.out, self.done = report, out, done
        self._written = time.monotonic()

    def take(self, job: Job, outcome: Future[dict[str, Any]]) -> None:
        """Wait for a scan's files and add its row.

        Raises:
            InputError: No later scan can be written either.
        """
        row, content = self._row(job, outcome)
        _log.info("%s: %s", job.name, row["error"] or f"{row['label']} {row['confidence']}")
        self.report.failed += bool(row["error"])
        self.report.rows.append(row)
        if self.done:
            self.done(job, row, content)
        if time.monotonic() - self._written > _TABLE_EVERY_S:
            write_table(self.out / TABLE, self.report.rows)
            self._written = time.monotonic()

    def close(self, waiting: Iterable[tuple[Job, Future[dict[str, Any]]]]) -> None:
        """Write the table, with what was finished although nobody waited for it any more."""
        for job, outcome in waiting:
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                self.report.rows.append(self._row(job, outcome)[0])
        try:
            write_table(self.out / TABLE, self.report.rows)
        except OSError as error:
            raise InputError(f"{self.out / TABLE}: cannot be written ({error.strerror})") from None

    def _row(self, job: Job, outcome: Future[dict[str, Any]]) -> tuple[dict[str, str], dict[str, Any]]:
        out = self.out
        try:
            content = outcome.result()
            return csv_row(content), content
        except InputError as error:
            return _failed(job, job.told(str(error)), out), {}
        except OSError as error:  # reading raises InputError, so this is the output's
            if error.errno in _HOPELESS:
                raise InputError(f"{out}: {error.strerror}; stopped at {job.name}, go on with --continue") from None
            return _failed(job, f"{out / job.folder}: cannot be written ({error.strerror or error})", out), {}
        except Exception as error:  # a fault of ours must not cost the user the rest of the batch
            # Its type and place alone: its text may quote a header, and with it a patient.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.info("internal error in %s: %s\n%s", job.path, type(error).__name__, where)
            return _failed(job, job.told(f"internal error, please report it ({type(error).__name__})"), out), {}


def _failed(job: Job, error: str, out: Path) -> dict[str, str]:
    """The row of a failure; what an earlier run left for this scan goes, it must not be taken for today's result."""
    if job.folder:
        with suppress(OSError, InputError):  # the folder may be what failed
            remove_result(out / job.folder)
    return error_row(job.name, printable(error))
