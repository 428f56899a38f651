"""One run at a time writes to a folder, whatever becomes of the process that locked it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from tumorlens.data import locks
from tumorlens.data.errors import InputError
from tumorlens.data.locks import sole_writer

fcntl = pytest.importorskip("fcntl", reason="Windows")

HOLD = """
import errno, sys
from pathlib import Path
from tumorlens.data.locks import sole_writer
def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, "no locks here")
if "soft" in sys.argv:
    import fcntl
    fcntl.flock = refuse
with sole_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
TAKE_TURNS = """
import sys, time
from pathlib import Path
from tumorlens.data.errors import InputError
from tumorlens.data.locks import sole_writer
folder, turns = Path(sys.argv[1]), 0
inside = folder.with_name("inside")
while turns < 60:
    try:
        with sole_writer(folder):
            inside.touch(exist_ok=False)  # raises if somebody else is inside
            inside.unlink()
        turns += 1
    except InputError as error:
        assert "another run" in str(error), error
        time.sleep(0.001)
"""


@pytest.fixture
def hold():
    """Start a process that locks a folder; what it gives back ends with it."""
    processes = []

    def start(folder, *options):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout.readline() == b"locked\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()


def no_flock(monkeypatch, number=errno.ENOLCK):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_folder_is_made_and_left_as_it_was(tmp_path):
    with sole_writer(tmp_path / "a" / "b"):
        assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "mine.txt").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["mine.txt"]
    with sole_writer(tmp_path / "a"):
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("option", ["hard", "soft"])
def test_a_second_process_is_refused_until_the_first_ends_or_is_killed(tmp_path, hold, monkeypatch, option):
    if option == "soft":
        no_flock(monkeypatch)
    out = tmp_path / "out"
    first = hold(out, option)
    message = rf"^{out}: another run \(process {first.pid}\) writes here; wait until it ends, or choose another -o$"
    for _ in range(2):
        with pytest.raises(InputError, match=message), sole_writer(out):
            pass
    first.stdin.close()
    assert first.wait() == 0
    second = hold(out, option)
    second.kill()
    second.wait()
    with sole_writer(out):
        pass
    assert not out.exists() or not list(out.iterdir())


def test_another_machine_is_named(tmp_path, hold):
    hold(tmp_path)
    for text, who in (
        ("4711\nnode-07\n", r" \(process 4711 on node-07\)"),
        ("4711\nnode-07?pidns-f00\nabc\n", r" \(process 4711 on node-07\)"),
        ("", ""),
        ("x\ny\n", ""),
    ):
        (tmp_path / locks._LOCK).write_text(text)
        with pytest.raises(InputError, match=f"another run{who} writes here"), sole_writer(tmp_path):
            pass


def test_a_process_that_has_locked_but_not_signed_yet_is_named(tmp_path, monkeypatch):
    sign, locked, refused = locks._sign, threading.Event(), threading.Event()

    def sign_late(handle):
        locked.set()
        time.sleep(0.2)
        sign(handle)

    def hold():
        with sole_writer(tmp_path):
            refused.wait(20)

    monkeypatch.setattr(locks, "_sign", sign_late)
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert locked.wait(20)
        message = rf"another run \(process {os.getpid()}\) writes here"
        with pytest.raises(InputError, match=message), sole_writer(tmp_path):
            pass
    finally:
        refused.set()
        thread.join()


def test_a_thread_may_nest_its_blocks_and_another_thread_has_to_wait(tmp_path):
    refused = []

    def enter():
        try:
            with sole_writer(tmp_path):
                pass
        except InputError as error:
            refused.append(str(error))

    def other():
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()

    with sole_writer(tmp_path):
        with sole_writer(tmp_path / ".." / tmp_path.name):
            pass
        other()
        assert len(refused) == 1 and f"(process {os.getpid()})" in refused[0]
    other()
    assert len(refused) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_was_forked_inside_does_not_keep_the_lock(tmp_path, hold):
    read, write = os.pipe()
    with sole_writer(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    hold(tmp_path / "out")
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)


def test_processes_that_lock_and_unlock_at_once_are_never_inside_together(tmp_path):
    """The file goes with each unlocking, which is where such locks go wrong."""
    (tmp_path / "out").mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_of_the_system_a_marker_leaves_nothing(tmp_path, monkeypatch, number):
    no_flock(monkeypatch, number)
    with sole_writer(tmp_path):
        (marker,) = tmp_path.iterdir()
        assert str(os.getpid()) in marker.read_text() and marker.name[0] == "."
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_locked_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="file: this is a file, not a folder; choose another -o"),
        sole_writer(tmp_path / "file" / "out"),
    ):
        pass
    (tmp_path / locks._LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"cannot be written to .*; choose another -o"), sole_writer(tmp_path):
        pass
    with suppress(FileNotFoundError):
        assert not (tmp_path / "elsewhere").read_text()


def test_a_file_of_yours_is_no_lock(tmp_path):
    (tmp_path / locks._LOCK).write_text("my notes\n")
    for _ in range(2):
        with pytest.raises(InputError, match="tumorlens did not write this file"), sole_writer(tmp_path):
            pass
    assert (tmp_path / locks._LOCK).read_text() == "my notes\n"


def test_a_folder_of_yours_is_no_lock(tmp_path):
    (tmp_path / locks._LOCK).mkdir()
    with pytest.raises(InputError, match=rf"{locks._LOCK}: tumorlens did not write this folder"), sole_writer(tmp_path):
        pass


def test_a_run_whose_folder_was_renamed_leaves_the_lock_of_another(tmp_path, hold):
    out, moved = tmp_path / "out", tmp_path / "moved"
    with sole_writer(out):
        out.rename(moved)
        other = hold(out)
    with pytest.raises(InputError, match=rf"another run \(process {other.pid}\)"), sole_writer(out):
        pass
    with sole_writer(moved):  # its own lock is free
        pass
