"""What reviewers decide and draw: one SQLite file in the output folder, to which rows are only ever added."""

from __future__ import annotations

import json
import math
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.pipeline.outputs import REVIEWS

ACCEPT, REJECT, RELABEL, CORRECT, COMMENT = "accept", "reject", "relabel", "correct", "comment"
ACTIONS = (ACCEPT, REJECT, RELABEL, CORRECT, COMMENT)
CLAIM_S = 90.0  # seconds after which a claim that nobody renews lapses
_VERSION = 1  # of the tables
_WAIT_S = 20.0  # seconds to wait for another process that writes
_SCHEMA = """
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, scan TEXT NOT NULL, reviewer TEXT NOT NULL, action TEXT NOT NULL,
    label TEXT, comment TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, models TEXT NOT NULL,
    mask BLOB, mask_shape TEXT
);
CREATE TABLE strokes (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, scan TEXT NOT NULL, about TEXT NOT NULL, reviewer TEXT NOT NULL,
    kind TEXT NOT NULL
);
CREATE TABLE written (decision INTEGER PRIMARY KEY REFERENCES decisions(id));
CREATE TABLE slices (
    stroke INTEGER NOT NULL REFERENCES strokes(id), slice INTEGER NOT NULL, before BLOB NOT NULL, after BLOB NOT NULL,
    PRIMARY KEY (stroke, slice)
);
CREATE TABLE claims (scan TEXT PRIMARY KEY, reviewer TEXT NOT NULL, window TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX decisions_of_scan ON decisions (scan, id);
CREATE INDEX strokes_of_scan ON strokes (scan, about, reviewer, id);
"""
_KEPT = ("decisions", "strokes", "slices", "written")  # a claim is the only thing that ends


class ConflictError(InputError):
    """Somebody else has decided on the scan since it was opened."""


@dataclass(frozen=True)
class Decision:
    """One decision of a reviewer.

    Attributes:
        number: Its number in the file; later decisions have higher ones.
        at: Date and time in UTC, ISO 8601.
        scan: The scan's name in ``results.csv``.
        reviewer: Who decided.
        action: One of `ACTIONS`.
        label: The label that holds after it, or None where it says nothing about the label.
        comment: Free text.
        before: Label and size of the mask before it.
        after: The same after it.
        models: Stage -> SHA-256 of the weights that made the result.
        has_mask: Whether a corrected mask belongs to it.
    """

    number: int
    at: str
    scan: str
    reviewer: str
    action: str
    label: str | None
    comment: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    has_mask: bool = False


@dataclass(frozen=True)
class Claim:
    """The window in which a reviewer has a scan open.

    Attributes:
        scan: The scan's name.
        reviewer: Who has it open.
        window: The window; a reviewer may have several.
    """

    scan: str
    reviewer: str
    window: str


@dataclass(frozen=True)
class Stroke:
    """One change of a mask that a reviewer has drawn and not yet decided on.

    Attributes:
        kind: The tool.
        slices: Slice -> mask of the slice before and after it, ``(rows, columns)`` of 0 and 1.
    """

    kind: str
    slices: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]]


