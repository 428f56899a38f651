"""Temporary folders that do not outlive their process for long, even if it is killed: somebody's scans lie in them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from weakref import finalize

_PREFIX, _SUFFIX = "tumorlens-", ".tmp"  # around the number of the process and eight letters of `tempfile`
_process_of = re.compile(rf"{_PREFIX}(\d+)-[a-z0-9_]{{8}}{re.escape(_SUFFIX)}").fullmatch


class ScratchFolder(TemporaryDirectory[str]):
    """A private temporary folder, deleted at the end. Those that killed processes of this user left are deleted first.

    A folder is locked (flock) while its process lives, so that also those of other containers and machines are known.
    Windows has no such locks, so the folders of killed processes are not deleted there.
    """

    def __init__(self) -> None:
        _remove_leftovers()
        super().__init__(prefix=f"{_PREFIX}{os.getpid()}-", suffix=_SUFFIX, ignore_cleanup_errors=True)
        handle = _lock(self.name)
        self._unlock = finalize(self, lambda: None if handle is None else os.close(handle))

    def cleanup(self) -> None:
        """Delete the folder."""
        super().cleanup()
        self._unlock()


def _remove_leftovers() -> None:
    if sys.platform == "win32":
        return
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        found = _process_of(folder.name)
        # Between the making of a folder and its lock, the number tells that its process lives.
        if found is None or _is_alive(int(found[1])):
            continue
        handle = _lock(folder)
        if handle is not None:
            with suppress(OSError):
                if os.fstat(handle).st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _lock(folder: str | Path) -> int | None:
    """The handle of a folder that is locked; None where another process has locked it, or it cannot be locked."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
