"""The reviewers' file: nothing is lost, nothing is changed afterwards."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.pipeline.outputs import REVIEWS
from tumorlens.pipeline.services.reviews.store import ConflictError, Store

MASK = np.zeros((5, 7, 3), np.uint8)
MASK[1:3, 2:6, 1] = 1
EMPTY = np.zeros((4, 6), np.uint8)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def _slice(*pixels):
    mask = EMPTY.copy()
    for pixel in pixels:
        mask[pixel] = 1
    return mask


def test_looking_makes_no_file(store):
    assert store.decisions() == [] and store.claims() == {} and store.strokes("a", "Ann") == ([], 0)
    assert not store.path.exists()


def test_a_decision_comes_back_whole(store):
    number = store.decide(
        "a.png",
        "Ann",
        "correct",
        "glioma",
        "larger",
        {"label": "glioma"},
        {"mask_voxels": 8},
        {"segmentation": "f"},
        MASK,
    )
    (decision,) = Store(store.path.parent).decisions("a.png")
    assert (decision.number, decision.reviewer, decision.action, decision.label) == (number, "Ann", "correct", "glioma")
    assert decision.comment == "larger" and decision.before == {"label": "glioma"}
    assert decision.after == {"mask_voxels": 8} and decision.models == {"segmentation": "f"} and decision.has_mask
    np.testing.assert_array_equal(store.mask(number), MASK)
    assert store.decisions("b.png") == []


@pytest.mark.parametrize("table", ["decisions", "strokes", "slices"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET rowid = 99"])
def test_rows_are_only_ever_added(store, table, statement):
    store.decide("a.png", "Ann", "accept")
    store.add_stroke("a.png", "Ann", "brush", {0: (EMPTY, _slice((1, 1)))})
    with closing(sqlite3.connect(store.path)) as db, pytest.raises(sqlite3.IntegrityError, match="only ever added"):
        db.execute(statement.format(table))


def test_a_later_decision_of_somebody_else_is_not_overlooked(store):
    store.decide("a.png", "Ann", "accept", seen=0)
    with pytest.raises(ConflictError, match="Ann has decided"):
        store.decide("a.png", "Bob", "reject", seen=0)
    assert len(store.decisions()) == 1
    store.decide("a.png", "Bob", "reject", seen=1)
    store.decide("a.png", "Bob", "accept", seen=1)  # your own is no surprise
    assert [d.action for d in store.decisions("a.png")] == ["accept", "reject", "accept"]


@pytest.mark.parametrize(("reviewer", "action", "words"), [(" ", "accept", "name"), ("Ann", "praise", "is not one of")])
def test_a_decision_needs_a_name_and_a_known_action(store, reviewer, action, words):
    with pytest.raises(InputError, match=words):
        store.decide("a.png", reviewer, action)


def test_strokes_are_undone_and_redone_in_order(store):
    one, two, three = _slice((1, 1)), _slice((1, 1), (2, 2)), _slice((3, 3))
    store.add_stroke("a", "Ann", "brush", {4: (EMPTY, one)})
    store.add_stroke("a", "Ann", "brush", {4: (one, two)})
    np.testing.assert_array_equal(store.undo("a", "Ann").slices[4][0], one)
    assert len(store.strokes("a", "Ann")[0]) == 1 and store.strokes("a", "Ann")[1] == 1
    np.testing.assert_array_equal(store.undo("a", "Ann", redo=True).slices[4][1], two)
    assert store.undo("a", "Ann", redo=True) is None
    store.undo("a", "Ann")
    store.add_stroke("a", "Ann", "fill", {5: (EMPTY, three)})  # a new stroke ends what could be repeated
    assert [stroke.kind for stroke in store.strokes("a", "Ann")[0]] == ["brush", "fill"]
    assert store.undo("a", "Ann", redo=True) is None
    assert store.strokes("a", "Bob") == ([], 0), "another reviewer's strokes are theirs"


def test_a_decision_ends_the_strokes_before_it_but_a_comment_does_not(store):
    store.add_stroke("a", "Ann", "brush", {0: (EMPTY, _slice((1, 1)))})
    store.decide("a", "Ann", "comment", comment="hm")
    assert len(store.strokes("a", "Ann")[0]) == 1
    store.decide("a", "Ann", "correct", "glioma", mask=MASK)
    assert store.strokes("a", "Ann") == ([], 0)
    assert store.undo("a", "Ann") is None


def test_a_claim_stands_until_it_is_released_taken_over_or_lapses(store, monkeypatch):
    assert store.claim("a", "Ann", "w1") is None
    assert store.claim("a", "Ann", "w1") is None, "renewed"
    assert store.claim("a", "Bob", "w2").reviewer == "Ann"
    assert store.claim("a", "Ann", "w3").window == "w1", "a second window of the same reviewer"
    assert store.claims()["a"].reviewer == "Ann"
    assert store.claim("a", "Bob", "w2", take_over=True) is None
    assert store.claim("a", "Ann", "w1").reviewer == "Bob"
    store.release("w1")
    assert store.claims()["a"].reviewer == "Bob", "only a claim of one's own can be released"
    store.release("w2")
    assert store.claims() == {}
    store.claim("a", "Ann", "w1")
    monkeypatch.setattr("tumorlens.pipeline.services.reviews.store.CLAIM_S", -1.0)
    assert store.claim("a", "Bob", "w2") is None


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / REVIEWS).write_text("nothing of the kind, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match=REVIEWS):
        Store(tmp_path)


@pytest.mark.parametrize("letter", [b"\xf4", b"?"])
def test_a_file_with_a_damaged_schema_is_named(tmp_path, letter):
    path = Store(tmp_path).path
    Store(tmp_path).decide("a", "Ann", "accept")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE claims", b"CREATE TABL" + letter + b" claims"))
    with pytest.raises(InputError, match=rf"{REVIEWS}: the reviews cannot be read"):
        Store(tmp_path).decisions()


def test_a_later_version_is_left_alone(tmp_path):
    Store(tmp_path).decide("a", "Ann", "accept")
    with closing(sqlite3.connect(tmp_path / REVIEWS)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="later version"):
        Store(tmp_path).decisions()


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tumorlens.pipeline.services.reviews.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for n in range(15): store.decide(f'{n}', sys.argv[2], 'accept')\n"
    )
    names = ("Ann", "Bob", "Cem")
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in names]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert len(Store(tmp_path).decisions()) == 45


def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tumorlens.pipeline.services.reviews.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for n in range(10000):\n"
        "    store.decide(f'{n}', 'Ann', 'accept'); print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if int(line) == 12:
                os.kill(run.pid, signal.SIGKILL)
                break
        acknowledged = 12 + sum(1 for _ in run.stdout)
    assert run.returncode == -signal.SIGKILL
    assert len(Store(tmp_path).decisions()) >= acknowledged + 1


def damage(store, table, column, value):
    with closing(sqlite3.connect(store.path)) as db:
        if table != "claims":
            db.execute(f"DROP TRIGGER {table}_update")
        db.execute(f"UPDATE {table} SET {column} = ?", (value,))
        db.commit()


@pytest.mark.parametrize("column", ["before", "after", "models"])
@pytest.mark.parametrize("value", ["{", "3", "null", "[]", "[" * 100_000, b"\xff{}"])
def test_a_damaged_decision_is_named(store, column, value):
    store.decide("a.png", "Ann", "correct", mask=MASK)
    damage(store, "decisions", column, value)
    with pytest.raises(InputError, match=rf"{REVIEWS}: a decision in it is damaged"):
        store.decisions()


@pytest.mark.parametrize("column", ["at", "scan", "reviewer", "action", "label", "comment"])
def test_a_decision_of_bytes_is_named(store, column):
    store.decide("a.png", "Ann", "relabel", "glioma")
    damage(store, "decisions", column, b"a.png")
    with pytest.raises(InputError, match="a decision in it is damaged"):
        store.decisions()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("mask", b"no zlib"),
        ("mask", "text"),
        ("mask_shape", None),
        ("mask_shape", "[5, 7]"),
        ("mask_shape", "[5, 7, -3]"),
        ("mask_shape", "[5, 7, 3.0]"),
        ("mask_shape", "[5, 7, null]"),
        ("mask_shape", "[50000, 70000, 30000]"),
        ("mask_shape", "[1e400]"),
        ("mask_shape", "{"),
    ],
)
def test_a_damaged_mask_is_named(store, column, value):
    number = store.decide("a.png", "Ann", "correct", mask=MASK)
    damage(store, "decisions", column, value)
    with pytest.raises(InputError, match=rf"{REVIEWS}: the mask of decision {number} is damaged"):
        store.mask(number)


@pytest.mark.parametrize("value", ["text", b"", b"\1\0\0\0\1\0\0\0no zlib", b"\xff" * 40])
def test_a_damaged_stroke_is_named(store, value):
    store.add_stroke("a", "Ann", "brush", {0: (EMPTY, _slice((1, 1)))})
    damage(store, "slices", "after", value)
    for read in (lambda: store.strokes("a", "Ann"), lambda: store.undo("a", "Ann")):
        with pytest.raises(InputError, match=rf"{REVIEWS}: a stroke in it is damaged"):
            read()
    assert store.decisions() == []


def test_a_damaged_text_does_not_keep_the_file_locked(store):
    """sqlite3 leaves a query open whose text it cannot decode, and the lock with it, while anybody holds the error."""
    store.add_stroke("a", "Ann", "brush", {0: (EMPTY, _slice((1, 1)))})
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("DROP TRIGGER strokes_update")
        db.execute("UPDATE strokes SET kind = CAST(x'ff' AS TEXT)")
        db.commit()
    ((stroke,), _) = store.strokes("a", "Ann")
    assert stroke.kind == "\ufffd"
    assert store.decide("b", "Ann", "accept") == 1


@pytest.mark.parametrize("value", ["text", b"text", "nan"])
def test_a_damaged_claim_has_lapsed(store, value):
    store.claim("a", "Ann", "w1")
    damage(store, "claims", "at", value)
    assert store.claims() == {}
    assert store.claim("a", "Bob", "w2") is None and store.claims()["a"].reviewer == "Bob"


@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: path.mkdir()])
def test_an_emptied_file_is_not_taken_for_a_new_one(tmp_path, make):
    make(tmp_path / REVIEWS)
    os.utime(tmp_path / REVIEWS, (0, 0))
    with pytest.raises(InputError, match="not a file of reviews"):
        Store(tmp_path)


def test_strokes_hold_for_what_they_were_drawn_on(store):
    store.add_stroke("a", "Ann", "brush", {0: (EMPTY, _slice((1, 1)))}, about="axial")
    assert store.strokes("a", "Ann", "sagittal") == ([], 0) and store.undo("a", "Ann", about="sagittal") is None
    assert len(store.strokes("a", "Ann", "axial")[0]) == 1