class Store:
    """The reviewers' file of an output folder.

    Every call opens the file, so that any thread and any process may use it, and is on the disk when it returns.

    Raises:
        InputError: The file is damaged, from a later version, or cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / REVIEWS
        if self.path.exists() and (not self.path.is_file() or _is_emptied(self.path)):
            raise InputError(f"{self.path}: this is not a file of reviews; put back a copy of it, or delete it")
        if self.path.is_file():
            with self._open():
                pass

    def decide(
        self,
        scan: str,
        reviewer: str,
        action: str,
        label: str | None = None,
        comment: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        models: Mapping[str, str] | None = None,
        mask: NDArray[np.uint8] | None = None,
        seen: int | None = None,
        about: str = "",
    ) -> int:
        """Add a decision and return its number. The drawn strokes of the reviewer on the scan are done with it.

        Args:
            scan: The scan's name in ``results.csv``.
            reviewer: Who decides.
            action: One of `ACTIONS`.
            label: The label that holds from now on, or None.
            comment: Free text.
            before: Facts about the state before it.
            after: The same after it.
            models: Stage -> SHA-256 of its weights.
            mask: The corrected mask, 0 and 1, in the order of the stored mask.
            seen: Number of the latest decision on the scan that the reviewer has seen, 0 for none. None does not ask.
            about: As in `add_stroke`.

        Raises:
            ConflictError: Another reviewer has decided since.
            InputError: The reviewer has no name, or the action is unknown.
        """
        if not reviewer.strip():
            raise InputError("a decision needs the name of its reviewer")
        if action not in ACTIONS:
            raise InputError(f"action {action!r} is not one of {', '.join(ACTIONS)}")
        with self._write() as db:
            if seen is not None:
                later = db.execute(
                    "SELECT reviewer, at FROM decisions WHERE scan = ? AND id > ? AND reviewer != ? ORDER BY id DESC",
                    (scan, seen, reviewer),
                ).fetchone()
                if later is not None:
                    raise ConflictError(f"{later[0]} has decided on {scan} at {later[1]}, after you opened it")
            number = db.execute(
                "INSERT INTO decisions (at, scan, reviewer, action, label, comment, before, after, models, mask,"
                " mask_shape) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(_now(), scan, reviewer, action, label, comment),
                    *(json.dumps(dict(facts or {})) for facts in (before, after, models)),
                    *((None, None) if mask is None else (_pack(mask), json.dumps(mask.shape))),
                ),
            ).lastrowid
            if action != COMMENT:
                _add_stroke(db, scan, about, reviewer, "decided", {})
        return int(number or 0)

    def decisions(self, scan: str | None = None) -> list[Decision]:
        """All decisions, or those on a scan, in their order."""
        if not self.path.is_file():
            return []
        with self._open() as db:
            rows = db.execute(
                "SELECT id, at, scan, reviewer, action, label, comment, before, after, models, mask IS NOT NULL"
                " FROM decisions WHERE scan = ?1 OR ?1 IS NULL ORDER BY id",
                (scan,),
            ).fetchall()
        with self._damage_named("a decision in it"):
            return [_decision(row) for row in rows]

    def state(self) -> tuple[object, ...]:
        """A value that changes with every decision and every claim."""
        if not self.path.is_file():
            return ()
        with self._open() as db:
            last = db.execute("SELECT max(id) FROM decisions").fetchone()[0]
        return (last, *((claim.scan, claim.window) for claim in self.claims().values()))

    def mask(self, number: int) -> NDArray[np.uint8] | None:
        """The mask of a decision, 0 and 1 in the order of the stored mask; None where it has none."""
        with self._open() as db:
            row = db.execute("SELECT mask, mask_shape FROM decisions WHERE id = ?", (number,)).fetchone()
        with self._damage_named(f"the mask of decision {number}"):
            return None if row is None or row[0] is None else _unpack(row[0], tuple(json.loads(row[1])))

    def mark_written(self, number: int) -> None:
        """Note that the files of a decision's mask are complete."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO written VALUES (?)", (number,))

    def is_written(self, number: int) -> bool:
        """Whether the files of a decision's mask were completed."""
        with self._open() as db:
            return db.execute("SELECT 1 FROM written WHERE decision = ?", (number,)).fetchone() is not None

    def add_stroke(
        self,
        scan: str,
        reviewer: str,
        kind: str,
        slices: Mapping[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
        about: str = "",
    ) -> None:
        """Add a change of a mask.

        Args:
            scan: The scan's name in ``results.csv``.
            reviewer: Who draws.
            kind: The tool.
            slices: Slice -> its mask before and after, ``(rows, columns)`` of 0 and 1.
            about: What was drawn on, from `pipeline.batch.stored.StoredResult.identity`: a later run may give the name
                to another scan, frame or plane.
        """
        with self._write() as db:
            _add_stroke(db, scan, about, reviewer, kind, slices)

    def undo(self, scan: str, reviewer: str, redo: bool = False, about: str = "") -> Stroke | None:
        """Take back the reviewer's last stroke, or repeat the one taken back last; None where there is none."""
        with self._write() as db, self._damage_named("a stroke in it"):
            done, undone = _sort_strokes(db, scan, about, reviewer)
            stack = undone if redo else done
            if not stack:
                return None
            _add_stroke(db, scan, about, reviewer, "redo" if redo else "undo", {})
            return _read_stroke(db, *stack[-1])

    def strokes(self, scan: str, reviewer: str, about: str = "") -> tuple[list[Stroke], int]:
        """The strokes of a reviewer that no decision has used yet, in order, and the number of those taken back."""
        if not self.path.is_file():
            return [], 0
        with self._open() as db, self._damage_named("a stroke in it"):
            done, undone = _sort_strokes(db, scan, about, reviewer)
            return [_read_stroke(db, *stroke) for stroke in done], len(undone)

    def claim(self, scan: str, reviewer: str, window: str, take_over: bool = False) -> Claim | None:
        """Claim a scan for a window, or renew the claim. Returns the claim of another window that stands against it."""
        now = datetime.now(UTC).timestamp()
        with self._write() as db:
            row = db.execute(
                "SELECT scan, reviewer, window FROM claims WHERE scan = ? AND window != ? AND at + 0.0 > ?",
                (scan, window, now - CLAIM_S),
            ).fetchone()
            if row is not None and not take_over:
                return Claim(*row)
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", (scan, reviewer, window, now))
        return None

    def release(self, window: str) -> None:
        """End the claims of a window."""
        with self._write() as db:
            db.execute("DELETE FROM claims WHERE window = ?", (window,))

    def claims(self) -> dict[str, Claim]:
        """Scan -> the claim that stands on it."""
        if not self.path.is_file():
            return {}
        with self._open() as db:
            rows = db.execute(
                # + 0.0, because in SQLite any text is larger than any number: a damaged claim would never lapse.
                "SELECT scan, reviewer, window FROM claims WHERE at + 0.0 > ?",
                (datetime.now(UTC).timestamp() - CLAIM_S,),
            ).fetchall()
        return {row[0]: Claim(*row) for row in rows}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)) as db:
                # A damaged text must not raise in the middle of a query, which would keep the file locked.
                db.text_factory = partial(str, encoding="utf-8", errors="replace")
                db.execute("PRAGMA synchronous = FULL")  # a decision survives a power cut, too
                version = int(db.execute("PRAGMA user_version").fetchone()[0])
                if version > _VERSION:
                    raise InputError(f"{self.path}: written by a later version of tumorlens; update this one")
                if version == 0:
                    _make_tables(db)
                yield db
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the second, where a message quotes damaged bytes
            raise InputError(f"{self.path}: the reviews cannot be read or written ({error})") from None

    @contextmanager
    def _damage_named(self, what: str) -> Iterator[None]:
        """Turn what a damaged value raises into an `InputError` that names the file."""
        try:
            yield
        except (ArithmeticError, RecursionError, TypeError, ValueError, zlib.error):
            raise InputError(f"{self.path}: {what} is damaged; put back a copy of the file") from None

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                with suppress(sqlite3.Error):  # after a full disk there is nothing to roll back
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _is_emptied(path: Path) -> bool:
    """Whether a file is empty, and not because another process is making it at this moment."""
    facts = path.stat()
    return facts.st_size == 0 and time.time() - facts.st_mtime > _WAIT_S


