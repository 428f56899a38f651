"""One run at a time writes to a folder.

The operating system holds the lock (flock), so that of a process that ends in any way is free at once. filelock does
the same, but takes 20 ms to load, forty times as long as the call itself. It steps in where there is no flock.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tumorlens.data.errors import InputError, printable
from tumorlens.data.files import claim

_LOCK = ".tumorlens.lock"
_LONGEST_MARK = 1000  # process and machine
_SIGNED_WITHIN = 1.0  # seconds; between the lock and the name of its process lie only two calls
_held: set[tuple[str, int, int]] = set()  # locked folders, each with its process and thread


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder until the block ends.

    The operating system holds the lock, so that of a process that ends in any way is free at once. Where there are no
    such locks (Windows, some network file systems), a file that names the process stands for one. The blocks of one
    thread may be nested. The folder is made if it is not there, and goes again if it is empty at the end.

    Raises:
        InputError: Another run writes there, or you may not.
    """
    if (folder / _LOCK).is_dir():
        raise _foreign(folder / _LOCK)
    claim([folder / _LOCK], "a lock", lambda _: True, overwrite=True)
    holder = os.path.realpath(folder), os.getpid(), threading.get_ident()
    if holder in _held:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        release = _lock(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror or error}); choose another -o") from None
    _held.add(holder)
    try:
        yield
    finally:
        _held.discard(holder)
        release()
        with suppress(OSError):  # it is not empty
            for place in made:
                place.rmdir()


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a folder; returns what unlocks it."""
    path = folder / _LOCK
    handle = _flocked(path)
    if handle is not None:
        return lambda: _unlock(path, handle)
    from filelock import SoftFileLock, Timeout  # takes over from a process of this machine that has ended

    marker = SoftFileLock(folder / f"{_LOCK}.pid", timeout=0.5)
    try:
        marker.acquire(poll_interval=0.1)
    except Timeout:
        raise InputError(_busy(folder, Path(marker.lock_file))) from None
    return marker.release


def _flocked(path: Path) -> int | None:
    """The handle of a lock file that is locked, or None where the operating system does not lock files."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # a run that ends has removed the folder
            continue
        except PermissionError:  # the lock of another user, who may have been killed
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError | PermissionError):
                raise InputError(_busy(path.parent, path)) from None
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a run that ends has removed the file: whoever comes next makes another
            if os.path.samestat(os.fstat(handle), path.stat()):
                _check_ours(path, handle)
                _sign(handle)
                return handle
        os.close(handle)


def _check_ours(path: Path, handle: int) -> None:
    """Raise an `InputError` for a file of the user that has the name of a lock."""
    if path.stat().st_size and not re.fullmatch(rb"\d+\n[^\n]*\n", path.read_bytes()[:_LONGEST_MARK]):
        os.close(handle)
        raise _foreign(path)


def _foreign(path: Path) -> InputError:
    what = "folder" if path.is_dir() else "file"
    return InputError(f"{path}: tumorlens did not write this {what}; move it away, or choose another -o")


def _sign(handle: int) -> None:
    """Write into a lock file whose it is."""
    with suppress(OSError):  # the disk is full; the lock holds without it
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n{platform.node()}\n".encode())


def _unlock(path: Path, handle: int) -> None:
    import fcntl

    # As long as the lock is held, nobody else has made a new file, unless the folder was moved or the file deleted.
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), path.lstat()):
            path.unlink()
    fcntl.flock(handle, fcntl.LOCK_UN)  # to close it is not enough if a child process has inherited it
    os.close(handle)


def _busy(folder: Path, lock_file: Path) -> str:
    who = ""
    with suppress(OSError, ValueError):
        pid, host, *_ = _mark_of(lock_file).splitlines()
        host = host.partition("?")[0]  # filelock adds the container to the name of the machine
        who = f" (process {int(pid)}{'' if host == platform.node() else f' on {printable(host)}'})"
    return f"{folder}: another run{who} writes here; wait until it ends, or choose another -o"


def _mark_of(lock_file: Path) -> str:
    """What `_sign` writes into a lock file, which may have been locked only now."""
    until = time.monotonic() + _SIGNED_WITHIN
    while not (mark := lock_file.read_text(encoding="utf-8")) and time.monotonic() < until:
        time.sleep(0.01)
    return mark
