"""Calls in worker processes: every kind of death costs one call, and no worker outlives the program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.scans import decoders
from tumorlens.data.errors import InputError
from tumorlens.data.workers import isolation
from tumorlens.data.workers.isolation import isolated, prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither limits nor signals")


@pytest.fixture(autouse=True)
def fresh():
    """No workers from other tests, and none left."""
    isolation._end_all()
    isolation._idle.clear()
    yield
    isolation._end_all()
    isolation._idle.clear()


def lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True


def gone(process, within_s=10.0):
    end = time.monotonic() + within_s
    while lives(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not lives(process)


def test_a_call_returns_what_the_function_returns():
    array = np.arange(200_000, dtype=np.uint16).reshape(400, 500)
    doubled = isolated(decoders.double, array, size=0)
    assert np.array_equal(doubled, array * 2) and doubled.dtype == array.dtype
    assert isolated(decoders.same, "a", [1, 2], None, size=0) == ("a", (1, 2), None)


def test_one_worker_serves_all_calls_of_a_thread():
    assert isolated(decoders.process_id, size=0) != os.getpid()
    assert len({isolated(decoders.process_id, size=0) for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (decoders.abort, (), r"the decoder crashed on this file \(SIGABRT\), which is damaged; delete or replace it"),
        (decoders.fall, ("SIGSEGV",), r"crashed on this file \(SIGSEGV\)"),
        (decoders.fall, ("SIGBUS",), r"crashed on this file \(SIGBUS\)"),
        (decoders.fall, ("SIGFPE",), r"crashed on this file \(SIGFPE\)"),
        (decoders.fall, ("SIGKILL",), r"was killed \(SIGKILL\), perhaps because memory ran out"),
        (decoders.leave, (3,), r"crashed on this file \(status 3\)"),
        (decoders.leave, (0,), r"crashed on this file \(status 0\)"),
    ],
)
def test_a_death_is_an_error_of_its_file_only(function, args, message):
    with pytest.raises(InputError, match=f"^.*{message}"):
        isolated(function, *args, size=10)
    assert isolated(decoders.double, 4, size=0) == 8


def test_a_file_that_kills_a_used_worker_and_a_new_one_is_the_cause():
    isolated(decoders.double, 1, size=0)
    with pytest.raises(InputError, match="SIGSEGV"):
        isolated(decoders.fall, "SIGSEGV", size=10)
    assert isolated(decoders.double, 4, size=0) == 8


@pytest.mark.parametrize(("function", "args"), [(decoders.sleep, (60,)), (decoders.spin, ())])
def test_a_call_that_takes_too_long_is_ended(monkeypatch, function, args):
    process = isolated(decoders.process_id, size=0)
    monkeypatch.setattr(isolation, "_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(InputError, match="the decoder did not end within 2 s, so the file is damaged; delete or repl"):
        isolated(function, *args, size=int(1.5 * 2**20))  # 1 s for each MiB
    assert 1.9 < time.monotonic() - begun < 20 and gone(process)
    assert isolated(decoders.double, 4, size=0) == 8


@pytest.mark.parametrize("used", [False, True])
def test_a_worker_that_is_stopped_is_ended(monkeypatch, used):
    """No alarm reaches it."""
    if used:
        isolated(decoders.process_id, size=0)
    monkeypatch.setattr(isolation, "_SECONDS", 1.0)
    monkeypatch.setattr(isolation, "_GRACE", 1.0)
    with pytest.raises(InputError, match="the decoder did not end within 1 s, so the file is damaged"):
        isolated(decoders.fall, "SIGSTOP", size=0)
    assert not isolation._workers
    assert isolated(decoders.double, 4, size=0) == 8


def test_the_time_is_that_of_one_call(monkeypatch):
    process = isolated(decoders.process_id, size=0)
    monkeypatch.setattr(isolation, "_SECONDS", 1.0)
    assert {isolated(decoders.sleep, 0.4, size=0) for _ in range(4)} == {process}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of memory")
def test_memory_is_limited_and_grows_with_the_file():
    with pytest.raises(InputError, match=r"takes over 1\.5 GiB of memory, so it is damaged or not a scan"):
        isolated(decoders.take_memory, 2.5, size=0)
    assert isolated(decoders.take_memory, 2.5, size=2**25) == 2.5 * 2**30  # untouched zeros take nothing


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("InputError", InputError, "^the text$"),
        ("NotImplementedError", NotImplementedError, "^the text$"),
        ("OddError", Exception, "^_OddError: the text$"),
        ("FileNotFoundError", FileNotFoundError, "No such file"),
        ("UnicodeDecodeError", Exception, "UnicodeDecodeError: 'utf-8' codec"),
    ],
)
def test_errors_of_the_function_arrive_and_leave_the_worker_alive(kind, error, text):
    before = isolated(decoders.process_id, size=0)
    with pytest.raises(error, match=text) as caught:
        isolated(decoders.fail, kind, size=0)
    assert type(caught.value) is error
    assert isolated(decoders.process_id, size=0) == before


def test_results_that_cannot_travel_are_errors():
    with pytest.raises(TypeError, match="cannot be sent"):
        isolated(decoders.make_object, size=0)
    assert isolated(decoders.double, 4, size=0) == 8
    with pytest.raises(TypeError, match="cannot be sent"):
        isolated(decoders.double, object(), size=0)
    assert isolated(decoders.double, 4, size=0) == 8


def test_what_libraries_print_is_neither_shown_nor_taken_for_an_answer(capfd):
    assert isolated(decoders.print_much, size=0) == "done"
    with pytest.raises(InputError):
        isolated(decoders.abort, size=0)
    assert capfd.readouterr() == ("", "")


def test_a_good_file_does_not_fail_because_an_earlier_one_damaged_the_worker(tmp_path):
    before = isolated(decoders.process_id, size=0)
    assert isolated(decoders.die_once, str(tmp_path / "mark"), size=0) != before


def test_a_worker_that_was_killed_while_it_waited_is_replaced():
    process = isolated(decoders.process_id, size=0)
    os.kill(process, signal.SIGKILL)
    assert gone(process)
    assert isolated(decoders.process_id, size=0) != process


def test_threads_have_workers_of_their_own_and_share_no_answers():
    def call(n):
        process = isolated(decoders.sleep, 0.02, size=0)
        return isolated(decoders.same, n, np.full(50_000, n), process, size=0)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(call, range(40)))
    assert [n for n, _, _ in answers] == list(range(40))
    assert all((array == n).all() for n, array, _ in answers)
    assert 2 <= len({process for _, _, process in answers}) <= 3
    assert len(isolation._idle) <= 3


def test_deaths_in_one_thread_leave_the_others_alone():
    def call(n):
        if n % 4 == 0:
            with pytest.raises(InputError, match="SIGSEGV"):
                isolated(decoders.fall, "SIGSEGV", size=0)
            return n
        return isolated(decoders.double, n, size=0) // 2

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, range(12))) == list(range(12))


def test_a_worker_waits_ready():
    prepare(decoders.process_id)
    (worker,) = isolation._idle
    prepare(decoders.process_id)
    assert len(isolation._idle) == 1
    assert isolated(decoders.process_id, size=0) == worker.process.pid


def test_a_preparation_that_dies_does_no_harm():
    prepare(decoders.abort)
    assert isolated(decoders.double, 4, size=0) == 8
    prepare(decoders.fail, "InputError")
    assert isolated(decoders.double, 4, size=0) == 8


def test_where_python_cannot_start_itself_the_call_is_in_this_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    prepare(decoders.abort)
    assert isolated(decoders.process_id, size=0) == os.getpid()


def test_a_worker_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    prepare(decoders.double, 4)
    with pytest.raises(InputError, match=r"no process can be started to decode it \(No such file.*\); close other"):
        isolated(decoders.double, 4, size=0)


def test_a_forked_child_has_workers_of_its_own():
    mine = isolated(decoders.process_id, size=0)
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.write(sink, str(isolated(decoders.process_id, size=0)).encode())
        isolation._end_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    theirs = int(os.read(source, 100))
    assert theirs not in (mine, os.getpid()) and gone(theirs)
    assert isolated(decoders.process_id, size=0) == mine


def test_a_forked_child_does_not_keep_the_workers_of_a_dead_parent(tmp_path):
    parent = script(
        tmp_path,
        "import os, time\nworker = isolated(decoders.process_id, size=0)\n"
        "if not os.fork():\n    time.sleep(20)\n    os._exit(0)\n"
        "print(worker, flush=True)\ntime.sleep(60)",
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone(worker, 5)


def script(folder, code):
    """A user's script in a folder of its own, without a main guard."""
    path = folder / "script.py"
    path.write_text(
        f"import sys\nsys.path.append({str(REPOSITORY)!r})\nfrom tests.scans import decoders\n"
        f"from tumorlens.data.workers.isolation import isolated\n{code}\n"
    )
    return subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, cwd=folder)


