"""Reads index files, and finds them in the data that a user names: a folder, an index, or ``INDEX@FOLDER``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

from tumorlens.data.datasets.folders import SPLIT_FOLDERS
from tumorlens.data.datasets.listing import Listing, Row
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.dicom.headers import is_dicom
from tumorlens.data.errors import InputError
from tumorlens.data.files import text_of_cell
from tumorlens.data.labels import SEQUENCES
from tumorlens.data.scan import ACQUISITION
from tumorlens.data.spellings import canonical_label

CHANNELS = 3  # of a color picture


def read_index(
    index: Path, root: Path, label_map: Mapping[str, str] | None = None, channel: int | None = None
) -> Listing:
    """The rows of an index, and everything that is wrong with them.

    Args:
        index: A CSV file; see `data.datasets.load.load_samples` for its columns.
        root: The folder at which its paths start.
        label_map: The user's own label names -> classes.
        channel: The channel to take of color pictures instead of those that the index names.

    Raises:
        InputError: The file is not a CSV file, lacks a column, or has no rows.
    """
    listing = Listing(root, index)
    first: dict[tuple[Path, str, int | None], str] = {}
    for number, cells in _cells(index):
        row = _read_row(cells, listing, f"line {number}", label_map, channel)
        if row is None:
            continue
        listing.rows.append(row)
        content = row.sample.image, row.sample.plane, row.sample.channel
        other = first.setdefault(content, row.where)
        if other != row.where:
            listing.report(row.where, "repeated_row", f"{cells['image']} is in {other} already", stops=False)
    return listing


def _cells(index: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells by column of the rows that are not blank. A missing cell is empty."""
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="more cells than columns", restval="")
            columns = set(reader.fieldnames or ())
            rows = [(reader.line_num, {k: v for k, v in row.items() if isinstance(v, str)}) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{index}: this is not a CSV file in UTF-8") from None
    if "image" not in columns or columns.isdisjoint(("label", "mask")):
        lacking = "column image is" if "image" not in columns else "column label is"
        lacking = lacking if "image" in columns or "label" in columns else "columns image and label are"
        raise InputError(f"{index}: the {lacking} missing; the cells of a line are separated by commas")
    rows = [(number, cells) for number, cells in rows if any(cells.values())]
    if not rows:
        raise InputError(f"{index}: the index has no rows")
    return rows


def _read_row(
    cells: Mapping[str, str], listing: Listing, where: str, label_map: Mapping[str, str] | None, channel: int | None
) -> Row | None:
    """One row; None where its image is not there. Its problems go to the listing."""
    report = partial(listing.report, where)
    if not cells["image"]:
        report("bad_row", "image is empty")
    paths = {column: listing.root / cells[column] for column in ("image", "mask") if cells.get(column)}
    missing = [column for column, path in paths.items() if not _is_there(path)]
    for column in missing:
        report("missing_file", f"no such file {paths[column]}{_there_instead(paths[column])}")
    label = ""
    if cells.get("label"):
        try:
            label = canonical_label(cells["label"], label_map, exact=True)
        except InputError as error:
            report("unknown_label", str(error))
    fold = _number(cells, "fold", report, 0)
    every = _number(cells, "every", report, 1)
    own_channel = _number(cells, "channel", report, 0, CHANNELS - 1)
    split = cells.get("official_split") or cells.get("split") or ""
    if split and split.lower() not in SPLIT_FOLDERS:
        report("bad_row", f"split {split!r} is not train, validation or test and counts as train", stops=False)
    sequence = cells.get("sequence", "").lower()
    if sequence and sequence not in SEQUENCES:
        report("bad_row", f"sequence {sequence!r} is not one of {', '.join(SEQUENCES)} and is ignored", stops=False)
        sequence = ""
    if "image" not in paths or "image" in missing:
        return None
    sample = Sample(
        paths["image"],
        label,
        text_of_cell(cells.get("patient", "")),
        None if "mask" in missing else paths.get("mask"),
        fold,
        SPLIT_FOLDERS.get(split.lower(), ""),
        channel=own_channel if channel is None else channel,
        plane=cells.get("cut") or ACQUISITION,
        sequence=sequence,
    )
    return Row(sample, where, every or 1, mask_missing="mask" in missing)


def _there_instead(path: Path) -> str:
    """What lies at the place of a missing file, and why it is not taken; empty where nothing does."""
    try:
        return _found_at(path)
    except OSError:  # a name that is too long, or a folder that this user may not look into
        return ""


def _found_at(path: Path) -> str:
    if path.is_dir():
        return ", it is a folder without DICOM files or a result"
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent}; if paths are relative to another folder, give INDEX@FOLDER)"
    by_name, by_stem = _files_in(path.parent, path.parent.stat().st_mtime_ns)
    same = by_name.get(path.name.lower())
    if same:
        return f" (there is {same}; upper and lower case count)"
    alike = by_stem.get(path.name.partition(".")[0].lower())
    return f" (there is {alike}; a row names the file with its ending)" if alike else ""


@lru_cache(8)  # many rows may name files of a folder that are not there
def _files_in(folder: Path, _changed_ns: int) -> tuple[dict[str, str], dict[str, str]]:
    """The files of a folder by their names, and by their names without endings, both in small letters."""
    names = sorted((f.name for f in folder.iterdir() if f.is_file() and f.name[0] != "."), reverse=True)
    return {name.lower(): name for name in names}, {name.partition(".")[0].lower(): name for name in names}


def _is_there(path: Path) -> bool:
    """Whether a path is a file, or a folder of DICOM files or of a result."""
    try:
        return path.is_file() or any(_is_of_use(file) for file in path.rglob("*"))
    except OSError:  # a name that is too long
        return False


def _is_of_use(file: Path) -> bool:
    return file.name == "result.json" or is_dicom(file)


def _number(
    cells: Mapping[str, str], column: str, report: Callable[[str, str], None], least: int, most: int | None = None
) -> int | None:
    """The whole number in a column; None where the cell is empty or holds something else, which is reported."""
    text = cells.get(column, "").strip()
    if not text:
        return None
    short = text.isdecimal() and len(text) < 20  # int() raises on thousands of digits
    if short and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    up_to = "on" if most is None else f"to {most}"
    report("bad_row", f"{column} {text[:40]!r} is not a whole number from {least} {up_to}")
    return None


def find_index(source: str | Path) -> tuple[Path | None, Path]:
    """The index file of a data set, or None, and the folder at which its paths start."""
    pair = _index_at(str(source))
    if pair is not None:
        return pair
    source = Path(source)
    if source.is_file():
        return source, source.parent
    return (source / "index.csv" if (source / "index.csv").is_file() else None), source


def _index_at(source: str) -> tuple[Path, Path] | None:
    """Index and folder of ``INDEX@FOLDER``, or None where the source is a path of its own or names no index.

    Names may hold an ``@`` themselves. Of the places to part them, one where the folder exists wins, then the last one.
    """
    if Path(source).exists():
        return None
    parted = [(Path(source[:at]), Path(source[at + 1 :])) for at, letter in enumerate(source) if letter == "@"]
    pairs = [pair for pair in parted if pair[0].is_file()]
    with_folder = [pair for pair in pairs if pair[1].is_dir()]
    return next(reversed(with_folder or pairs), None)
