"""results.csv: one row for each scan."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.labels import CLASSES

_TEXTS = ("review", "error")  # columns of free text; `scan` is a key and stays as it is
_FORMULA = tuple("=+-@\t\r\n")  # a spreadsheet program may run a cell that begins so
_FIGURES = ("tumor_area_px", "tumor_area_mm2", "tumor_volume_mm3")
COLUMNS = (
    *("scan", "label", "confidence"),
    *(f"p_{name}" for name in CLASSES),
    *("prediction_set", "malignancy"),
    *_FIGURES,
    *("review", "error"),
)


def csv_row(content: dict[str, Any]) -> dict[str, str]:
    """The row of ``results.csv`` for the content of a ``result.json``."""
    probabilities = content["probabilities"] or {}
    return {
        "scan": content["scan"]["name"],
        "label": content["label"],
        "confidence": _number(content["confidence"], 4),
        **{f"p_{name}": _number(probabilities.get(name), 4) for name in CLASSES},
        "prediction_set": "|".join(content["prediction_set"]),
        "malignancy": content["malignancy"],
        **{name: _number(content[name], 3) for name in _FIGURES},
        "review": in_cell(content["review"]),
        "error": "",
    }


def in_cell(reasons: Sequence[str]) -> str:
    """Reasons to review as one cell of the table."""
    return "; ".join(reasons)


def safe_cell(text: str) -> str:
    """The text, with a ``'`` before it if a spreadsheet program may take it for a formula (OWASP: CSV injection)."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def error_row(name: str, error: str) -> dict[str, str]:
    """The row of ``results.csv`` for a scan that failed."""
    return {**dict.fromkeys(COLUMNS, ""), "scan": name, "error": error}


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write ``results.csv`` whole, with texts as `safe_cell` gives them.

    Bytes of a file name that are not Unicode become escapes.
    """
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, **{name: safe_cell(row.get(name, "")) for name in _TEXTS}} for row in rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a ``results.csv`` as they were before `write_table`; empty if there is no such file.

    Raises:
        InputError: The file is not as `write_table` writes it. A spreadsheet program may have saved it in its own way.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = [{c: row.get(c) or "" for c in COLUMNS} for row in reader if row.get("scan")]
            rows = [{**row, **{name: _unsafe(row[name]) for name in _TEXTS}} for row in rows]
    except (UnicodeDecodeError, csv.Error):
        columns = ()
    if columns != COLUMNS:
        raise InputError(f"{path}: this is not the table as tumorlens writes it; move it away, or choose another -o")
    return rows


def _unsafe(cell: str) -> str:
    """The text of a cell that `safe_cell` made."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def _number(value: float | int | None, digits: int) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.{digits}f}"
