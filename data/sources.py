"""What a user names as data: a folder, an index, or ``INDEX@FOLDER``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def find_index(source: str | Path) -> tuple[Path | None, Path]:
    """The index file of a data set, or none, and the folder that its paths start at."""
    pair = index_at(str(source))
    if pair is not None:
        return pair
    source = Path(source)
    if source.is_file():
        return source, source.parent
    return (source / "index.csv" if (source / "index.csv").is_file() else None), source


def index_at(source: str, is_index: Callable[[Path], bool] = Path.is_file) -> tuple[Path, Path] | None:
    """Index and folder of ``INDEX@FOLDER``, or none where the source is a path of its own or names no index.

    Names may hold an ``@`` themselves: of the places to part them, one where both are there wins, then the last.

    Args:
        source: As the user wrote it.
        is_index: Whether a path counts as an index.
    """
    if Path(source).exists():
        return None
    parted = [(Path(source[:at]), Path(source[at + 1 :])) for at, letter in enumerate(source) if letter == "@"]
    pairs = [pair for pair in parted if is_index(pair[0])]
    there = [pair for pair in pairs if pair[0].is_file() and pair[1].is_dir()]
    return next(reversed(there or pairs), None)
