"""`tumorlens data explore | check | split`: look at a data set, find what is wrong with it, divide it by patient."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tumorlens.data.errors import InputError, printable
from tumorlens.pipeline.cli.options import LAYOUTS, Channel, LabelMap, parse_map
from tumorlens.pipeline.cli.screen import Reading

data_app = typer.Typer(no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help=f"{LAYOUTS}.",
    ),
]

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote there before.")]


@data_app.command()
def explore(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", help="The report's folder.")] = Path("report"),
    label_map: LabelMap = None,
    channel: Channel = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other examples.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a report on a data set: index.html (one file, opens offline), report.json, figures/.

    Exit codes: 0 done, 1 done without the slices that cannot be read, 2 wrong use.
    """
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors():
        from tumorlens.data.inspection.explore import PAGE
        from tumorlens.data.inspection.explore import explore as write_report

        _check_writable(out)
        command = "tumorlens " + shlex.join(sys.argv[1:])
        with _bar(quiet) as progress:
            mapping = dict(parse_map(label_map))
            numbers = write_report(source, out, mapping, seed, overwrite, channel, command, progress)
        if not quiet:
            for remark in numbers["remarks"]:
                typer.echo(f"- {printable(remark)}")
            typer.echo(printable(f"{numbers['slices']} slices, report: {out / PAGE}"))
    if numbers["left_out"]:
        raise typer.Exit(1)


@data_app.command()
def check(
    source: Source,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write all findings as JSON.")] = None,
    label_map: LabelMap = None,
    channel: Channel = None,
    examples: Annotated[int, typer.Option(min=0, help="How many findings of a kind to print.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Say all that is wrong with a data set: files, labels, masks, copies and patients in two parts.

    Exit codes: 0 no problems (notes are none), 1 problems, 2 wrong use.
    """
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors():
        from tumorlens.data.inspection.check import check_set
        from tumorlens.data.inspection.findings import check_out, write_findings

        if out is not None:
            _check_writable(out)
            check_out(out, overwrite)
        with _bar(quiet or as_json) as progress:
            report = check_set(source, dict(parse_map(label_map)), channel, progress)
        if out is not None:
            write_findings(report, out, overwrite)
        if as_json:
            typer.echo(json.dumps(report.as_dict(), indent=1))
        elif not quiet:
            typer.echo(printable(report.as_text(examples)))
    if report.problems:
        raise typer.Exit(1)


@data_app.command()
def split(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", help="The index to write.")] = Path("index.csv"),
    shares: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of training, validation and test patients.")
    ] = (0.70, 0.15, 0.15),
    folds: Annotated[int | None, typer.Option(min=3, help="Make so many folds instead.")] = None,
    label_map: LabelMap = None,
    channel: Channel = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another division.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Divide a data set by patient into train, validation and test (or folds) and write that as an index.

    Exit codes: 0 done, 2 wrong use.
    """
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors():
        from tumorlens.data.inspection.divide import check_index, divide, write_index

        _check_writable(out)
        check_index(out, overwrite)
        with _bar(quiet) as progress:
            division = divide(source, dict(parse_map(label_map)), shares, folds, seed, channel, progress)
        write_index(division, out, overwrite)
        if not quiet:
            typer.echo(_told(division))
            data = str(out) if out.parent.resolve() == division.root.resolve() else f"{out}@{division.root}"
            how = "--split official" if folds is None else "--fold 0"
            typer.echo(printable(f"train with: --data {shlex.quote(data)} {how}"))


def _check_writable(out: Path) -> None:
    """Raise an `InputError` where nothing can be written, before minutes of reading rather than after."""
    nearest = out if out.is_dir() else next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{out}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{out}: {nearest} is a folder that you may not write to")


def _told(division: Any) -> str:
    """What the parts hold, a line each, and what they lack."""
    lines = []
    for part, counts in division.counts().items():
        classes = {name: n for name, n in counts.items() if name not in ("slices", "patients")}
        held = ", ".join(f"{n} {name}" for name, n in classes.items())
        lines.append(f"{part}: {counts['slices']} slices of {counts['patients']} patients: {held}")
        lacking = [name for name, n in classes.items() if not n]
        if lacking:
            lines.append(f"  warning: no slice of {part} shows {', '.join(lacking)}; its patients are too few")
    if division.merged:
        lines.append(f"{division.merged} patients were kept with another whose slices show the same picture")
    return printable("\n".join(lines))


def _bar(hidden: bool) -> Reading:
    """A progress bar on a terminal."""
    return Reading(not hidden and sys.stderr.isatty())
