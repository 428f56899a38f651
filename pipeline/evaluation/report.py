"""A report's folder: report.json with all figures, report.md to read, tables to score anew, and pictures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tumorlens.data.files import claim, safe_cell, whole_file, write_text
from tumorlens.pipeline.evaluation.base import Evaluation
from tumorlens.pipeline.evaluation.tables import (
    Table,
    cell,
    flat_row,
    fold_table,
    group_table,
    leaves,
    number,
    over_folds,
)

SCHEMA_VERSION = 1
REPORT = "report.json"
KIND = "tumorlens evaluation"
TEXT, CASES, GROUPS = "report.md", "cases.csv", "groups.csv"
PICTURES = ("confusion.png", "roc.png", "reliability.png", "worst.png", "dice_by_size.png")  # of any stage
_FILES = (REPORT, TEXT, CASES, GROUPS, *PICTURES)
_DIGITS = 9  # a float32 survives that


def check_out(out: Path, overwrite: bool) -> None:
    """Check, before any work is done, that a report may be written to a folder.

    Raises:
        InputError: See `data.files.claim`.
    """
    ours = _files_of(out)
    files = [out / name for name in _FILES]
    claim(files, "a report", lambda path: path.name in ours, overwrite)


def write_report(
    out: Path, about: dict[str, Any], evaluation: Evaluation[Any], folds: list[int | None]
) -> dict[str, Any]:
    """Write the report's files, and delete those of an earlier report that this one does not have.

    Args:
        out: The folder.
        about: The facts at the head of the report: data, protocol, models, command ...
        evaluation: A measured stage.
        folds: The parts that were measured.

    Returns:
        The content of ``report.json``.
    """
    plots = evaluation.plots()
    by_fold = {str(fold): evaluation.figures(fold) for fold in folds if fold is not None}
    figures = next(iter(by_fold.values())) if len(by_fold) == 1 else evaluation.figures()
    groups = evaluation.groups(about["sources"])
    files = [REPORT, TEXT, CASES, *([GROUPS] if groups else []), *plots]
    report = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        **about,
        "n": figures["n"],
        "n_patients": figures["n_patients"],
        "metric_policy": evaluation.policy,
        "figures": figures,
        "by_fold": by_fold,
        "over_folds": over_folds(by_fold) if len(by_fold) > 1 else {},
        "groups": groups,
        "files": files,
    }
    for name in _files_of(out) - set(files):  # of a report on another stage
        (out / name).unlink(missing_ok=True)
    # First, because it marks the other files as a report's if writing them is interrupted.
    write_text(out / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    _write_rows(out / CASES, evaluation.rows())
    if groups:
        _write_rows(out / GROUPS, [flat_row(row) for row in groups])
    for name, write in plots.items():
        write(out / name)
    write_text(out / TEXT, _markdown(report, evaluation, list(plots)))
    return report


def _files_of(out: Path) -> set[str]:
    """The names of the files that a report in a folder lists as its own; empty where there is no report."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        files = report["files"] if report["kind"] == KIND else []
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return set(files) & set(_FILES) if isinstance(files, list) else set()


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return safe_cell(value)
    return f"{float(value):.{_DIGITS}g}" if hasattr(value, "__float__") and not isinstance(value, int) else str(value)


def _markdown(report: dict[str, Any], evaluation: Evaluation[Any], plots: list[str]) -> str:
    parts = [f"# tumorlens: {report['stage']}", ""]
    parts += [f"**Warning: {text}.**\n" for text in report["warnings"]]
    facts = [
        ("protocol", report["protocol"]["title"]),
        ("data", ", ".join(report["data"])),
        ("measured", report["folds"]["choice"]),
        ("n", f"{report['n']} {unit_of(report)} of {report['n_patients']} patients"),
        ("metric policy", report["metric_policy"]),
        *((_model_name(model), _model_text(model)) for model in report["models"]),
        ("engine", "{name} in {precision} on {device}".format(**report["engine"])),
        *(("differs from a run", text) for text in report["differs_from_run"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
        ("made on", report["date"]),
        *(("note", note) for note in report["notes"]),
    ]
    parts.append(Table("What was measured, and how", ("", ""), facts).markdown())
    parts.append(f"Command:\n\n```\n{report['command']}\n```\n")
    tables = evaluation.tables(report["figures"])
    if len(report["by_fold"]) > 1:
        tables.insert(0, fold_table(evaluation.titles, report["by_fold"], report["figures"]))
    if report["groups"]:
        tables.append(group_table(report["groups"], evaluation.group_titles))
    mark = f" ({report['mark']})" if report["mark"] else ""  # at every figure, for tables are copied without the rest
    parts += [replace(table, title=table.title + mark).markdown() for table in tables]
    parts += ["## Pictures", "", *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots), ""]
    return "\n".join(parts)


def unit_of(report: dict[str, Any]) -> str:
    """The noun for the cases that a report counts."""
    return "scans" if report["stage"] == "pipeline" else "slices"


def _model_name(model: dict[str, Any]) -> str:
    return f"{model['stage']} model" + ("" if model["fold"] is None else f", fold {model['fold']}")


def _model_text(model: dict[str, Any]) -> str:
    return f"{model['architecture']}, {model['file']}, SHA-256 {model['sha256']}"


def screen_table(report: dict[str, Any], headline: dict[str, str]) -> str:
    """The headline figures as lines for a terminal."""
    pooled, spread = dict(leaves(report["figures"])), report["over_folds"]
    lines = []
    width = max((len(title) for path, title in headline.items() if path in pooled or path in spread), default=0)
    for path, title in headline.items():
        if pooled.get(path) is None and path not in spread:
            continue
        text = cell(pooled.get(path))
        if path in spread and spread[path]["sd"] is not None:
            text += f"  folds {number(spread[path]['mean'])} ± {number(spread[path]['sd'])}"
        lines.append(f"{title:<{width}}  {text}")
    return "\n".join(lines)
