"""Many scans in one call: read ahead, run, write, go on after a failure, take up where a run was cut off."""

from __future__ import annotations

import errno
import hashlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data.cards import sha256_of
from data.errors import InputError, printable
from data.preprocess import PREPROCESS_VERSION
from data.readers import open_scan, open_series, source_files
from data.scan import Scan
from pipeline.export import csv_row, error_row, read_result, read_table, remove_result, write_result, write_table
from pipeline.inputs import Job, bare_name
from pipeline.names import TABLE
from pipeline.options import RunOptions
from pipeline.pipeline import Pipeline
from pipeline.versions import package_versions

_TABLE_EVERY_S = 5.0
_WAITING = 2  # judged scans, masks and all, whose files are still to be written
# What of a card a result depends on; all but the first two can change under the very same weights.
_OF_CLASSIFIER = ("sha256", "input_size", "normalization", "operating_point", "calibration", "conformal", "refusal")
_OF_SEGMENTER = ("sha256", "input_size", "normalization", "operating_point")
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later scan can be written either
_log = logging.getLogger(__name__)
Done = Callable[[Job, dict[str, str], dict[str, Any]], None]
_Read = tuple[Scan, dict[str, Any], float]  # the scan, what its result is made of, seconds


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


def check_output(out: Path, overwrite: bool, resume: bool) -> None:
    """Raise an `InputError` if `out` cannot take results, holds some and neither flag says what to do, or holds a table
    that is none of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; -o takes a folder")
    if (out / TABLE).exists() and not (overwrite or resume):
        raise InputError(f"{out}: results are here already; use --continue to add to them or --overwrite")
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
        jobs: From `pipeline.inputs.collect`.
        out: The output folder.
        resume: Keep scans that an earlier run finished with the same source, models and settings; without, the results
            in the table that is there are replaced.
        readers: Threads that read scans ahead.
        options: Settings of the run.
        done: Called after each job with its row and the content of its ``result.json``, empty where it failed.

    Raises:
        InputError: The output folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror})") from None
    if not resume:
        _clear(out)
    settings = _settings(pipeline, options)
    names = {job.name for job in jobs}
    earlier = [row for row in read_table(out / TABLE) if row["scan"] not in names] if resume else []
    report = BatchReport(rows=earlier)
    record = _Record(report, out, done)
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:  # files are written while the next scan is judged
        waiting: deque[tuple[Job, Future[dict[str, Any]]]] = deque()
        try:
            for job, scan in _read_ahead(jobs, out, resume, readers, options.frame, settings):
                waiting.append((job, _judged(pipeline, job, scan, out, options, writer, report)))
                while len(waiting) > _WAITING:
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


def _judged(
    pipeline: Pipeline,
    job: Job,
    scan: Future[_Read] | dict[str, Any],
    out: Path,
    options: RunOptions,
    writer: ThreadPoolExecutor,
    report: BatchReport,
) -> Future[dict[str, Any]]:
    """The content of a scan's ``result.json``, as it will be once its files are written; or the error that it met."""
    if isinstance(scan, dict):
        report.kept += 1
        return _ready(scan)
    try:
        source, made_of, seconds = scan.result()
        result = pipeline.run(source, **options.of_pipeline())
    except Exception as error:
        return _ready(error)
    result.timings_s["read"] = seconds
    return writer.submit(write_result, result, out / job.folder, job.name, made_of, options)


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


def _settings(pipeline: Pipeline, options: RunOptions) -> dict[str, Any]:
    """What a result depends on besides its source."""
    return {
        "tumorlens": package_versions()["tumorlens"],
        "classification": {key: pipeline.classifier.card.get(key) for key in _OF_CLASSIFIER},
        "segmentation": {key: pipeline.segmenter.card.get(key) for key in _OF_SEGMENTER},
        "preprocess_version": PREPROCESS_VERSION,
        "threshold": pipeline.threshold,
        "tta": pipeline.classifier.tta,
        "engine": pipeline.engine.facts(),
        **asdict(options),
    }


def _clear(out: Path) -> None:
    """Remove the results in the table of an earlier run, so that none of them is taken for one of this run."""
    for row in read_table(out / TABLE):
        for folder in {out / row["scan"], out / bare_name(row["scan"]), out / f"_{row['scan']}"}:
            if read_result(folder, row["scan"]):
                remove_result(folder)
                with suppress(OSError):  # files of the user's may lie there too
                    folder.rmdir()


def _read_ahead(
    jobs: list[Job], out: Path, resume: bool, readers: int, frame: int | None, settings: dict[str, Any]
) -> Iterator[tuple[Job, Future[_Read] | dict[str, Any]]]:
    """Jobs in order, each with the result of an earlier run or a scan that is being read."""
    with ThreadPoolExecutor(max(1, readers), thread_name_prefix="read") as pool:
        waiting: deque[tuple[Job, Future[_Read] | dict[str, Any]]] = deque()
        try:
            for job in jobs:
                earlier = _earlier(job, out, settings) if resume else None
                waiting.append((job, earlier or pool.submit(_open, job, frame, settings)))
                while len(waiting) > 2 * max(1, readers):
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _earlier(job: Job, out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the very same file, models and settings, or none."""
    if job.error or not (out / job.folder / "result.json").is_file():
        return None
    try:
        return read_result(out / job.folder, job.name, {"source_sha256": _hash(job), **settings})
    except (InputError, OSError):
        return None


def _open(job: Job, frame: int | None, settings: dict[str, Any]) -> _Read:
    if job.error:
        raise InputError(job.error)
    begun = time.perf_counter()
    scan = open_series(job.files, frame) if job.files else open_scan(job.path, frame)
    scan = replace(scan, notes=(*job.notes, *scan.notes))
    made_of = {"source_sha256": _hash(job), **settings, "frame": scan.frame}
    return scan, made_of, time.perf_counter() - begun


def _failed(job: Job, error: str, out: Path) -> dict[str, str]:
    """The row of a failure; what an earlier run left for this scan goes, it must not be taken for today's result."""
    if job.folder:
        with suppress(OSError):  # the folder may be what failed
            remove_result(out / job.folder)
    return error_row(job.name, printable(error))


def _hash(job: Job) -> str:
    """SHA-256 of a file, or of the hashes of all files that a scan has, whatever their names and order.

    Raises:
        InputError: One of them is gone.
    """
    files = job.files or tuple(source_files(job.path))
    try:
        hashes = sorted(sha256_of(file) for file in files)
    except OSError as error:
        raise InputError(f"{job.path}: cannot be read ({error.strerror or error})") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
