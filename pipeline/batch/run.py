"""Many scans in one call: open, decide, conclude, write, and add a row to ``results.csv``."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tumorlens.data.errors import InputError, is_of_the_disk, one_line
from tumorlens.data.files import claim, remove_stale_parts
from tumorlens.data.labels import ClassList
from tumorlens.data.locks import sole_writer
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.pipeline.batch.job import Job, folder_of, place_of, split_extension
from tumorlens.pipeline.batch.read_jobs import ReadJob, read_jobs
from tumorlens.pipeline.batch.reports import renew_report, report_batch, with_report
from tumorlens.pipeline.batch.resume import (
    DAMAGE,
    find_earlier,
    name_resumed_jobs,
    remove_earlier_results,
    settings_of,
)
from tumorlens.pipeline.batch.studies import Studies
from tumorlens.pipeline.case import Case
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import PARQUET, REPORT, TABLE
from tumorlens.pipeline.outputs.table import (
    append_row,
    classes_in,
    columns_of,
    csv_row,
    error_row,
    in_cell,
    read_table,
    regions_in,
    write_parquet,
    write_table,
)
from tumorlens.pipeline.outputs.write import remove_leftovers, remove_result, write_result
from tumorlens.pipeline.pipeline import Decision, Pipeline

_MOST_WAITING = 2  # scans, masks and all, whose files are still to be written
_log = logging.getLogger(__name__)
Done = Callable[[Job, dict[str, str], dict[str, Any]], None]
Written = Future[dict[str, Any]]  # the content of result.json, once the files of a scan are written


@dataclass
class BatchReport:
    """The outcome of a batch.

    Attributes:
        rows: The rows of ``results.csv``.
        failed: Number of scans with an error.
        kept: Number of scans whose earlier result still holds.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    failed: int = 0
    kept: int = 0


def check_output(out: Path, jobs: list[Job], overwrite: bool, resume: bool, options: RunOptions = RunOptions()) -> None:
    """Check, before any model is loaded, that results may be written to an output folder, and reports be made.

    Results count as well where their table has been moved away.

    Raises:
        InputError: The folder cannot be written to, holds results and neither flag says what to do with them, or holds
            a table or a report that tumorlens did not write; or no program can make the PDF that the options ask for.
    """
    if options.pdf:
        from tumorlens.pipeline.outputs.report_pdf import check_pdf

        check_pdf()
    files = [out / TABLE, *(out / job.folder / "result.json" for job in jobs)]
    there = next((file.parent for file in files if file.exists()), None)
    if there and not (overwrite or resume):
        raise InputError(f"{there}: results are here already; use --continue to add to them, or --overwrite")
    claim([out / TABLE], "a table of results", is_ours=lambda table: True, overwrite=True)
    if options.report or options.pdf:
        from tumorlens.pipeline.outputs.report_batch import is_batch_report

        claim([out / REPORT], "a report", is_ours=is_batch_report, overwrite=True)
    read_table(out / TABLE)  # raises if tumorlens did not write it


def run_batch(
    pipeline: Pipeline,
    jobs: list[Job],
    out: Path,
    resume: bool = False,
    readers: int = 1,
    options: RunOptions = RunOptions(),
    done: Done | None = None,
) -> BatchReport:
    """Run every job. A scan that fails has a row with its error, and the others are run all the same.

    Args:
        pipeline: The loaded models.
        jobs: From `pipeline.batch.inputs.collect`.
        out: The output folder.
        resume: Keep the rows of other scans, and the results of an earlier call that have the same source, models and
            settings. By default the results in the table that is there are removed.
        readers: Number of threads that read scans ahead.
        options: Settings of the run.
        done: Called after each job with the job (its name may have changed), its row, and the content of its
            ``result.json``, which is empty if the scan failed.

    Raises:
        InputError: The output folder cannot be written to, another run writes there, or its table has other classes or
            regions.
    """
    settings = settings_of(pipeline, options)

    def earlier(job: Job) -> dict[str, Any] | None:
        return find_earlier(job, out, settings) if resume else None

    def run(jobs: list[Job], table: Table) -> None:
        run_jobs(pipeline, jobs, out, options, table, readers, earlier)

    return write_batch(run, jobs, out, pipeline.classes, pipeline.segmenter.regions, resume, options, done)


