"""The data report as one HTML file, from the template ``page.html``: pictures inside, no script, nothing to load."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.plotting import plain

GENERATOR = "tumorlens data explore"

_COPIES = {
    "equal_files": "files with the same bytes as another",
    "alike_slices": "slices that look like another, as they are or mirrored",
    "alike_pairs": "pairs of look-alikes",
    "mirrored_pairs": "of these, mirrored",
    "pairs_of_two_patients": "of two patients",
    "pairs_without_patient": "without a known patient",
    "pairs_of_two_labels": "with labels that contradict each other",
    "pairs_across_folds": "in two folds",
    "pairs_across_official_split": "on both sides of the official split",
    "test_slices_with_a_copy_in_training": "test slices of the official split with a copy in another part",
    "patients_across_folds": "patients in two folds",
    "patients_across_official_split": "patients on both sides of the official split",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Its file's stem.
        alt: A description for readers who cannot see it.
        png: The file.
    """

    name: str
    alt: str
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """A table of the page, as text."""

    head: list[str]
    rows: list[list[str]]


def page(numbers: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    """The whole page.

    Args:
        numbers: The content of ``report.json``.
        pictures: By name. A section without its picture is left out or says why.
    """
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    auc = sorted((numbers["source_auc"] or {}).items(), key=lambda item: -item[1])
    return (
        Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
        .from_string(template)
        .render(
            generator=GENERATOR,
            numbers=numbers,
            pictures=pictures,
            classes=_classes(numbers),
            source_auc=[[name, f"{area:.3f}"] for name, area in auc],
            lesions=_lesions(numbers),
            folds=_parts(numbers["folds"]["table"], "fold "),
            official_split=_parts(numbers["official_split"], ""),
            copies=[[text, str(numbers["copies"][key])] for key, text in _COPIES.items()],
        )
    )


def _classes(numbers: Mapping[str, Any]) -> Table:
    """Slices, patients, masks and sizes of each class, and of all."""
    rows: list[list[object]] = [
        [
            plain(name),
            row["slices"],
            f"{100 * row['share']:.1f} %",
            row["patients"] or None,
            row["masks"],
            row["color_slices"],
            _range(row["columns"]),
            _range(row["rows"]),
        ]
        for name, row in numbers["classes"].items()
    ]
    masks, color = (sum(row[key] for row in numbers["classes"].values()) for key in ("masks", "color_slices"))
    rows.append(["all", numbers["slices"], "", numbers["patients"]["n"] or None, masks, color, "", ""])
    return _table(["class", "slices", "share", "patients", "masks", "in color", "columns", "rows"], rows)


def _lesions(numbers: Mapping[str, Any]) -> Table:
    """The spread of the lesion's share of the head in each class with masks."""
    rows: list[list[object]] = []
    for name, row in numbers["classes"].items():
        spread = row["lesion_share_of_head"]
        if spread is None and not row["masks_empty_at_this_size"]:
            continue
        shares = [
            None if spread is None else f"{100 * spread[k]:.2g} %" for k in ("min", "q25", "median", "q75", "max")
        ]
        rows.append([plain(name), row["masks"], row["masks_empty_at_this_size"], *shares])
    return _table(["class", "masks", "empty at this size", "minimum", "25 %", "median", "75 %", "maximum"], rows)


def _parts(table: Mapping[str, Any] | None, noun: str) -> Table | None:
    """Slices and patients of each class in each part; None without parts."""
    if table is None:
        return None
    classes = list(next(iter(table.values()))["classes"])
    rows = [
        [noun + part, row["slices"], row["patients"] or None, *(row["classes"][name] for name in classes)]
        for part, row in table.items()
    ]
    return _table(["", "slices", "patients", *(plain(name) for name in classes)], rows)


def _range(spread: Mapping[str, float] | None) -> str | None:
    """Median, and the range around it if there is one."""
    if spread is None:
        return None
    low, middle, high = (f"{spread[key]:.4g}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _table(head: list[str], rows: list[list[object]]) -> Table:
    return Table(head, [["-" if cell is None else str(cell) for cell in row] for row in rows])
