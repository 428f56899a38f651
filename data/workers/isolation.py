"""`isolated`: a call in a worker process. Native decoders crash on some damaged files; then only the worker ends.

A worker is a plain subprocess of ours. The processes of `multiprocessing`, and of packages that build on it, either
import the user's script again, so that one without a main guard would start itself twice, or are forked, which is not
safe beside the threads of OpenVINO; and one death breaks a whole `ProcessPoolExecutor`.

The limits of time and memory are the system's own: a decoder that never gives Python a turn keeps to them, too.
Windows has neither; there crashes are caught, and a worker that stays silent is killed, as it is everywhere if an alarm
does not reach it.
"""

from __future__ import annotations

import atexit
import builtins
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import RawIOBase
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar, cast

from tumorlens.data.errors import InputError
from tumorlens.data.workers.messages import receive, send

Value = TypeVar("Value")

_SECONDS, _SECONDS_PER_MIB = 15.0, 1.0
_MEMORY, _MEMORY_PER_BYTE = 3 * 2**29, 64  # above the worker's own; a picture of 4000 x 4000 RGBA takes 1.2 GB
_GRACE = 60.0  # seconds for all that is not the function: to start, to import, and to send what it returns
_LOOK_EVERY = 1.0
_PIPE = 2**20  # bytes, the most that Linux grants everybody
_TIMED_OUT = -signal.SIGALRM if hasattr(signal, "SIGALRM") else None  # exit status
_GREETING = "a worker of tumorlens"
_COMMAND = "from tumorlens.data.workers.isolation import serve; serve()"


def isolated(function: Callable[..., Value], *args: Any, size: int) -> Value:
    """What a function returns, called in a worker process.

    A worker is started when there is none to spare, and is used again: as many run as threads call this function.

    Args:
        function: A function at the top of a module.
        args: Its arguments, of types that `data.workers.messages.send` takes. It must return such types as well;
            sequences arrive as tuples.
        size: Bytes of the file or of the data. They decide how much time and memory the function may take.

    Raises:
        InputError: The worker died, took too long or needed too much memory, or cannot be started. The message does
            not name the file.
        Exception: As the function. An error that is neither Python's own nor an `InputError` arrives as `Exception`.
    """
    if _is_worker or not sys.executable:  # a Python inside another program cannot start itself
        return function(*args)
    while True:
        worker = _take()
        used = worker.used
        limits = _SECONDS + _SECONDS_PER_MIB * size / 2**20, _MEMORY + _MEMORY_PER_BYTE * size
        worker.until = time.monotonic() + limits[0] + _GRACE
        try:
            worker.meet()
            worker.ask(function, args, limits)
            answer = receive(worker.answers)
        except (EOFError, OSError, ValueError):
            status = worker.end()
            if not worker.met:
                raise InputError(
                    f"the process that decodes this kind of file does not start with {sys.executable}; set "
                    "sys.executable to the Python that has tumorlens"
                ) from None
            # An earlier file may have damaged the worker's memory, so this one is tried again in a new worker.
            if used and status != _TIMED_OUT:
                continue
            raise InputError(_cause_of(status, limits[0])) from None
        except BaseException:  # a Ctrl-C in the middle of an answer
            worker.end(kill=True)
            raise
        finally:
            worker.until = math.inf
        with _lock:
            _idle.append(worker)
        if answer[0] == "value":
            return cast(Value, answer[1])
        raise _error(limits[1], *answer[1:])


def prepare(function: Callable[..., Any], *args: Any) -> None:
    """Start a worker and let it call a function, whose result nobody waits for: the worker then has its imports.

    Returns at once. Does nothing if there is a worker to spare, or if none can be started.
    """
    if _is_worker or not sys.executable or _idle:
        return
    with suppress(InputError, OSError):
        worker = _take()
        worker.ask(function, args, (_SECONDS, _MEMORY), answer=False)
        with _lock:
            _idle.append(worker)


