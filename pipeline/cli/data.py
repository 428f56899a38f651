"""`tumorlens data explore | check | split`: look at a data set, find its problems, divide it by patient."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.config import CHANNEL, LABEL_MAP, LAYOUTS, setting
from tumorlens.data.errors import require
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, say, typed_command

if TYPE_CHECKING:
    from tumorlens.data.inspection.divide import Division


@dataclass(frozen=True)
class DataCall:
    """The data set, and the printed output."""

    source: str = setting(help=f"{LAYOUTS}.", argument=True, metavar="DATA")
    label_map: tuple[tuple[str, str], ...] = setting((), LABEL_MAP)
    channel: int | None = setting(None, CHANNEL)
    overwrite: bool = setting(False, "Replace what this command wrote there before.")
    quiet: bool = setting(False, "Print errors only.", flag="-q --quiet")


@dataclass(frozen=True)
class ExploreCall(DataCall):
    """The place of the report, and its choice of examples."""

    out: Path = setting(Path("report"), "The report's folder.", flag="-o --out")
    seed: int = setting(0, "Another seed shows other examples.", least=0)


@dataclass(frozen=True)
class CheckCall(DataCall):
    """The uses of the findings."""

    out: Path | None = setting(None, "Also write all findings as JSON.", flag="-o --out")
    examples: int = setting(5, "How many findings of a kind to print.", least=0)
    as_json: bool = setting(False, "Print all findings as JSON.", flag="--json")


@dataclass(frozen=True)
class SplitCall(DataCall):
    """The division of the data set, and the place of the index."""

    out: Path = setting(Path("index.csv"), "The index to write.", flag="-o --out")
    shares: tuple[float, float, float] = setting(
        (0.70, 0.15, 0.15), "Shares of training, validation and test patients.", metavar="X X X"
    )
    folds: int | None = setting(None, "Make so many folds instead.", least=3)
    seed: int = setting(0, "Another seed makes another division.", least=0)


def _explore(values: Values) -> int:
    from tumorlens.data.inspection.explore import PAGE, explore

    require("this command", "data")
    call = fill(ExploreCall, values)
    with Progress("slices read", hidden=call.quiet) as progress:
        numbers = explore(
            call.source,
            call.out,
            label_map=dict(call.label_map),
            seed=call.seed,
            overwrite=call.overwrite,
            channel=call.channel,
            command=typed_command(),
            progress=progress,
        )
    if not call.quiet:
        for remark in numbers["remarks"]:
            say(f"- {remark}")
        say(f"{numbers['slices']} slices, report: {call.out / PAGE}")
    return 1 if numbers["left_out"] else 0


def _check(values: Values) -> int:
    import json

    from tumorlens.data.inspection.check import check_set
    from tumorlens.data.inspection.findings import check_out, write_findings

    call = fill(CheckCall, values)
    if call.out is not None:
        check_out(call.out, call.overwrite)
    with Progress("slices read", hidden=call.quiet or call.as_json) as progress:
        report = check_set(call.source, dict(call.label_map), call.channel, progress)
    if call.out is not None:
        write_findings(report, call.out, call.overwrite)
    if call.as_json:
        say(json.dumps(report.as_dict(), indent=1))
    elif not call.quiet:
        say(report.as_text(call.examples))
    return 1 if report.problems else 0


def _split(values: Values) -> None:
    from tumorlens.data.inspection.divide import check_index, divide, write_index

    call = fill(SplitCall, values)
    if call.folds is not None:
        require("--folds", "data", ["sklearn"])
    check_index(call.out, call.overwrite)
    with Progress("slices read", hidden=call.quiet) as progress:
        division = divide(call.source, dict(call.label_map), call.shares, call.folds, call.seed, call.channel, progress)
    write_index(division, call.out, call.overwrite)
    if not call.quiet:
        say(_summary(division))
        inside = call.out.parent.resolve() == division.root.resolve()
        data = str(call.out) if inside else f"{call.out}@{division.root}"
        how = "--split official" if call.folds is None else "--fold 0"
        say(f"train with: --data {shlex.quote(data)} {how}")


def _summary(division: Division) -> str:
    """The contents of each part in a line, with a warning about the classes that it lacks."""
    lines = []
    for part, counts in division.counts().items():
        classes = {name: n for name, n in counts.items() if name not in ("slices", "patients")}
        labels = ", ".join(f"{n} {name}" for name, n in classes.items())
        lines.append(f"{part}: {counts['slices']} slices of {counts['patients']} patients: {labels}")
        absent = [name for name, n in classes.items() if not n]
        if absent:
            lines.append(f"  warning: no slice of {part} shows {', '.join(absent)}; its patients are too few")
    if division.left_out:
        lines.append(f"{division.left_out} slices with neither a label nor a mask were left out")
    if division.merged:
        lines.append(f"{division.merged} patients were kept with another whose slices show the same picture")
    return "\n".join(lines)


explore = command(
    _explore,
    ExploreCall,
    details="Exit codes: 0 done, 1 done without the slices that cannot be read, 2 wrong use.",
    examples="""
    tumorlens data explore my-set -o report
    tumorlens data explore index.csv@pictures --map tumeur=glioma
    """,
)

check = command(
    _check,
    CheckCall,
    details="Exit codes: 0 no problems (notes are not problems), 1 problems, 2 wrong use.",
    examples="""
    tumorlens data check my-set
    tumorlens data check my-set --examples 20 -o findings.json
    """,
)

split = command(
    _split,
    SplitCall,
    details="Exit codes: 0 done, 2 wrong use.",
    examples="""
    tumorlens data split my-set -o index.csv
    tumorlens data split my-set --folds 5 -o index.csv
    """,
)