def write_batch(
    run: Callable[[list[Job], Table], None],
    jobs: list[Job],
    out: Path,
    classes: ClassList,
    regions: Regions = NO_REGIONS,
    resume: bool = False,
    options: RunOptions = RunOptions(),
    done: Done | None = None,
    parquet: bool = False,
) -> BatchReport:
    """All that a batch needs beside the scans themselves: names, the rest of earlier calls, the table, the report.

    Args:
        run: Runs the jobs, whose names may have changed, and adds their rows to the table, in any order.
        jobs: As in `run_batch`, and so are the others.
        out: The output folder.
        classes: The classes of the classifier.
        regions: The regions of the segmenter.
        resume: Keep what an earlier call has done.
        options: Settings of the run.
        done: Called after each job.
        parquet: Write the table also as ``results.parquet``. One that is there is always renewed.

    Raises:
        InputError: As `run_batch`.
    """
    with sole_writer(out):
        if resume:
            _check_columns(out, classes, regions)
            jobs = name_resumed_jobs(jobs, out)
        _remove_leftovers(out, jobs)
        if not resume:
            remove_earlier_results(out)
        _say_renamed(jobs)
        table = Table(out, jobs, done, options, columns_of(classes, regions))
        try:
            run(jobs, table)
        finally:
            if parquet or (out / PARQUET).is_file():
                write_parquet(out / PARQUET, table.all_rows, table.columns)
        report_batch(out, table.all_rows, classes, options)
        return table.report


def _check_columns(out: Path, classes: ClassList, regions: Regions) -> None:
    """Check that the table of an earlier call has the classes and the regions of this one.

    Raises:
        InputError: It has others.
    """
    rows = read_table(out / TABLE)
    if not rows:
        return
    for what, stage, there, own in (
        ("classes", "classifier", classes_in(rows[0]), classes.outputs),
        ("regions", "segmenter", regions_in(rows[0]), regions.names),
    ):
        if there != own:
            raise InputError(
                f"{out / TABLE}: this table has the {what} {', '.join(there) or 'none'}, this {stage} "
                f"{', '.join(own) or 'none'}; choose another -o, or --overwrite"
            )


def _remove_leftovers(out: Path, jobs: list[Job]) -> None:
    """Remove what earlier runs that were killed left half-written in the output folder."""
    remove_stale_parts(out)
    for folder in {job.folder for job in jobs} | {folder_of(row["scan"]) for row in read_table(out / TABLE)}:
        remove_leftovers(out / folder)


class Rows(Protocol):
    """What takes the outcome of each scan."""

    def add(self, job: Job, written: Written, kept: bool) -> None:
        """Take a scan whose files are written or were kept, or whose error `written` raises."""

    def close(self, waiting: deque[_Waiting]) -> None:
        """End; some scans that were finished may not have been added."""


