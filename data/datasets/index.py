"""What a user names as data: a folder, an index, or ``INDEX@FOLDER``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from tumorlens.data.datasets.folders import (
    SPLIT_FOLDERS,
)
from tumorlens.data.datasets.sample import Sample, slices_of
from tumorlens.data.errors import InputError
from tumorlens.data.labels import canonical_label
from tumorlens.data.scan import ACQUISITION

CHANNELS = 3  # of a colour picture


def load_index(index: Path, label_map: Mapping[str, str] | None = None, root: str | Path | None = None) -> list[Sample]:
    """Samples of an index file; see `load_samples`."""
    base = Path(root) if root is not None else index.parent
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"image", "label"} - set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{index}: this is no CSV file in UTF-8") from None
    if missing:
        raise InputError(f"{index}: the column {' and '.join(sorted(missing))} is missing")
    samples: list[Sample] = []
    for number, row in rows:
        if not any(value for value in row.values() if isinstance(value, str)):
            continue
        try:
            samples.extend(_index_row(row, base, label_map))
        except InputError as error:
            raise InputError(f"{index} line {number}: {error}") from None
    if not samples:
        raise InputError(f"{index}: the index has no rows")
    return samples


def _index_row(row: Mapping[str, str | None], base: Path, label_map: Mapping[str, str] | None) -> list[Sample]:
    """The sample of one row, or the slices of its volume."""
    for column in ("image", "label"):
        if not row[column]:
            raise InputError(f"{column} is empty")
    image = base / str(row["image"])
    mask = base / str(row["mask"]) if row.get("mask") else None
    for path in (image, mask):
        if path is not None and not path.is_file():
            raise InputError(f"no such file {path}")
    fold = _number(row, "fold", 0)
    split = SPLIT_FOLDERS.get((row.get("official_split") or row.get("split") or "").lower(), "")
    label = canonical_label(str(row["label"]), label_map)
    channel = _number(row, "channel", 0, CHANNELS - 1)
    cut = row.get("cut") or ACQUISITION
    sample = Sample(image, label, row.get("patient") or "", mask, fold, split, channel=channel, plane=cut)
    every = _number(row, "every", 1) or 1
    return slices_of(sample)[::every]


def _number(row: Mapping[str, str | None], column: str, least: int, most: int | None = None) -> int | None:
    """The whole number in a column, or none where it is empty."""
    return whole_number((row.get(column) or "").strip(), column, least, most)


def whole_number(text: str, column: str, least: int, most: int | None = None) -> int | None:
    """The whole number that a cell holds, or none where it is empty.

    Raises:
        InputError: It holds something else, or a number out of its range.
    """
    if not text:
        return None
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        up_to = "on" if most is None else f"to {most}"
        raise InputError(f"{column} {text!r} is no whole number from {least} {up_to}")
    return int(text)


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
