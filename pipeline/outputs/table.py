"""results.csv: one row a scan."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.labels import CLASSES

COLUMNS = (
    "scan",
    "label",
    "confidence",
    "p_no_tumor",
    "p_glioma",
    "p_meningioma",
    "p_pituitary",
    "prediction_set",
    "malignancy",
    "tumor_area_px",
    "tumor_area_mm2",
    "tumor_volume_mm3",
    "review",
    "error",
)


def csv_row(content: dict[str, Any]) -> dict[str, str]:
    """The row of ``results.csv`` for the content of a ``result.json``."""
    known = content["probabilities"] or {}
    return {
        "scan": content["scan"]["name"],
        "label": content["label"],
        "confidence": "" if content["confidence"] is None else f"{content['confidence']:.4f}",
        **{f"p_{name}": f"{known[name]:.4f}" if name in known else "" for name in CLASSES},
        "prediction_set": "|".join(content["prediction_set"]),
        "malignancy": content["malignancy"],
        **{name: _number(content[name]) for name in ("tumor_area_px", "tumor_area_mm2", "tumor_volume_mm3")},
        "review": "; ".join(content["review"]),
        "error": "",
    }


def error_row(name: str, error: str) -> dict[str, str]:
    """The row of ``results.csv`` for a scan that failed."""
    return {**dict.fromkeys(COLUMNS, ""), "scan": name, "error": error}


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """``results.csv``, whole; what is no Unicode (of a file name) as escapes."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a ``results.csv``; none where there is no such file.

    Raises:
        InputError: The file is not as `write_table` wrote it (a spreadsheet may have saved it in its own way).
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{c: row.get(c) or "" for c in COLUMNS} for row in reader if row.get("scan")]
    except (UnicodeDecodeError, csv.Error):
        reader = None
    if reader is None or tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: this is not the table as tumorlens writes it; move it away, or choose another -o")
    return rows


def _number(value: float | int | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
