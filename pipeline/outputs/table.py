"""results.csv: one row for each scan."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError, one_line, printable
from tumorlens.data.files import safe_cell, text_of_cell, whole_file
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.masks.regions import NO_REGIONS, Regions

_TEXTS = ("scan", "review", "error")  # columns whose text comes from files
_FIGURES = ("tumor_area_px", "tumor_area_mm2", "tumor_volume_mm3")
_SIZES = ("area_px", "area_mm2", "volume_mm3")  # of each region
_FIRST, _MIDDLE, _LAST = (
    ("scan", "label", "confidence"),
    ("prediction_set", "malignancy", *_FIGURES),
    ("review", "error"),
)


def columns_of(classes: ClassList, regions: Regions = NO_REGIONS) -> tuple[str, ...]:
    """The columns of a table of results, with the probability of each answer of a classifier, and the size of each
    region of a segmenter."""
    return _columns(classes.outputs, regions.names)


def _columns(classes: Iterable[str], regions: Iterable[str]) -> tuple[str, ...]:
    sizes = (f"region_{name}_{size}" for name in regions for size in _SIZES)
    return (*_FIRST, *(f"p_{name}" for name in classes), *_MIDDLE, *sizes, *_LAST)


def classes_in(columns: Iterable[str]) -> tuple[str, ...]:
    """The names of the classes in the columns of a table of results."""
    return tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))


def regions_in(columns: Iterable[str]) -> tuple[str, ...]:
    """The names of the segmenter's regions in the columns of a table of results."""
    end = f"_{_SIZES[0]}"
    named = (name for name in columns if name.startswith("region_") and name.endswith(end))
    return tuple(name.removeprefix("region_").removesuffix(end) for name in named)


COLUMNS = columns_of(SHIPPED_CLASSES)


def csv_row(content: dict[str, Any]) -> dict[str, str]:
    """The row of ``results.csv`` for the content of a ``result.json``."""
    probabilities = content["probabilities"] or {}
    return {
        "scan": content["scan"]["name"],
        "label": content["label"],
        "confidence": _number(content["confidence"], 4),
        **{f"p_{name}": _number(probabilities.get(name), 4) for name in ClassList.from_card(content).outputs},
        "prediction_set": "|".join(content["prediction_set"]),
        "malignancy": content["malignancy"],
        **{name: _number(content[name], 3) for name in _FIGURES},
        **{
            f"region_{row['name']}_{size}": _number(row[size], 3)
            for row in content.get("regions", ())
            for size in _SIZES
        },
        "review": in_cell(content["review"]),
        "error": "",
    }


def in_cell(reasons: Sequence[str]) -> str:
    """Reasons to review as one cell of the table."""
    return one_line("; ".join(reasons))


def error_row(name: str, error: str, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """The row of ``results.csv`` for a scan that failed."""
    return {**dict.fromkeys(columns, ""), "scan": name, "error": error}


def write_table(path: Path, rows: list[dict[str, str]], columns: Sequence[str] = COLUMNS) -> None:
    """Write ``results.csv`` whole, with texts as `safe_cell` gives them. All rows have the columns.

    Bytes of a file name that are not Unicode become escapes.
    """
    with whole_file(path) as part:
        part.write_bytes(_lines([dict(zip(columns, columns, strict=True)), *rows]))


def write_parquet(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Write the rows of ``results.csv`` as a Parquet table: numbers as numbers, the prediction set as a list, and null
    where there is nothing. Without the package pyarrow there is no table, and an earlier one goes.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        path.unlink(missing_ok=True)
        return
    kinds = dict.fromkeys(columns, pa.string()) | {"prediction_set": pa.list_(pa.string())}
    kinds |= {name: pa.float64() for name in columns if name in ("confidence", *_FIGURES) or name[:2] == "p_"}
    kinds |= {name: pa.float64() for name in columns if name.startswith("region_")}
    kinds |= {name: pa.int64() for name in columns if name.endswith("area_px")}

    def value(name: str, cell: str) -> Any:
        if not cell:
            return None
        if name == "prediction_set":
            return cell.split("|")
        return int(cell) if kinds[name] == pa.int64() else float(cell) if kinds[name] == pa.float64() else cell

    schema = pa.schema(list(kinds.items()))
    plain = [{name: value(name, printable(row[name])) for name in columns} for row in rows]
    with whole_file(path) as part:
        parquet.write_table(pa.Table.from_pylist(plain, schema), part)


def append_row(path: Path, row: dict[str, str]) -> None:
    """Add a row to a table that `write_table` wrote: the whole of it or, where the disk is full, nothing.

    Raises:
        OSError: It cannot be written.
    """
    line = memoryview(_lines([row]))
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            file.truncate(end)
            raise


def _lines(rows: Sequence[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writerows({**row, **{name: safe_cell(row.get(name, "")) for name in _TEXTS}} for row in rows)
    return text.getvalue().encode(errors="backslashreplace")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a ``results.csv`` as they were before they were written; empty if there is no such file.

    Of several rows of one scan, the last counts. A row that a process could not finish before it was killed is left
    out.

    Raises:
        InputError: The file is not as tumorlens writes it. A spreadsheet program may have saved it in its own way.
    """
    if not path.is_file():
        return []
    try:
        header, *rows = _read_rows(path.read_bytes()) or [[]]
    except (UnicodeDecodeError, csv.Error):
        header, rows = [], []
    columns = tuple(header)
    if columns != _columns(classes_in(columns), regions_in(columns)):
        raise InputError(f"{path}: this is not the table as tumorlens writes it; move it away, or choose another -o")
    by_scan: dict[str, dict[str, str]] = {}
    for cells in rows:
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        row |= {name: text_of_cell(row[name]) for name in _TEXTS}
        by_scan.pop(row["scan"], None)  # so that it has the place of the last
        by_scan[row["scan"]] = row
    return [row for name, row in by_scan.items() if name]


def _read_rows(data: bytes) -> list[list[str]]:
    """The cells of a table, without the last row if it is cut off."""
    end = data.rfind(b"\n") + 1
    text = data[:end].decode() + data[end:].decode(errors="replace")
    rows = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            rows.append(row)
    except csv.Error:
        if text.count('"') % 2 == 0:  # else it is cut off within quotes
            raise
    else:
        # Other programs may leave out the last line end. Of a row with a label, the last column is empty.
        whole = bool(rows) and len(rows[-1]) == len(rows[0]) > len(_FIRST) and bool(rows[-1][1])
        if end < len(data) and not whole:
            rows.pop()
    return rows


def _number(value: float | int | None, digits: int) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.{digits}f}"