def run_jobs(
    pipeline: Pipeline,
    jobs: list[Job],
    out: Path,
    options: RunOptions,
    rows: Rows,
    readers: int = 1,
    earlier: Callable[[Job], dict[str, Any] | None] = lambda job: None,
    after: Callable[[Job, dict[str, Any]], None] = lambda job, content: None,
) -> None:
    """Read, decide, conclude and write scan after scan, each step while the next scans are at the steps before.

    Args:
        pipeline: The loaded models.
        jobs: The scans.
        out: The folder for their folders.
        options: Settings of the run.
        rows: Gets the outcome of each scan.
        readers: Number of threads that read scans ahead.
        earlier: Returns the result of an earlier call that still holds, or None. It runs in a thread that reads.
        after: Called with the content of each new ``result.json`` once all files are there.
    """
    settings = settings_of(pipeline, options)

    def conclude_and_write(reading: ReadJob, decision: Decision | Exception | None) -> dict[str, Any]:
        if isinstance(decision, Exception):
            raise decision
        job, content = reading.job, reading.earlier
        if content is None:
            assert reading.case is not None and decision is not None
            result = pipeline.conclude(reading.case, decision, options.maps)
            content = write_result(result, out / job.folder, job.name, reading.made_of, options, place_of(job))
            content = with_report(content, out / job.folder, options)
            after(job, content)
            return content
        return with_report(content, out / job.folder, options)

    waiting: deque[_Waiting] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:  # while the networks see the next scans
        try:
            for group in read_jobs(jobs, pipeline.classifier.input_size, options, settings, readers, earlier):
                for reading, decision in zip(group, _decide(pipeline, group, options), strict=True):
                    written = writer.submit(conclude_and_write, reading, decision)
                    kept = reading.earlier is not None
                    added = writer.submit(rows.add, reading.job, written, kept)
                    waiting.append(_Waiting(reading.job, written, added))
                while len(waiting) > _MOST_WAITING + len(group):
                    _wait_for_first(waiting)
            while waiting:
                _wait_for_first(waiting)
        except BaseException:  # also when you stop the run: every result has its row
            try:
                writer.shutdown(wait=True, cancel_futures=True)
            finally:
                with suppress(InputError):  # the first reason to stop is the one to tell
                    rows.close(waiting)
            raise
    rows.close(waiting)


@dataclass(frozen=True)
class _Waiting:
    """A scan on its way to the disk: first its files are written, then its row is added, by the same thread."""

    job: Job
    written: Written
    added: Future[None]


def _wait_for_first(waiting: deque[_Waiting]) -> None:
    """Wait until the first scan has its row.

    Raises:
        InputError: No later scan can be written either.
    """
    wait([waiting[0].added])  # before it leaves the queue: if you stop the run here, `close` adds its row
    waiting.popleft().added.result()


def _say_renamed(jobs: list[Job]) -> None:
    for job in jobs:
        if job.plain_name not in ("", job.name) and not job.error:
            path = one_line(job.shown_path())
            folder = split_extension(job.plain_name)[0]
            _log.warning("%s: the name of %s, because another scan has the folder %s", job.name, path, folder)


def _decide(pipeline: Pipeline, group: list[ReadJob], options: RunOptions) -> list[Decision | Exception | None]:
    """The decision about each scan, or the error of its reading or of the networks; None for an earlier result."""
    decisions = iter(_decide_cases(pipeline, [r.case for r in group if r.case is not None], options))
    return [reading.error if reading.case is None else next(decisions) for reading in group]


def _decide_cases(pipeline: Pipeline, cases: list[Case], options: RunOptions) -> list[Decision | Exception]:
    """All cases at once. If that fails, one by one, so that a scan's fault costs no other scan."""
    if not cases:
        return []
    try:
        return list(pipeline.decide(cases, options.force, options.explain, options.maps))
    except Exception as error:
        if len(cases) == 1:
            return [error]
        return [decision for case in cases for decision in _decide_cases(pipeline, [case], options)]


