"""DICOM files of one input -> the series to run, each with its name in `results.csv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from tumorlens.data.dicom.series import Series, choose_series, find_series


@dataclass(frozen=True)
class DicomInput:
    """The DICOM files that one input of the user's gave.

    Attributes:
        files: The files.
        root: The folder that names are relative to.
        name: The input's own name; what a series in the root itself is called.
        whole: Whether all series go by the input's name (a zip, a DICOMDIR), wherever in it they lie.
        named: Whether the user named these very files; then all their series are run, and not one of each study.
    """

    files: tuple[Path, ...]
    root: Path
    name: PurePosixPath
    whole: bool = False
    named: bool = False


@dataclass(frozen=True)
class Candidate:
    """A series that was found, and what becomes of it.

    Attributes:
        series: The series.
        name: Its name in ``results.csv``, without the number.
        tail: ``#5`` where several scans have that name, else empty.
        taken: Whether it is run.
        why: Why it is taken, or why not; may be empty.
    """

    series: Series
    name: PurePosixPath
    tail: str
    taken: bool
    why: str


@dataclass(frozen=True)
class Failure:
    """What cannot be run.

    Attributes:
        name: Its name in ``results.csv``.
        path: Where it lies.
        reason: Why, in words.
    """

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Survey:
    """What the DICOM files of an input hold.

    Attributes:
        candidates: Every series.
        failures: Studies of which nothing can be run, series that were asked for and cannot, files that cannot be read.
    """

    candidates: tuple[Candidate, ...]
    failures: tuple[Failure, ...]


def survey(source: DicomInput, wanted: Sequence[str] = ()) -> Survey:
    """Group an input's DICOM files to series, and choose: the `wanted` ones, or of each study the one that fits best.

    Args:
        source: The files.
        wanted: Series Instance UIDs, series numbers, or ``all``.
    """
    found = find_series(source.files)
    names = {s: _name(source, s) for s in found.series}
    scans = Counter(names[s] for s in found.series if not s.refusal)  # a report that comes later must rename nothing
    tails = _tails([s for s in found.series if scans[names[s]] > (0 if s.refusal else 1)], names)
    for s, tail in list(tails.items()):
        if "." in tail and len(s.files) == 1 and not source.whole:  # files of other studies with the same number
            names[s], tails[s] = _file_name(source, s.files[0]), ""
    candidates: list[Candidate] = []
    unread = [*found.problems, *(found.others if source.named else ())]
    failures = [Failure(str(_file_name(source, path)), path, reason) for path, reason in unread]
    for _, members in groupby(found.series, key=lambda s: s.study):
        study = list(members)
        reasons = _choice(study, source.named, wanted)
        candidates += [Candidate(s, names[s], tails.get(s, ""), s in reasons, _why(s, reasons)) for s in study]
        failures += [
            Failure(f"{names[s]}{tails.get(s, '')}", _place(s), f"series {s.tag} cannot be run: {s.refusal}")
            for s in study
            if s.refusal and (source.named or any(s.is_called(w) and w.lower() != "all" for w in wanted))
        ]
        if not reasons and not wanted and not source.named:
            reason = f"no series can be run: {choose_series(study)[1]}"
            failures.append(Failure(str(names[study[0]]), study[0].folder, reason))
    return Survey(tuple(candidates), tuple(failures))


def _choice(study: list[Series], named: bool, wanted: Sequence[str]) -> dict[Series, str]:
    """Series -> why, of those of one study that are run."""
    if wanted:
        return {s: "" for s in study if not s.refusal and any(_asked_for(s, w) for w in wanted)}
    if named:
        return {s: "" for s in study if not s.refusal}
    best, why = choose_series(study)
    return {} if best is None else {best: why}


def _asked_for(series: Series, name: str) -> bool:
    """``all`` means all that are scans; a localizer has to be named."""
    return series.is_called(name) and not (name.lower() == "all" and series.unfitness)


def _why(series: Series, reasons: dict[Series, str]) -> str:
    return reasons.get(series, series.refusal or series.unfitness or "")


def _name(source: DicomInput, series: Series) -> PurePosixPath:
    if source.named:
        return PurePosixPath(series.files[0].name if len(series.files) == 1 else series.folder.resolve().name)
    inside = series.folder.relative_to(source.root)
    return source.name if source.whole or inside == Path() else PurePosixPath(inside.as_posix())


def _file_name(source: DicomInput, path: Path) -> PurePosixPath:
    if source.named:
        return PurePosixPath(path.name)
    inside = PurePosixPath(path.relative_to(source.root).as_posix())
    return source.name / inside if source.whole else inside


def _place(series: Series) -> Path:
    return series.files[0] if len(series.files) == 1 else series.folder


def _tails(series: list[Series], names: dict[Series, PurePosixPath]) -> dict[Series, str]:
    """``#`` and the series number; what still is the same gets its place in the order of UIDs, too."""
    plain = {s: f"#{'?' if s.number is None else s.number}" for s in series}
    same = Counter((names[s], tail) for s, tail in plain.items())
    seen: Counter[tuple[PurePosixPath, str]] = Counter()
    tails = {}
    for s in sorted(plain, key=lambda s: (s.uid, s.study)):
        key = (names[s], plain[s])
        seen[key] += 1
        tails[s] = plain[s] if same[key] == 1 and plain[s] != "#?" else f"{plain[s].replace('?', '')}.{seen[key]}"
    return tails
