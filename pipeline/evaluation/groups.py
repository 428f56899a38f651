"""Figures by group: each data set of a measurement, each sequence, and each sequence of each data set."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tumorlens.data.datasets.index import find_index
from tumorlens.data.labels import SEQUENCES
from tumorlens.pipeline.evaluation.tables import Table, cell, is_estimate


class Measured(typing.Protocol):
    """A slice or a scan that was measured: its patient, its fold or None, the number of its data set, its sequence."""

    @property
    def patient(self) -> str: ...
    @property
    def fold(self) -> int | None: ...
    @property
    def source(self) -> int: ...
    @property
    def sequence(self) -> str: ...


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
