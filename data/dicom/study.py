"""DICOM files of any number -> the scan of one series: a single file, a DICOMDIR, or all files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tumorlens.data.dicom.dicomdir import is_dicomdir, note_on, read_dicomdir
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.series import choose_series, find_series
from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan


def read_dicom(path: Path, frame: int | None = None, series: str | None = None) -> Scan:
    """Read a DICOM file, or one series of the files that a DICOMDIR lists (see `read_study`).

    Raises:
        InputError: As `read_study`, or the files that the DICOMDIR lists are missing.
    """
    if not is_dicomdir(path):
        return read_study([path], frame, series)
    files, missing = read_dicomdir(path)
    scan = read_study(files, frame, series)
    lost = note_on(files, missing)
    return replace(scan, warnings=(*scan.warnings, lost)) if lost else scan


def read_study(files: Sequence[Path], frame: int | None = None, series: str | None = None) -> Scan:
    """Read one series of DICOM files.

    Args:
        files: Files of one study, in any order.
        frame: The volume of a series that holds several at one place, from 0.
        series: Series Instance UID or Series Number; by default the series that
            `data.dicom.series.choose_series` takes.

    Raises:
        InputError: There are no files, none of them holds an image, no series or several are called `series`, the files
            belong to several studies, or the series cannot be read.
    """
    if not files:
        raise InputError("this is a folder without DICOM files; give a file of another format by its own name")
    listing = find_series(files)
    if not listing.series:
        raise InputError((*listing.problems, *listing.others)[0][1])
    why = ""
    if series is not None:
        matches = [s for s in listing.series if s.is_called(series)]
        if len(matches) != 1:
            there = ", ".join(f"{s.tag} ({s.uid})" for s in listing.series[:8])
            raise InputError(f"{len(matches)} series are called {series!r}; there are {there}")
        chosen = matches[0]
    else:
        if len({s.study for s in listing.series}) > 1:
            raise InputError("the files belong to several studies; name the series, or read one study at a time")
        best, why = choose_series(listing.series)
        if best is None:
            raise InputError(f"no series can be run: {why}")
        chosen = best
    scan = read_series(chosen.files, frame)
    n_lost = len(listing.problems)
    lost = f"{n_lost} DICOM file{'s' if n_lost > 1 else ''} could not be read"
    return replace(
        scan,
        notes=(*filter(None, (why, chosen.note)), *scan.notes),
        warnings=(*scan.warnings, *([f"{lost} ({listing.problems[0][0].name})"] if n_lost else [])),
    )
