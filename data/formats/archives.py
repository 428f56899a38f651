"""Zip archives -> files in a folder of their own. Archives that could do harm are refused."""

from __future__ import annotations

import lzma
import shutil
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tumorlens.data.errors import DiskFullError, InputError, is_disk_full, is_of_the_disk

_MAX_BYTES = 4 * 2**30  # unpacked; a large study has 1 to 2 GiB
_MAX_FILES = 100_000
_MAX_RATIO = 100  # unpacked / packed: scans reach 2 to 20, archive bombs over 1000
_RATIO_FROM = 100 * 2**20  # smaller archives may have any ratio
_ENCRYPTED = 0x1
_FORBIDDEN = str.maketrans(dict.fromkeys(':<>|"?*', "_") if sys.platform == "win32" else {})  # in names of files
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a method of compression that Python does not know
    RuntimeError,  # a password
    LookupError,
    ValueError,
    OSError,
)


def is_zip(path: Path) -> bool:
    """Whether a file's first bytes show a zip archive."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def unpack(path: Path, folder: Path) -> dict[Path, str]:
    """Unpack a zip archive.

    Args:
        path: The archive.
        folder: Where the files go. It is made if it is not there.

    Returns:
        The files that are not there because their entries are damaged or encrypted, each with the reason.

    Raises:
        InputError: The archive is damaged, none of its entries can be unpacked, one leads out of the folder, or it is
            too large once unpacked. The folder is removed then. It is a `DiskFullError` if only the disk is to blame.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check(path, entries)
            folder.mkdir(parents=True, exist_ok=True)
            n_bytes, disk = sum(entry.file_size for entry in entries), shutil.disk_usage(folder)
            if n_bytes > disk.free:
                kind = DiskFullError if n_bytes <= disk.total else InputError
                raise kind(f"{path}: there is not enough space on the disk to unpack the archive")
            skipped = {}
            for entry in entries:
                file = folder / PurePosixPath(entry.filename.translate(_FORBIDDEN))
                try:
                    _extract(archive, entry, file)
                except _DAMAGE as error:
                    if len(entries) == 1 or is_of_the_disk(error):
                        raise
                    skipped[file] = f"the entry of the zip archive is damaged or cannot be unpacked{_why(error)}"
            if entries and len(skipped) == len(entries):
                raise zipfile.BadZipFile
            return skipped
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except _DAMAGE as error:
        shutil.rmtree(folder, ignore_errors=True)
        kind = DiskFullError if is_disk_full(error) else InputError
        raise kind(f"{path}: the zip archive is damaged or cannot be unpacked{_why(error)}") from None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> None:
    """Unpack an entry, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source:  # gives no more than the size that the entry declares
        target = file.open("xb")
        try:
            with target:
                shutil.copyfileobj(source, target)
        except BaseException:
            file.unlink()
            raise


def _why(error: Exception) -> str:
    return f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""


def _check(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len({entry.filename for entry in entries}) < len(entries):
        raise InputError(f"{path}: several entries of the archive have one name; nothing was read")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if not name.parts or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            shown = "".join(c if c.isprintable() else "?" for c in entry.filename[:60])
            raise InputError(f"{path}: an entry of the archive leads out of it ({shown}); nothing was read")
    if entries and all(entry.flag_bits & _ENCRYPTED for entry in entries):
        raise InputError(f"{path}: the archive is protected by a password; unpack it first")
    size = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    if len(entries) > _MAX_FILES:
        raise InputError(f"{path}: the archive has {len(entries)} files, more than {_MAX_FILES}; unpack it first")
    if size > _MAX_BYTES or (size > _RATIO_FROM and size / packed > _MAX_RATIO):
        raise InputError(
            f"{path}: the archive would unpack to {size / 2**30:.1f} GiB, {size / packed:.0f} times its size, and was "
            "not unpacked; if you trust it, unpack it first"
        )
