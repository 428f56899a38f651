"""`Spool`: jobs that survive the end of the process, as rows of an SQLite file with their files beside it.

A job is accepted once its row is committed: its files lie in the spool by then. Its end is one transaction, after its
results are written whole. So a process that is killed loses no job and ends none twice.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError, printable
from tumorlens.data.files import flush
from tumorlens.data.locks import sole_writer
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING

REST, DICOM = "rest", "dicom"  # where jobs come from
_OWNERS = {REST: "tumorlens serve", DICOM: "tumorlens dicom-node"}
MOST_RUNS = 3  # a job that was running so often when the process died is not run again
MOST_WAITING = 1000
_DATABASE = "jobs.sqlite"
_MARK = "running"  # a file that is there while jobs run, and after a kill
_VERSION = 1  # of the table
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, state TEXT NOT NULL,
    options TEXT NOT NULL, details TEXT NOT NULL, accepted REAL NOT NULL, begun REAL, ended REAL,
    runs INTEGER NOT NULL DEFAULT 0, stop INTEGER NOT NULL DEFAULT 0, unwanted INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '', scans TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX jobs_in_state ON jobs (state, number);
"""
_COLUMNS = "id, source, state, options, details, accepted, begun, ended, runs, stop, error, scans"
_log = logging.getLogger(__name__)
_IS_ID = re.compile("[0-9a-f]{32}").fullmatch


class FullError(InputError):
    """So many jobs are waiting that no other is accepted."""


@dataclass(frozen=True)
class Arrival:
    """A job whose files are still coming.

    Attributes:
        id: Its name in addresses; nobody can guess it.
        source: Where it comes from: ``rest``, ``dicom``.
        folder: Where you write its files; only this user of the machine may enter it.
    """

    id: str
    source: str
    folder: Path


@dataclass(frozen=True)
class StoredJob:
    """An accepted job, as its row says.

    Attributes:
        id: Its name in addresses.
        source: Where it comes from.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        options: Fields of `pipeline.options.RunOptions` that differ from the defaults.
        details: Whatever the source needs to know about it, as plain values.
        folder: Its own folder.
        accepted: When it was accepted, in seconds since 1970; `begun` and `ended` likewise. While its files are
            fetched, it is running and not begun.
        runs: How often it was begun.
        stop: Whether somebody has cancelled it while it was running.
        error: Why it failed, in one sentence without paths and names.
        scans: What became of each scan in it: ``name``, ``error``, ``folder`` (below `results`), ``files``, ``label``,
            ``confidence``, ``source_sha256``.
    """

    id: str
    source: str
    state: str
    options: dict[str, Any]
    details: dict[str, Any]
    folder: Path
    accepted: float
    begun: float | None = None
    ended: float | None = None
    runs: int = 0
    stop: bool = False
    error: str = ""
    scans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> Path:
        """The folder of its files, as they came."""
        return self.folder / "source"

    @property
    def results(self) -> Path:
        """The folder of its results, one folder for each scan."""
        return self.folder / "results"


def is_elsewhere(job: StoredJob) -> bool:
    """Whether the files of a job must be fetched first."""
    return "dicomweb" in job.details


