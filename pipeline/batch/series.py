"""DICOM files of one input -> the series in them, which of them are run, and what each is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from tumorlens.data.dicom.series import Series, choose_series, find_series


@dataclass(frozen=True)
class DicomInput:
    """The DICOM files of one input.

    Attributes:
        files: The files.
        root: The folder that names are relative to.
        name: The input's own name. A series in the root itself is called so.
        whole: Whether all series are called by the input's name (a zip, a DICOMDIR), wherever in it they lie.
        named: Whether you named these very files. Then all their series are run instead of one of each study.
    """

    files: tuple[Path, ...]
    root: Path
    name: PurePosixPath
    whole: bool = False
    named: bool = False


@dataclass(frozen=True)
class Candidate:
    """A series in an input.

    Attributes:
        series: The series.
        name: Its path below the input; where its folder holds several series, with ``#`` and its number.
        chosen: Whether it is run.
        reason: Why it is chosen, or why not; may be empty.
        error: Why it cannot be run although you asked for it, or None.
    """

    series: Series
    name: str
    chosen: bool
    reason: str
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """A study without a series that can be run, or a file that cannot be read.

    Attributes:
        name: Its name in ``results.csv``.
        path: Where it lies.
        reason: The problem, in words.
    """

    name: str
    path: Path
    reason: str


def find_candidates(source: DicomInput, series_names: Sequence[str] = ()) -> tuple[list[Candidate], list[Failure]]:
    """Every series in an input's DICOM files and which of them are run: those you named, or the best of each study.

    Args:
        source: The files.
        series_names: Series Instance UIDs, series numbers, or ``all``.
    """
    contents = find_series(source.files)
    names = _names(source, contents.series)
    unreadable = [*contents.problems, *(contents.others if source.named else ())]
    failures = [Failure(_file_name(source, path), path, reason) for path, reason in unreadable]
    candidates: list[Candidate] = []
    for _, members in groupby(contents.series, key=lambda series: series.study):
        study = list(members)
        reasons = _choose(study, source.named, series_names)
        for series in study:
            reason = reasons.get(series, series.refusal or series.unfitness or "")
            reason = "; ".join(filter(None, (reason, series.note)))
            is_requested = source.named or any(
                series.is_called(name) and name.lower() != "all" for name in series_names
            )
            error = f"series {series.tag} cannot be run: {series.refusal}" if series.refusal and is_requested else None
            candidates.append(Candidate(series, names[series], series in reasons, reason, error))
        if not reasons and not series_names and not source.named:
            reason = f"no series can be run: {choose_series(study)[1]}"
            failures.append(Failure(str(_folder_name(source, study[0])), study[0].folder, reason))
    return candidates, failures


def _choose(study: list[Series], named: bool, series_names: Sequence[str]) -> dict[Series, str]:
    """The series of one study that are run -> why."""
    if series_names:
        return {s: "" for s in study if not s.refusal and any(_is_named(s, name) for name in series_names)}
    if named:
        return {s: "" for s in study if not s.refusal}
    best, why = choose_series(study)
    return {} if best is None else {best: why}


def _is_named(series: Series, name: str) -> bool:
    """``all`` means every series that shows a head. A localizer has to be named."""
    return series.is_called(name) and not (name.lower() == "all" and series.unfitness)


def _names(source: DicomInput, all_series: list[Series]) -> dict[Series, str]:
    """Series -> its folder's name. Of several in one folder, single files go by their own names, others by numbers."""
    folders = {series: _folder_name(source, series) for series in all_series}
    n_scans = Counter(folders[s] for s in all_series if not s.refusal)  # a report that is added later renames nothing
    names = {}
    for series, folder in folders.items():
        names[series] = str(folder)
        if n_scans[folder] > (0 if series.refusal else 1):
            if len(series.files) == 1:
                names[series] = _file_name(source, series.files[0])
            elif series.number is not None:
                names[series] = f"{folder}#{series.number}"
    return names


def _folder_name(source: DicomInput, series: Series) -> PurePosixPath:
    if source.named:
        return PurePosixPath(series.files[0].name if len(series.files) == 1 else series.folder.resolve().name)
    inside = series.folder.relative_to(source.root)
    return source.name if source.whole or inside == Path() else PurePosixPath(inside.as_posix())


def _file_name(source: DicomInput, path: Path) -> str:
    if source.named:
        return path.name
    inside = PurePosixPath(path.relative_to(source.root).as_posix())
    return str(source.name / inside if source.whole else inside)