class _Worker:
    """The other end of a worker process. One thread uses it at a time."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # NumPy then starts none of its own
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if isinstance(path, str))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **threads, "PYTHONPATH": paths},
        )
        self.requests = cast(RawIOBase, self.process.stdin)
        self.answers = cast(RawIOBase, self.process.stdout)
        self.used = self.met = self.silent = False
        self.until = math.inf  # when its answer must be there
        if sys.platform == "linux":
            import fcntl

            for pipe in (self.requests, self.answers):  # a slice fits, so that no process waits for the other
                with suppress(OSError):
                    fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
        _workers.add(self)

    def meet(self) -> None:
        """Wait until a new worker says that it has started."""
        if not self.met:
            self.met = receive(self.answers) == _GREETING
        if not self.met:
            raise ValueError("the other process is not a worker")

    def ask(
        self, function: Callable[..., Any], args: tuple[Any, ...], limits: tuple[float, int], answer: bool = True
    ) -> None:
        self.used = True
        send(self.requests, (function.__module__, function.__qualname__, args, *limits, answer))

    def give_up(self) -> None:
        """Kill a worker whose own alarm did not end it: it was stopped (SIGSTOP), or Windows has no alarms."""
        self.silent = True
        self.process.kill()

    def end(self, kill: bool = False) -> int | None:
        """Close the pipes, at which a living worker ends, and return the exit status as `subprocess` gives it, or
        `_TIMED_OUT`."""
        self.close()
        _workers.discard(self)
        if kill:
            self.process.kill()
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        return _TIMED_OUT if self.silent else status

    def close(self) -> None:
        for pipe in (self.requests, self.answers):
            with suppress(OSError):
                pipe.close()


_lock = Lock()
_idle: list[_Worker] = []
_workers: set[_Worker] = set()
_is_worker = False
_watcher: Thread | None = None


def _watch() -> None:
    """End workers that their own alarm does not end."""
    while True:
        time.sleep(_LOOK_EVERY)
        for worker in list(_workers):
            if worker.until < time.monotonic():
                worker.give_up()


def _take() -> _Worker:
    """A worker that nobody uses, or a new one."""
    global _watcher
    with _lock:
        if _watcher is None:  # one for all calls: to start a thread takes longer than many a call
            _watcher = Thread(target=_watch, name="watch", daemon=True)
            _watcher.start()
        while _idle:
            worker = _idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.end()
    try:
        return _Worker()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"no process can be started to decode it ({reason}); close other programs") from None


@atexit.register
def _end_all() -> None:
    for worker in list(_workers):
        worker.end(kill=True)


def _forget() -> None:
    """In a child that was forked: the workers are its parent's. Its ends of the pipes would keep them alive."""
    global _lock, _watcher
    _lock, _watcher = Lock(), None
    for worker in _workers:
        worker.close()
        worker.process.returncode = 0  # or Popen would wait for a process that is not its child
    _idle.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _cause_of(status: int | None, seconds: float) -> str:
    """Why a worker died, in words, from its exit status."""
    if status is None or status == _TIMED_OUT:
        return f"the decoder did not end within {seconds:.0f} s, so the file is damaged; delete or replace it"
    if sys.platform != "win32" and status == -signal.SIGKILL:
        return "the decoder was killed (SIGKILL), perhaps because memory ran out; close other programs and try again"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
    return f"the decoder crashed on this file ({name}), which is damaged; delete or replace it"


def _error(memory: int, name: str, text: str, number: int | None) -> Exception:
    """The exception that a function raised in a worker."""
    if name == "InputError":
        return InputError(text)
    if name == "MemoryError":
        return InputError(
            f"reading it takes over {memory / 2**30:.1f} GiB of memory, so it is damaged or not a scan; "
            "delete or replace it"
        )
    if number is not None:
        return OSError(number, text)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):  # some take more than a text, as UnicodeDecodeError
            return kind(text)
    return Exception(f"{name}: {text}")


def serve() -> None:
    """Answer requests until the other process closes the pipe, or dies. This is all that a worker does."""
    global _is_worker
    _is_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the other process, which then ends this one
    requests = cast(RawIOBase, os.fdopen(os.dup(0), "rb", 0))
    answers = cast(RawIOBase, os.fdopen(os.dup(1), "wb", 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # native libraries print what they think of a file
        os.dup2(nowhere, stream)
    with suppress(EOFError, OSError):
        send(answers, _GREETING)
        while True:
            *call, answer = receive(requests)
            reply = _reply(*call)
            if answer:
                _send(answers, reply)


def _reply(module: str, name: str, args: tuple[Any, ...], seconds: float, memory: int) -> tuple[Any, ...]:
    try:
        function = getattr(import_module(module), name)
        _limit_memory(memory)
        _set_alarm(seconds)
        try:
            return "value", function(*args)
        finally:
            _set_alarm(0)
    except Exception as error:
        return _told(error)


def _send(answers: RawIOBase, reply: tuple[Any, ...]) -> None:
    try:
        send(answers, reply)
    except TypeError as error:
        send(answers, _told(error))


def _told(error: Exception) -> tuple[Any, ...]:
    number = error.errno if isinstance(error, OSError) else None
    return "error", type(error).__name__, str(error if number is None else os.strerror(number)), number


def _set_alarm(seconds: float) -> None:
    """Let the system end this process after a time, or, with 0, no more."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(memory: int) -> None:
    """Let this process take so many bytes more than it has now, and leave no core dump."""
    if sys.platform == "linux":  # macOS does not keep to a limit of memory
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
