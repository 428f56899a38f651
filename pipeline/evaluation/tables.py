"""Figures as tables: values with their intervals, nested figures as flat lists, mean and deviation over folds; and the
groups that have figures of their own: each data set, each sequence, and each sequence of each data set."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Generic, TypeVar

from tumorlens.data.datasets.index import find_index
from tumorlens.data.labels import SEQUENCES

_ESTIMATE = {"value", "low", "high"}
_BY_NAME = ("by_patient",)  # figures of single patients stand in the JSON file only


@dataclass(frozen=True)
class Table:
    """A titled table of texts.

    Attributes:
        title: Above it.
        header: Names of the columns.
        rows: Each as long as the header.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As GitHub's Markdown writes tables."""
        lines = [f"## {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        return "\n".join(lines + [_line(row) for row in self.rows]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def cell(figure: Any) -> str:
    """A figure as text, such as ``0.9564 [0.9421, 0.9688]``, or ``-`` where it is undefined."""
    if figure is None:
        return "-"
    if is_estimate(figure):
        if figure["low"] is None:
            return number(figure["value"])
        return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, float):
        return number(figure)
    if isinstance(figure, (list, tuple)):
        return ", ".join(cell(f) for f in figure) or "-"
    return str(figure)


def number(value: float) -> str:
    """A number with four decimals, or with two from 10 on, where it counts pixels."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def is_estimate(figure: Any) -> bool:
    """Whether something is a value with an interval."""
    return isinstance(figure, dict) and set(figure) == _ESTIMATE


def leaves(figures: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a nested report with its dotted path. An estimate is one figure, an undefined one is None."""
    if is_estimate(figures) or not isinstance(figures, dict):
        yield path, figures
        return
    for key, value in figures.items():
        if key not in _BY_NAME:
            yield from leaves(value, f"{path}.{key}" if path else str(key))


def listing(title: str, figures: dict[str, Any]) -> Table:
    """A row for each figure of a nested report."""
    rows = [(path.replace(".", ", ").replace("_", " "), cell(figure)) for path, figure in leaves(figures)]
    return Table(title, ("", "value"), rows)


def count_table(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """A confusion matrix."""
    rows = [(name, *(str(n) for n in row)) for name, row in zip(names, counts, strict=True)]
    return Table(title, ("", *names), rows)


def over_folds(by_fold: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation (n - 1, None for one fold) over the folds that define a figure, by dotted path."""
    defined: dict[str, list[float]] = {}
    for figures in by_fold.values():
        for path, figure in leaves(figures):
            value = figure["value"] if is_estimate(figure) else figure
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                defined.setdefault(path, []).append(float(value))
    return {
        path: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "folds": len(values)}
        for path, values in defined.items()
    }


def fold_table(headline: dict[str, str], by_fold: dict[str, dict[str, Any]], pooled: dict[str, Any]) -> Table:
    """A table of the headline figures: each fold, mean and deviation, and all slices with their interval."""
    spread, everything = over_folds(by_fold), dict(leaves(pooled))
    each = {fold: dict(leaves(figures)) for fold, figures in by_fold.items()}
    rows = []
    for path, title in headline.items():
        if path not in spread:
            continue
        about = spread[path]
        deviation = "" if about["sd"] is None else f" ± {number(about['sd'])}"
        values = [_value(figures.get(path)) for figures in each.values()]
        rows.append((title, *values, number(about["mean"]) + deviation, cell(everything.get(path))))
    header = ("", *(f"fold {fold}" for fold in by_fold), "mean ± sd", "all folds together")
    return Table("Fold by fold", header, rows)


def _value(figure: Any) -> str:
    return cell(figure["value"]) if is_estimate(figure) else cell(figure)


class Measured(typing.Protocol):
    """A slice or a scan that was measured: its patient, its fold or None, the number of its data set, its sequence, how
    many of its slices the weights know."""

    @property
    def patient(self) -> str: ...
    @property
    def fold(self) -> int | None: ...
    @property
    def source(self) -> int: ...
    @property
    def sequence(self) -> str: ...
    @property
    def n_known(self) -> tuple[int, int]: ...


CaseT = TypeVar("CaseT", bound=Measured)


@dataclass(frozen=True)
class Group(Generic[CaseT]):
    """Cases of one data set, or of one sequence, or of both.

    Attributes:
        by: What they have in common: ``source``, ``sequence`` or ``source and sequence``.
        name: Such as ``"0 web"``, ``"flair"`` or ``"1 lgg, flair"``.
        cases: At least one.
    """

    by: str
    name: str
    cases: list[CaseT]


def source_names(data: Sequence[str]) -> list[str]:
    """The name of each data set of a request: that of its folder, or of its index where that has a name of its own."""
    names = []
    for source in data:
        index, root = find_index(source)
        names.append(root.resolve().name if index is None or index.stem == "index" else index.stem)
    return names


def groups_of(cases: Sequence[CaseT], sources: Sequence[str]) -> list[Group[CaseT]]:
    """The groups of some cases, in the order of the data sets and of `data.labels.SEQUENCES`.

    A single data set is not a group. A case whose sequence is not known is in no group of a sequence.

    Args:
        cases: In any order.
        sources: The name of each data set, see `source_names`.
    """
    several = len(sources) > 1

    def source(case: CaseT) -> str:
        return f"{case.source} {sources[case.source]}" if several else ""

    def sequence(case: CaseT) -> str:
        return case.sequence

    def both(case: CaseT) -> str:
        return f"{source(case)}, {case.sequence}" if several and case.sequence else ""

    names: dict[str, Callable[[CaseT], str]] = {"source": source, "sequence": sequence, "source and sequence": both}
    ordered = sorted(cases, key=lambda case: ["", *SEQUENCES].index(case.sequence))
    groups: dict[tuple[str, str], Group[CaseT]] = {}
    for by, name_of in names.items():
        for case in ordered if by == "sequence" else sorted(ordered, key=lambda case: case.source):
            if name := name_of(case):
                groups.setdefault((by, name), Group(by, name, [])).cases.append(case)
    return list(groups.values())


def group_table(rows: Sequence[dict[str, Any]], titles: dict[str, str]) -> Table:
    """The figures of all groups, a row each.

    Args:
        rows: From `pipeline.evaluation.base.Evaluation.groups`.
        titles: Figure -> title of its column.
    """
    cells = [
        (row["group"], f"{row['n']} {row['kind']}", str(row["n_patients"]), *(cell(row[key]) for key in titles))
        for row in rows
    ]
    return Table("By data set and sequence", ("", "n", "patients", *titles.values()), cells)


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a CSV file: an estimate takes three columns, ``auc``, ``auc_low`` and ``auc_high``."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if is_estimate(value):
            flat |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        else:
            flat[key] = value
    return flat
