"""Local files that stand for those of a store.

What looks for scans, names them, and goes on after a stop, works on folders. So a local folder stands for a prefix of a
store: `mirror.mirror_input` and `output.Output` make it. Most of its files have the right size and no content; a
process that runs a scan fetches the whole files of this one scan.
"""

from __future__ import annotations

from pathlib import Path

from tumorlens.data.errors import InputError


def make_stand_in(root: Path, name: str, size: int, end: bytes = b"") -> None:
    """Make a file of a size, without content but its end.

    Raises:
        InputError: The name leads out of the folder.
        OSError: The file cannot be made: both ``a`` and ``a/b`` may be files of a store.
    """
    if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise InputError(f"{name}: this is not the name of a file")
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(size)
        if size > len(end):
            stream.seek(size - len(end))
            stream.write(end)


def fill_stand_in(file: Path, head: bytes) -> None:
    """Write the first bytes of a file; the others stay."""
    with file.open("r+b") as stream:
        stream.write(head)