def _decision(row: tuple[Any, ...]) -> Decision:
    number, at, scan, reviewer, action, label, comment, before, after, models, drawn = row
    facts = json.loads(before), json.loads(after), json.loads(models)
    texts = (at, scan, reviewer, action, label or "", comment)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(fact, dict) for fact in facts):
        raise TypeError("not as `decide` writes it")
    return Decision(number, at, scan, reviewer, action, label, comment, *facts, has_mask=bool(drawn))


def _make_tables(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    if int(db.execute("PRAGMA user_version").fetchone()[0]) == 0:  # another process may have been first
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
        for table in _KEPT:
            for change in ("UPDATE", "DELETE"):
                db.execute(
                    f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table}"
                    f" BEGIN SELECT RAISE(ABORT, 'rows of {table} are only ever added'); END"
                )
        db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")


def _add_stroke(
    db: sqlite3.Connection,
    scan: str,
    about: str,
    reviewer: str,
    kind: str,
    slices: Mapping[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
) -> None:
    number = db.execute(
        "INSERT INTO strokes (at, scan, about, reviewer, kind) VALUES (?, ?, ?, ?, ?)",
        (_now(), scan, about, reviewer, kind),
    ).lastrowid
    for index, masks in slices.items():
        shape = np.array(masks[0].shape, "<u4").tobytes()  # the shape of the slice goes before its pixels
        db.execute("INSERT INTO slices VALUES (?, ?, ?, ?)", (number, index, *(shape + _pack(mask) for mask in masks)))


_Strokes = list[tuple[int, str]]  # number and kind


def _sort_strokes(db: sqlite3.Connection, scan: str, about: str, reviewer: str) -> tuple[_Strokes, _Strokes]:
    """The strokes that hold, and those that were taken back and can be repeated; the last one comes last."""
    done: _Strokes = []
    undone: _Strokes = []
    rows = db.execute(
        "SELECT id, kind FROM strokes WHERE scan = ? AND about = ? AND reviewer = ? ORDER BY id",
        (scan, about, reviewer),
    )
    for number, kind in rows:
        if kind == "decided":
            done, undone = [], []
        elif kind == "undo" and done:
            undone.append(done.pop())
        elif kind == "redo" and undone:
            done.append(undone.pop())
        elif kind not in ("undo", "redo"):
            done, undone = [*done, (number, kind)], []
    return done, undone


def _read_stroke(db: sqlite3.Connection, number: int, kind: str) -> Stroke:
    rows = db.execute("SELECT slice, before, after FROM slices WHERE stroke = ?", (number,)).fetchall()
    return Stroke(kind, {int(index): (_unpack_slice(before), _unpack_slice(after)) for index, before, after in rows})


def _unpack_slice(packed: bytes) -> NDArray[np.uint8]:
    rows, columns = np.frombuffer(packed[:8], "<u4").tolist()
    return _unpack(packed[8:], (rows, columns))


def _pack(mask: NDArray[np.uint8]) -> bytes:
    return zlib.compress(np.packbits(mask != 0).tobytes(), 6)


def _unpack(packed: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    count = math.prod(shape)
    n_bytes = (count + 7) // 8
    unpacked = zlib.decompressobj().decompress(packed, n_bytes + 1)
    if len(unpacked) != n_bytes:  # before memory is taken for the shape
        raise ValueError("not a mask of this shape")
    return np.unpackbits(np.frombuffer(unpacked, np.uint8), count=count).reshape(shape)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
