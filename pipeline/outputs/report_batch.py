"""The report of a run as HTML: counts, failed and refused scans, and a table that can be sorted without a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tumorlens.data.files import write_text
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR_FREE, ClassList
from tumorlens.data.plotting import shown_probability
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.outputs import REPORT
from tumorlens.pipeline.outputs.report_html import GENERATOR, render
from tumorlens.pipeline.versions import package_versions

_KINDS = ("failed", "refused", "doubt", "tumor", "free")  # in the order in which they need a look
_LOOK = ("failed", "refused", "doubt")  # have a color
_SIZES = (("tumor_volume_mm3", "ml", 1000), ("tumor_area_mm2", "mm²", 1), ("tumor_area_px", "px", 1))


def write_batch_report(
    out: Path, rows: Sequence[Mapping[str, str]], folders: Mapping[str, str], classes: ClassList = SHIPPED_CLASSES
) -> None:
    """Write ``report.html`` of a whole run: counts, failed and refused scans, and a table with links to the reports.

    Args:
        out: The output folder.
        rows: The rows of ``results.csv``. The report names scans as they do.
        folders: Name of a scan -> its folder in `out`.
        classes: The classes of the results.
    """
    shown = [_batch_row(row, out, folders, classes) for row in rows]
    orders = {
        "look": ("what needs a look first", lambda r: (_KINDS.index(r["kind"]), r["scan"])),
        "scan": ("scan", lambda r: r["scan"]),
        "label": ("label", lambda r: (r["label"], r["scan"])),
        "confidence": ("least confident first", lambda r: (not r["confidence"], r["share"])),
        "size": ("largest first", lambda r: -r["amount"]),
    }
    for key, (_, rank) in orders.items():
        for place, row in enumerate(sorted(shown, key=rank)):
            row["places"] += f"--{key}:{place};"
    counts = Counter(row["label"] for row in shown)
    counts["to look at"] = sum(row["kind"] in _LOOK for row in shown)
    html = render(
        "batch.html",
        rows=sorted(shown, key=orders["look"][1]),
        keys=list(orders),
        orders=[(key, words) for key, (words, _) in orders.items()],
        counts=sorted(counts.items()),
        about=f"tumorlens {package_versions().get('tumorlens', '')}, {date.today().isoformat()}",
    )
    write_text(out / REPORT, html)


def is_batch_report(path: Path) -> bool:
    """Whether `write_batch_report` wrote a file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return GENERATOR in file.read(1000)
    except OSError:
        return False


def _batch_row(row: Mapping[str, str], out: Path, folders: Mapping[str, str], classes: ClassList) -> dict[str, Any]:
    kind = "doubt" if row["review"] else "free" if row["label"] == TUMOR_FREE else "tumor"
    if row["error"] or row["label"] == REFUSED:
        kind = "failed" if row["error"] else "refused"
    folder = folders[row["scan"]]
    size, amount = "", 0.0
    for column, unit, scale in _SIZES:
        if not size and row[column]:
            amount = float(row[column]) / scale
            size = f"{amount:.3g} {unit}" if unit == "ml" else f"{amount:.0f} {unit}"
    return {
        **row,
        "label": {"": "failed", REFUSED: REFUSED}.get(row["label"]) or classes.prose(row["label"]),
        "confidence": row["confidence"] and shown_probability(float(row["confidence"])),
        "share": float(row["confidence"] or 0),
        "kind": kind,
        "size": size if amount else "",
        "amount": amount,
        "why": row["error"] or row["review"],
        "href": f"{quote(folder)}/{REPORT}" if not row["error"] and (out / folder / REPORT).is_file() else "",
        "places": "",
    }