@pytest.mark.parametrize("call", ["decoders.spin", "decoders.sleep, 60", "decoders.process_id"])
def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path, call):
    """At once if it waits; when its time is up if a decoder hangs."""
    parent = script(
        tmp_path,
        "import time\nfrom tumorlens.data.workers import isolation\nisolation._SECONDS = 3.0\n"
        f"print(isolated(decoders.process_id, size=0), flush=True)\nisolated({call}, size=0)\ntime.sleep(60)",
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone(worker)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    done = script(tmp_path, "print('begun')\nprint(isolated(decoders.double, 21, size=0))\nprint('ended')")
    assert done.communicate(timeout=60)[0].split() == ["begun", "42", "ended"]
    assert done.returncode == 0


def test_a_program_that_ends_ends_its_workers(tmp_path):
    done = script(tmp_path, "print(isolated(decoders.process_id, size=0))")
    worker = int(done.communicate(timeout=60)[0])
    assert done.returncode == 0 and gone(worker, 5)


@pytest.mark.parametrize("program", ["false", "cat"])
def test_a_python_that_does_not_start_blames_no_file(monkeypatch, program):
    monkeypatch.setattr(isolation, "_idle", [])
    monkeypatch.setattr(sys, "executable", shutil.which(program))
    with pytest.raises(InputError, match=f"does not start with .*{program}; set sys.executable"):
        isolated(decoders.process_id, size=0)