class Table:
    """``results.csv``, to which each row is added at once, so that a run that is killed loses none.

    Rows of an earlier call stay: those of other scans before the new ones, and those of jobs until they are done.
    """

    def __init__(
        self, out: Path, jobs: list[Job], done: Done | None, options: RunOptions, columns: Sequence[str]
    ) -> None:
        self.out, self.done, self.options, self.columns = out, done, options, columns
        rows = read_table(out / TABLE)
        self._places = names = {job.name: n for n, job in enumerate(jobs)}
        self.report = BatchReport([row for row in rows if row["scan"] not in names])
        self._to_do = {row["scan"]: row for row in rows if row["scan"] in names}
        self._studies = Studies()
        if (out / TABLE).is_file():
            self._write()  # without what a killed run left half-written

    def add(self, job: Job, written: Written, kept: bool = False) -> None:
        """Add the row of a scan whose files are written, or could not be.

        Raises:
            InputError: No later scan can be written either.
        """
        self.add_row(job, *row_of(job, written, self.out, self.columns), kept)

    def add_row(self, job: Job, row: dict[str, str], content: dict[str, Any], kept: bool = False) -> None:
        """Add a row, with the content of the scan's ``result.json``.

        Raises:
            InputError: No later scan can be written either.
        """
        self.report.kept += kept
        if content:
            self._studies.add(job, content)
        _log.info("%s: %s", job.name, row["error"] or f"{row['label']} {row['confidence']}")
        self.report.failed += bool(row["error"])
        self._add(job, row)
        if self.done:
            self.done(job, row, content)

    def close(self, waiting: Iterable[_Waiting] = ()) -> None:
        """Write the table, with the rows of scans that were finished but not yet added, and compare studies."""
        for scan in waiting:
            written = scan.written
            if scan.added.cancelled() and not written.cancelled() and written.exception() is None:
                row, content = row_of(scan.job, written, self.out, self.columns)
                self._studies.add(scan.job, content)
                self._add(scan.job, row)
        self.report.rows.sort(key=lambda row: self._places.get(row["scan"], -1))
        changed = self._studies.compare(self.out)
        for row in self.report.rows:
            if row["scan"] in changed:
                row["review"] = in_cell(changed[row["scan"]])
                with suppress(*DAMAGE):  # the result stands without it
                    renew_report(self.out / folder_of(row["scan"]), self.options)
        self._write()

    def _add(self, job: Job, row: dict[str, str]) -> None:
        self.report.rows.append(row)
        earlier = self._to_do.pop(row["scan"], None)
        if not (self.out / TABLE).is_file():  # the first row, or you have moved the table away
            self._write()
            return
        if row == earlier:  # it is there
            return
        try:
            append_row(self.out / TABLE, row)
        except OSError as error:
            raise _hopeless(self.out, job, error) from None

    def _write(self) -> None:
        try:
            write_table(self.out / TABLE, self.all_rows, self.columns)
        except OSError as error:
            raise InputError(f"{self.out / TABLE}: cannot be written ({error.strerror})") from None

    @property
    def all_rows(self) -> list[dict[str, str]]:
        """The rows of this call and of earlier ones."""
        return [*self.report.rows, *self._to_do.values()]


def row_of(job: Job, written: Written, out: Path, columns: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The row of a scan whose files are written, or could not be, and the content of its ``result.json``, or nothing.

    Raises:
        InputError: No later scan can be written either.
    """
    try:
        content = written.result()
        return csv_row(content), content
    except InputError as error:
        message = job.with_path(str(error))
    except OSError as error:  # reading raises InputError, so the output is the problem
        if is_of_the_disk(error):
            raise _hopeless(out, job, error) from None
        message = f"{out / job.folder}: cannot be written ({error.strerror or error})"
    except Exception as error:  # a fault of ours must not cost you the rest of the batch
        # Only its type and place: its text may quote a header, and so a patient.
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.info("internal error in %s: %s\n%s", job.path, type(error).__name__, where)
        message = job.with_path(f"internal error, please report it ({type(error).__name__})")
    with suppress(OSError, InputError):  # the folder may be what failed
        remove_result(out / job.folder)  # an earlier result must not look like one of this call
    return error_row(job.name, one_line(message), columns), {}


def _hopeless(out: Path, job: Job, error: OSError) -> InputError:
    return InputError(f"{out}: {error.strerror}; stopped at {job.name}, go on with --continue")
