"""Writing files: whole or not at all, and never over a file that tumorlens did not write."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tumorlens.data.errors import InputError

PART = ".part-"  # how the names of files and folders begin that are still being written
_IS_PART = re.compile(rf"{re.escape(PART)}[a-z0-9_]{{8}}(\.\w+)*").fullmatch  # as `tempfile` names them
_STARTED = time.time()  # shortly after the process began


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _read_umask()  # read only once: reading it sets it, which threads must not do at the same time


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path` that becomes `path` if the block ends without an error.

    It has the suffix of `path`, from which writers choose a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    handle, name = tempfile.mkstemp(prefix=PART, suffix=suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~UMASK)  # mkstemp's files are private, a user's results are not
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` that becomes `path` if the block ends without an error.

    Raises:
        InputError: `path` is there and is not an empty folder, or may not be written.
    """
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: this folder is not empty; choose another -o")
    claim([path / "any"], "a folder", is_ours=lambda file: False)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=PART, dir=path.parent))
    try:
        yield part
        part.chmod(0o777 & ~UMASK)
        part.replace(path)  # also an empty folder
    finally:
        shutil.rmtree(part, ignore_errors=True)


def flush(path: Path) -> None:
    """Let a file's bytes, or a folder's list of names, outlive a power failure.

    Raises:
        OSError: The bytes of a file cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders, and has no need to flush them
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems flush no folders
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # escapes for file names that are not UTF-8


def stale_parts(folder: Path) -> list[Path]:
    """The files and folders that processes left half-written in a folder: those older than this process."""
    stale = []
    with suppress(OSError):  # the folder is not there, or the process that wrote a file lives and is done
        for path in folder.iterdir():
            if _IS_PART(path.name) and path.lstat().st_mtime < _STARTED:
                stale.append(path)
    return stale


def remove_stale_parts(folder: Path) -> None:
    """Delete what `stale_parts` finds, as far as that is possible."""
    for part in stale_parts(folder):
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # it was a folder
            part.unlink()


_FORMULA = tuple("=+-@\t\r\n")  # a spreadsheet program may run a cell that begins so


def safe_cell(text: str) -> str:
    """The text for a CSV file, with a ``'`` before it if a spreadsheet program may take it for a formula (OWASP: CSV
    injection)."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def text_of_cell(cell: str) -> str:
    """The text of a cell that `safe_cell` made."""
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'").startswith(_FORMULA) else cell


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder; for the administrator, `os.access` says so of /proc, too."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def claim(paths: Sequence[Path], what: str, is_ours: Callable[[Path], bool], overwrite: bool = False) -> None:
    """Check that files may be written, before any work is done.

    No file of the user is lost, and writing does not fail at the end.

    Args:
        paths: The files that will be written, all below one folder. They need not exist yet.
        what: Name of the files together, with its article: ``"a report"``.
        is_ours: Whether tumorlens wrote an existing file as part of such a thing.
        overwrite: Whether files that tumorlens wrote may be replaced.

    Raises:
        InputError: There is a folder instead of a file or a file instead of a folder, the folder is not writable, a
            file is not ours, or it is ours and `overwrite` is not set.
    """
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is not None:
        raise InputError(f"{folder}: this is a folder; -o takes the name of a file")
    for place in dict.fromkeys(path.parent.absolute() for path in paths):
        nearest = next(folder for folder in (place, *place.parents) if folder.exists() or folder.is_symlink())
        if not nearest.is_dir():
            raise InputError(f"{nearest}: this is a file, not a folder; choose another -o")
        if not _is_writable(nearest):
            raise InputError(f"{nearest}: you may not write to this folder; choose another -o")
    existing = [path for path in paths if path.exists()]
    foreign = next((path for path in existing if not is_ours(path)), None)
    if foreign is not None:
        raise InputError(f"{foreign}: tumorlens did not write this file and leaves it alone; choose another -o")
    if existing and not overwrite:
        raise InputError(f"{existing[0]}: {what} is here already; give --overwrite to replace it, or choose another -o")
