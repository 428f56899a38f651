"""`tumorlens review export` and `tumorlens review report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.config import Setting, setting
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import say, warn

_OUT = Setting("Output folder of `tumorlens run` that was reviewed.", argument=True, metavar="OUT")
SCANS = Setting(
    "Where the scans of OUT lie; repeatable.", metavar="INPUT", shown="where `tumorlens run` found them on this machine"
)


@dataclass(frozen=True)
class ReviewExportCall:
    """The reviews to export, and the place of the export."""

    out: Path = setting(help=_OUT)
    folder: Path = setting(
        help="Folder for decisions.csv, index.csv, images and masks.", flag="-o --out", metavar="DIR"
    )
    scans: tuple[str, ...] = setting((), SCANS)
    reviewer: str = setting(
        "", "Take the decisions of one reviewer only.", metavar="NAME", shown="the last on each scan"
    )
    accepted: bool = setting(False, "Add the scans that were accepted as they are to the index.")
    overwrite: bool = setting(False, "Replace an earlier export.")


def _export(values: Values) -> int:
    from tumorlens.pipeline.services.reviews.desk import Desk
    from tumorlens.pipeline.services.reviews.export import DECISIONS, INDEX, export_reviews

    call = fill(ReviewExportCall, values)
    desk = Desk(call.out, call.scans)
    try:
        done = export_reviews(desk, call.folder, call.reviewer, call.accepted, call.overwrite)
    finally:
        desk.close()
    for reason in done.left_out:
        warn(f"not in the index: {reason}")
    say(f"{done.decisions} decisions: {call.folder / DECISIONS}")
    if done.cases:
        say(f"{done.cases} cases to train on: {call.folder / INDEX}")
    return 1 if done.left_out else 0


@dataclass(frozen=True)
class ReviewReportCall:
    """The reviews to report on."""

    out: Path = setting(help=_OUT)
    as_json: bool = setting(False, "Print one JSON object.", flag="--json")


def _report(values: Values) -> None:
    from tumorlens.pipeline.services.reviews.desk import Desk
    from tumorlens.pipeline.services.reviews.export import agreement_json, describe_reviews

    call = fill(ReviewReportCall, values)
    desk = Desk(call.out)
    try:
        say(agreement_json(desk) if call.as_json else describe_reviews(desk))
    finally:
        desk.close()


export = command(
    _export,
    ReviewExportCall,
    details="The index holds the scans whose mask or label was corrected. `tumorlens train --data DIR` takes it.",
    examples="""
    tumorlens review export out -o reviewed
    tumorlens review export out -o reviewed --accepted --scans scans/
    """,
)

report = command(
    _report,
    ReviewReportCall,
    details="Labels are compared by Cohen's kappa, masks by Dice.",
    examples="""
    tumorlens review report out
    tumorlens review report out --json
    """,
)
