"""`tumorlens masks export` and `tumorlens masks import`."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.config import setting
from tumorlens.data.masks import BY, FORMAT_NAMES
from tumorlens.pipeline.cli.options import Values, command, fill
from tumorlens.pipeline.cli.screen import Progress, say, say_unless, show_error, warn


@dataclass(frozen=True)
class MasksExportCall:
    """The masks to export, and their format."""

    out: Path = setting(help="Output folder of `tumorlens run`.", argument=True, metavar="OUT")
    folder: Path = setting(help="Folder for the files.", flag="-o --out", metavar="DIR")
    format: str = setting(help="Format of the files.", choices=FORMAT_NAMES)
    labels: str = setting(
        "lesion",
        "A label for each lesion, numbered as in result.json where uncorrected, for each class, or for each region.",
        choices=BY,
    )
    original: bool = setting(False, "Take the model's masks, also where a reviewer has corrected them.")
    scans: tuple[str, ...] = setting(
        (),
        "Where the scans lie: writes their slices as PNG; only for coco, labelme and geojson; repeatable.",
        metavar="INPUT",
    )
    overwrite: bool = setting(False, "Replace the files of an earlier export.")
    quiet: bool = setting(False, "Print errors only.", flag="-q --quiet")


def _export(values: Values) -> int:
    from tumorlens.pipeline.services.exchange import NOT_DICOM, ExportRequest, export_masks

    call = fill(MasksExportCall, values)
    with Progress("masks", hidden=call.quiet) as progress:
        report = export_masks(fill(ExportRequest, values), progress)
    for name, problem in report.problems.items():
        if problem != NOT_DICOM:
            warn(problem if problem.startswith(name) else f"{name}: {problem}")
    n_others = sum(problem == NOT_DICOM for problem in report.problems.values())
    if n_others:
        scans, them = ("scan is", "it") if n_others == 1 else ("scans are", "them")
        warn(f"{n_others} {scans} not from DICOM, so no file in this format is written for {them}")
    tell = say_unless(call.quiet)
    for name, reason in report.without_mask.items():
        tell(f"{name}: no mask ({reason})")
    left = f", {len(report.without_mask)} without mask" if report.without_mask else ""
    failed = f", {len(report.problems)} not written" if report.problems else ""
    n_masks = len(report.exported)
    tell(f"{n_masks} mask{'s' * (n_masks != 1)}{left}{failed}: {call.folder}")
    return 1 if report.problems else 0


@dataclass(frozen=True)
class MasksImportCall:
    """The corrected masks, and who has corrected them."""

    out: Path = setting(help="Output folder of `tumorlens run` that gets the masks.", argument=True, metavar="OUT")
    files: tuple[str, ...] = setting(
        help="Corrected masks: files, or folders of them, called as the export calls them.",
        argument=True,
        metavar="FILES_OR_DIR...",
    )
    reviewer: str = setting("", "Who has corrected them.", metavar="NAME", shown="your login name")
    format: str | None = setting(
        None, "Take files of this format only.", choices=FORMAT_NAMES, shown="all that are found"
    )
    scans: tuple[str, ...] = setting(
        (), "Where the scans of OUT lie; repeatable.", metavar="INPUT", shown="where `tumorlens run` found them"
    )
    pictures: Path | None = setting(
        None,
        "Folder for the pictures of what changed.",
        flag="-o --out",
        metavar="DIR",
        shown="the folders of the scans",
    )


def _import(values: Values) -> int:
    from tumorlens.pipeline.services.exchange_import import import_masks

    call = fill(MasksImportCall, values)
    counts = {"changed": 0, "unchanged": 0, "failed": 0}
    paths = [Path(file) for file in call.files]
    for one in import_masks(call.out, paths, call.reviewer or _login(), call.format, call.scans, call.pictures):
        if one.problem:
            counts["failed"] += 1
            show_error(one.describe())
            continue
        counts["changed" if one.changed else "unchanged"] += 1
        say(one.describe())
        for text in one.warnings:
            warn(text)
    say(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to import")
    return 1 if counts["failed"] else 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container without a user
        return "unknown"


export = command(
    _export,
    MasksExportCall,
    details="Scans without a tumor have an empty mask. labels.json says which value is what.",
    examples="""
    tumorlens masks export OUT -o for-slicer --format slicer
    tumorlens masks export OUT -o for-cvat --format coco --scans scans/
    """,
)

bring_back = command(
    _import,
    MasksImportCall,
    details="The model's masks stay. Corrected ones lie beside them as mask.reviewed.*; mask.changes.png shows both.",
    examples="""
    tumorlens masks import OUT for-slicer --reviewer "A. Reader"
    tumorlens masks import OUT instances_default.json --format coco
    """,
)