class Spool:
    """Jobs in a folder. One process at a time uses it (`data.locks.sole_writer`), any of its threads may.

    Attributes:
        folder: The folder.
        most_waiting: So many jobs may wait.
        changed: Notified whenever a job is accepted, has ended or is cancelled; wait on it with a timeout.
    """

    def __init__(self, folder: Path, most_waiting: int = MOST_WAITING, lasting: bool = True) -> None:
        """Args:
        folder: Made if it is missing.
        most_waiting: So many jobs may wait.
        lasting: Whether jobs are remembered after the end of the process.

        Raises:
            InputError: The file of jobs is damaged, from a later version, or cannot be written.
        """
        self.folder, self.most_waiting, self._lasting = folder, most_waiting, lasting
        self.changed = threading.Condition(threading.RLock())
        self._jobs = folder / "jobs"
        try:
            self._jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = str(folder / _DATABASE) if lasting else ":memory:"
            self._db = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
            if lasting:
                (folder / _DATABASE).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut, too
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if version > _VERSION:
                raise InputError(f"{folder / _DATABASE}: written by a later version of tumorlens; update this one")
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{folder}: the jobs cannot be read or written ({reason}); choose another --spool"
            ) from None

    def close(self) -> None:
        """Close the file of jobs."""
        with self.changed:
            self._db.close()

    # A job on its way in ----------------------------------------------------------------------------------------

    def receive(self, source: str) -> Arrival:
        """A new job whose files you write into its folder. It counts once you `accept` it.

        Raises:
            FullError: Too many jobs are waiting.
        """
        self.check_room()
        arrival = self._arrival(source, secrets.token_hex(16))
        with self._problems_named():
            arrival.folder.parent.mkdir(mode=0o700)
            arrival.folder.mkdir(mode=0o700)
        return arrival

    def check_room(self) -> None:
        """Raises:
        FullError: Too many jobs are waiting.
        """
        n = self.counts().get(WAITING, 0)
        if n >= self.most_waiting:
            raise FullError(f"{n} jobs are waiting, and {self.most_waiting} may; try again later")

    def accept(
        self, arrival: Arrival, options: dict[str, Any] | None = None, details: dict[str, Any] | None = None
    ) -> StoredJob:
        """Accept a job whose files are all there. When this returns, the job survives the end of the process.

        Args:
            arrival: From `receive`, or one of `unaccepted`.
            options: Fields of `pipeline.options.RunOptions` that differ from the defaults.
            details: Whatever the source needs to know later; see `set_details`.

        Raises:
            InputError: A file cannot be brought onto the disk, or the file of jobs cannot be written.
        """
        with self._problems_named():
            _flush_all(arrival.folder.parent)
            flush(self._jobs)
        with self._write() as db:
            db.execute(
                "INSERT INTO jobs (id, source, state, options, details, accepted) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    arrival.id,
                    arrival.source,
                    WAITING,
                    json.dumps(options or {}),
                    json.dumps(details or {}),
                    time.time(),
                ),
            )
        job = self.job(arrival.id)
        assert job is not None
        return job

    def discard(self, arrival: Arrival) -> None:
        """Delete a job that is not accepted."""
        shutil.rmtree(arrival.folder.parent, ignore_errors=True)

    def unaccepted(self, source: str) -> list[Arrival]:
        """The jobs of a source that were never accepted: those on their way in, and those of a killed process."""
        places = sorted(place.name.partition(".") for place in self._jobs.glob(f"{source}.*"))
        return [self._arrival(source, id) for _, _, id in places if _IS_ID(id) and not self._select("id = ?", (id,))]

    # What others may know ---------------------------------------------------------------------------------------

    def job(self, id: str) -> StoredJob | None:
        """The job with an id, or None."""
        found = self._select("id = ? AND NOT unwanted", (id,))
        return found[0] if found else None

    def jobs(self, source: str | None = None, state: str | None = None, most: int = -1) -> list[StoredJob]:
        """The jobs of a source, in a state, or both; the newest first, and not more than you ask for."""
        return self._select(
            "(?1 IS NULL OR source = ?1) AND (?2 IS NULL OR state = ?2) AND NOT unwanted ORDER BY number DESC LIMIT ?3",
            (source, state, most),
        )

    def counts(self) -> dict[str, int]:
        """State -> number of jobs."""
        with self.changed, self._problems_named():
            return dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def position(self, id: str) -> int:
        """How many jobs wait before this one; 0 for one that is not waiting."""
        with self.changed, self._problems_named():
            row = self._db.execute(
                "SELECT count(*) FROM jobs, (SELECT number AS own FROM jobs WHERE id = ? AND state = ?)"
                " WHERE state = ? AND number < own",
                (id, WAITING, WAITING),
            ).fetchone()
        return int(row[0])

    # What becomes of a job --------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Make good what a process that was killed left behind; call it once, before any `claim`.

        Jobs that were running wait again, unless they were running `MOST_RUNS` times when the process died, without
        `note_stop`. Those whose files were being fetched are not blamed for it beside others. What never was accepted
        through the REST service is deleted.
        """
        died = f"the server died {MOST_RUNS} times while it ran this scan, so it is not run again"
        self._remove("unwanted", ())
        with self._write() as db:
            if not (self.folder / _MARK).exists():
                db.execute("UPDATE jobs SET runs = runs - 1 WHERE state = ?", (RUNNING,))
            elif db.execute("SELECT 1 FROM jobs WHERE state = ? AND begun", (RUNNING,)).fetchone():
                db.execute("UPDATE jobs SET runs = runs - 1 WHERE state = ? AND begun IS NULL", (RUNNING,))
            end = "UPDATE jobs SET state = ?, error = ?, ended = ? WHERE state = ? AND"
            db.execute(f"{end} stop", (CANCELLED, "", time.time(), RUNNING))
            db.execute(f"{end} runs >= ?", (FAILED, died, time.time(), RUNNING, MOST_RUNS))
            db.execute("UPDATE jobs SET state = ?, begun = NULL WHERE state = ?", (WAITING, RUNNING))
            known = {id for (id,) in db.execute("SELECT id FROM jobs")}
        with self._problems_named():
            if self._lasting:
                (self.folder / _MARK).touch()
        for place in self._jobs.iterdir():
            source, _, id = place.name.partition(".")
            if source == REST and id not in known:
                shutil.rmtree(place, ignore_errors=True)

    def note_stop(self) -> None:
        """Note that no running job is to blame for the end of this process. It needs no room on the disk."""
        with suppress(OSError):
            (self.folder / _MARK).unlink(missing_ok=True)

    def claim(
        self, most: int, most_elsewhere: int = 0, but: Collection[str] = (), fetched: Collection[str] = ()
    ) -> list[StoredJob]:
        """Waiting jobs, the oldest first, which are running from now on.

        A job that was running when the process died runs alone, so that no other is taken for the one that kills it.
        To fetch its files is not to run it: a slow server would keep all others waiting.

        Args:
            most: So many whose files are here.
            most_elsewhere: So many of those with `is_elsewhere`. Put them back once their files are here.
            but: Jobs whose turn has not come.
            fetched: Jobs whose files are here by now.
        """
        left = {False: most, True: most_elsewhere}
        if max(left.values()) < 1:
            return []
        with self._write() as db:
            running = [runs for (runs,) in db.execute("SELECT runs FROM jobs WHERE state = ? AND begun", (RUNNING,))]
            if any(runs > 1 for runs in running):
                return []
            rows = db.execute(
                "SELECT id, runs, json_extract(details, '$.dicomweb') IS NOT NULL FROM jobs WHERE state = ?"
                " ORDER BY number",
                (WAITING,),
            ).fetchall()
            begun: dict[str, float | None] = {}
            for id, runs, elsewhere in rows:
                is_away = bool(elsewhere) and id not in fetched
                if id in but:
                    continue
                if runs and not is_away:
                    begun |= {id: time.time()} if not any(begun.values()) and not running else {}
                    break
                if left[is_away] > 0:
                    begun[id] = None if is_away else time.time()
                    left[is_away] -= 1
            for id, when in begun.items():
                db.execute("UPDATE jobs SET state = ?, begun = ?, runs = runs + 1 WHERE id = ?", (RUNNING, when, id))
        return [job for id in begun if (job := self.job(id)) is not None]

    def put_back(self, id: str) -> None:
        """Let a running job wait again in its old place, as if it had not been begun. It may still `finish`.

        One that somebody has cancelled has ended.
        """
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = iif(stop, ?, ?), ended = iif(stop, ?, NULL), begun = NULL, runs = runs - 1"
                " WHERE id = ? AND state = ?",
                (CANCELLED, WAITING, time.time(), id, RUNNING),
            )

    def finish(self, id: str, state: str, error: str = "", scans: Sequence[dict[str, Any]] = ()) -> None:
        """End a job that was begun, and whose results are on the disk. If somebody has deleted it, its files go now.

        Raises:
            InputError: The file of jobs cannot be written; the job has not ended.
        """
        job = self.job(id)
        if job is not None and state == DONE and job.results.is_dir():
            with self._problems_named():
                _flush_all(job.results)
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = ?, error = ?, scans = ?, ended = ? WHERE id = ? AND state IN (?, ?)",
                (state, printable(error), json.dumps(list(scans)), time.time(), id, RUNNING, WAITING),
            )
        try:
            self._remove("unwanted AND state != ?", (RUNNING,))
        except InputError as problem:  # the next job to end tries again
            _log.warning("tumorlens: %s", problem)

    def cancel(self, id: str) -> None:
        """Cancel a job: at once where it waits. One that runs has `stop` set; whoever runs it ends it."""
        with self._write() as db:
            db.execute("UPDATE jobs SET stop = 1 WHERE id = ? AND state IN (?, ?)", (id, WAITING, RUNNING))
            db.execute(
                "UPDATE jobs SET state = ?, ended = ? WHERE id = ? AND state = ?", (CANCELLED, time.time(), id, WAITING)
            )

    def delete(self, id: str) -> None:
        """Delete a job with its files and results; cancel it first if it has not ended."""
        self.cancel(id)
        with self._write() as db:
            db.execute("UPDATE jobs SET unwanted = 1 WHERE id = ?", (id,))
        self._remove("unwanted AND state != ?", (RUNNING,))

    def delete_ended(self, seconds: float) -> None:
        """Delete all jobs that ended so long ago, with files and results."""
        self._remove("ended < ?", (time.time() - seconds,))

    def set_details(self, id: str, details: dict[str, Any]) -> None:
        """Replace what a source needs to know about a job, such as whether its results were delivered."""
        with self._write() as db:
            db.execute("UPDATE jobs SET details = ? WHERE id = ?", (json.dumps(details), id))

    def free_bytes(self) -> int:
        """Free space of the disk."""
        with self._problems_named():
            return shutil.disk_usage(self.folder).free

    def _arrival(self, source: str, id: str) -> Arrival:
        return Arrival(id, source, self._jobs / f"{source}.{id}" / "source")

    def _remove(self, which: str, values: tuple[Any, ...]) -> None:
        """Delete jobs. Their rows go last: files without a row would look like those of a job that is coming.

        Where files cannot be deleted, the row stays `unwanted`, and `recover` tries again.
        """
        with self._write() as db:
            # No text of a user is in the condition, here and in `_select`.
            update = f"UPDATE jobs SET unwanted = 1 WHERE {which} RETURNING source, id"  # nosec B608
            gone = db.execute(update, values).fetchall()
        for source, id in gone:
            folder = self._jobs / f"{source}.{id}"
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                with self._write() as db:
                    db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def _select(self, which: str, values: tuple[Any, ...]) -> list[StoredJob]:
        with self.changed, self._problems_named():
            return [
                StoredJob(
                    *(id, source, state, json.loads(options), json.loads(details), self._jobs / f"{source}.{id}"),
                    *(*rest, bool(stop), error, json.loads(scans)),
                )
                for id, source, state, options, details, *rest, stop, error, scans in self._db.execute(
                    f"SELECT {_COLUMNS} FROM jobs WHERE {which}",  # nosec B608
                    values,
                ).fetchall()
            ]

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction. Whoever waits for a change wakes up after it."""
        with self.changed, self._problems_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # after a full disk there is nothing to roll back
                    self._db.execute("ROLLBACK")
                raise
            self.changed.notify_all()

    @contextmanager
    def _problems_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "strerror", None) or error  # without a path: clients and logs get it
            raise InputError(f"the server's file of jobs cannot be read or written ({reason})") from None


@contextmanager
def open_spool(folder: Path, source: str, most_waiting: int = MOST_WAITING) -> Iterator[Spool]:
    """The spool in a folder, which no other process can open until the block ends.

    Args:
        folder: The folder.
        source: Where its jobs come from. They are kept by the rules of their source: results that wait for an archive
            longer than those that a client fetches.
        most_waiting: So many jobs may wait.

    Raises:
        InputError: Another process has it, it has jobs of another source, or it cannot be used.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(folder))
        except InputError as error:
            raise InputError(str(error).replace("choose another -o", "choose another --spool")) from None
        spool = Spool(folder, most_waiting)
        stack.callback(spool.close)
        for other, owner in _OWNERS.items():
            if other != source and (spool.jobs(other, most=1) or spool.unaccepted(other)):
                raise InputError(f"{folder}: `{owner}` keeps its jobs here; choose another --spool")
        yield spool


def _flush_all(folder: Path) -> None:
    """Bring all files below a folder onto the disk, and their names.

    Raises:
        OSError: The bytes of a file cannot be written.
    """
    for place in (*folder.rglob("*"), folder):
        flush(place)
