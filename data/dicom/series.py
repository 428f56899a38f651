"""DICOM files -> series, those that are one volume in pieces joined, and the choice of the series of a study to run."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.dicom.geometry import depth_of
from tumorlens.data.dicom.grouping.pieces import (
    AT_ONE_PLACE,
    FEWEST_PIECES,
    ONE_SERIES,
    OVERLAP,
    TAGS,
    Key,
    Members,
    Piece,
    acquired_alike,
    piece_of,
    volumes_of_slices,
    why_not_one,
)
from tumorlens.data.dicom.headers import number, read_header, text, value
from tumorlens.data.dicom.sequence import (
    class_name,
    contrast_of,
    is_elsewhere,
    is_original,
    plane_of,
    refusal_of,
    unfitness_of,
    weighting_of,
)
from tumorlens.data.errors import InputError, printable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DATES_AND_NUMBERS = r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}|\d{6,}|\d{3,}-\d{3,}"


@dataclass(frozen=True)
class Series:
    """One series: the files that share a Series Instance UID, or several series that are one volume in pieces.

    Attributes:
        uid: Series Instance UID. Of pieces, that of the first slice.
        study: Study Instance UID and Patient ID, which all series of a study share. Not for messages.
        number: Series Number, or none.
        files: Its image files, in the order of the search.
        n_images: Images in the files. A multi-frame file holds several.
        n_volumes: How many volumes the images make, by the positions of single-frame files; 1 if it is not known.
        modality: ``"MR"``, ``"CT"`` ..., empty if the header does not name it.
        weighting: ``"T1"`` ..., or none if the header does not name it.
        contrast: Whether contrast agent had been given, or none if the header does not say.
        plane: ``"axial"`` ..., or none.
        original: Whether it was acquired, not computed from another series.
        elsewhere: Whether the header names a part of the body that is not the head.
        description: Series Description, without the patient's name and ID, dates and long numbers.
        refusal: Why it cannot be run, or none.
        unfitness: Why it is run only if the user names it, or none.
        piece_uids: All Series Instance UIDs, where pieces were joined.
        note: That pieces were joined, and why; else empty.
    """

    uid: str
    study: tuple[str, ...] = field(repr=False)
    number: int | None
    files: tuple[Path, ...]
    n_images: int
    n_volumes: int = 1
    modality: str = ""
    weighting: str | None = None
    contrast: bool | None = None
    plane: str | None = None
    original: bool = True
    elsewhere: bool = False
    description: str = field(default="", repr=False)
    refusal: str | None = None
    unfitness: str | None = None
    piece_uids: tuple[str, ...] = ()
    note: str = ""

    @property
    def folder(self) -> Path:
        """The folder that holds all its files."""
        return common_folder(self.files)

    @property
    def tag(self) -> str:
        """Its short name: ``#5``, or ``#`` and the end of its UID if it has no number."""
        return f"#{self.number}" if self.number is not None else f"#{self.uid[-8:] or 'without UID'}"

    def is_called(self, name: str) -> bool:
        """Whether a user's ``--series`` means this series: by its UID, number or tag, or by ``all``."""
        return (
            name in (self.uid, self.tag, *self.piece_uids)
            or name.lower() == "all"
            or (self.number is not None and name == str(self.number))
        )

    @property
    def kind(self) -> str:
        """Weighting and contrast agent in words, such as ``"T1 after contrast agent"``; empty if it is not MR."""
        if self.modality not in ("", "MR"):
            return ""
        shown = self.weighting or "unknown weighting"
        return shown + {True: " after contrast agent", False: " without contrast agent", None: ""}[self.contrast]


@dataclass
class SeriesListing:
    """The contents of a number of DICOM files.

    Attributes:
        series: Sorted by the paths of their studies, then by number and UID.
        problems: Each file whose header cannot be read, with the reason.
        others: Each file that does not hold an image (reports, presentation states ...), with a sentence that says so.
    """

    series: list[Series] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)


def find_series(paths: Iterable[Path]) -> SeriesListing:
    """Group DICOM files by Series Instance UID (within a study of one patient), never by folder or name.

    If an anonymizer removed the UID, files of one folder, number and description are a series. Series that are clearly
    one volume in pieces are joined: some anonymizers give each slice a Series Instance UID of its own.
    """
    listing = SeriesListing()
    groups: dict[Key, Members] = defaultdict(list)
    for path in paths:
        try:
            header = read_header(path, TAGS)
        except InputError as error:
            listing.problems.append((path, str(error)))
            continue
        if number(header, "Rows") is not None and number(header, "Columns") is not None:
            groups[_key(path, header)].append((path, header))
            continue
        kind = class_name(header)
        if not kind or "Image" in kind:
            listing.problems.append((path, printable(f"{path}: the DICOM file is cut off before its image begins")))
        else:
            listing.others.append((path, f"it holds no image but a {kind}"))
    listing.series = _joined(groups)
    first: dict[tuple[str, ...], Path] = {}
    for series in listing.series:
        first[series.study] = min(series.files[0], first.get(series.study, series.files[0]))
    listing.series.sort(key=lambda s: (first[s.study], s.study, s.number is None, s.number or 0, s.uid))
    return listing


def _key(path: Path, header: Dataset) -> Key:
    study = text(header, "StudyInstanceUID") or f"(no UID) {path.parent}"
    uid = text(header, "SeriesInstanceUID")
    if not uid:
        uid = f"(no UID) {path.parent} {text(header, 'SeriesNumber')} {text(header, 'SeriesDescription')}"
    return study, text(header, "PatientID"), uid


def choose_series(series: Sequence[Series]) -> tuple[Series | None, str]:
    """Choose the series of a study to run: the post-contrast T1 if the headers name one.

    Returns:
        The series, or none if no series can be run; and the reason in words, empty for the only series of a study.
    """
    fit = [s for s in series if not s.refusal and not s.unfitness]
    if not fit:
        return None, "; ".join(dict.fromkeys(f"{s.tag}: {s.refusal or s.unfitness}" for s in series))
    best = max(fit, key=_rank)
    if len(series) == 1:
        return best, ""
    equals = [s for s in fit if s is not best and _rank(s)[:2] == _rank(best)[:2]]
    others = [s for s in series if s is not best and s not in equals]
    also = f" ({_tags(equals)} fit as well)" if equals else ""
    also += f"; not run: {_tags(others)}" if others else ""
    if best.weighting == "T1" and best.contrast:
        return best, f"{best.tag} was chosen from {len(series)} series: T1 after contrast agent, by the header{also}"
    return best, (
        f"{best.tag} was chosen from {len(series)} series ({best.kind}): the headers name no T1 after contrast agent, "
        f"which is what the models know{also}"
    )


def _tags(series: Sequence[Series]) -> str:
    counts = Counter(s.tag for s in series)
    tags = [tag if n == 1 else f"{n} called {tag}" for tag, n in counts.items()]
    return ", ".join([*tags[:20], *([f"{len(tags) - 20} more"] if len(tags) > 20 else [])])


def common_folder(files: Sequence[Path]) -> Path:
    """The folder that holds all files: relative if all of them are, else absolute."""
    folders = [file.parent for file in files]
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def _joined(groups: dict[Key, Members]) -> list[Series]:
    """The series of all groups of files, pieces of one volume joined."""
    like: dict[Key, list[Key]] = defaultdict(list)
    for key, members in groups.items():
        like[(*key[:2], *(text(members[0][1], name) for name in ONE_SERIES))].append(key)
    made: list[Series] = []
    for keys in like.values():
        if len(keys) == 1:
            made.append(_series(keys[0], groups[keys[0]]))
            continue
        for pieces in acquired_alike([piece_of(key, groups[key]) for key in keys]):
            series = [_series(key, members) for key, members, _ in pieces]
            made += series if len(pieces) == 1 else _one_or_pieces(series, pieces)
    return made


def _one_or_pieces(series: list[Series], pieces: list[Piece]) -> list[Series]:
    """One series of all files if they are clearly one volume, or several of single slices; else the series, marked."""
    members = [member for _, own, _ in pieces for member in own]
    planes = [plane for _, _, own in pieces for plane in own]
    headers = [header for _, header in members]
    reason = why_not_one(len(pieces), headers, planes)
    single = len(members) == len(pieces) >= FEWEST_PIECES
    stack = "one even stack"
    if single and reason in (AT_ONE_PLACE, OVERLAP):
        volumes = volumes_of_slices(members)
        whys = [why_not_one(len(v), [headers[i] for i in v], [planes[i] for i in v]) for v in volumes if len(v) > 1]
        if len(whys) == len(volumes) > 1 and not any(whys):
            reason, stack = "", f"{len(volumes)} even stacks"
    if not reason:
        first = min(range(len(members)), key=lambda i: depth_of(planes[i], planes[0].normal))
        alone = len(members) == len(pieces)
        what = "one for each slice" if alone else f"of {', '.join(str(len(own)) for _, own, _ in pieces)} images"
        note = (
            f"{len(pieces)} series, {what}, were joined: they have the same number, description and acquisition, and "
            f"their slices make {stack}"
        )
        whole = _series(pieces[0][0], members)
        uid = text(members[first][1], "SeriesInstanceUID")
        return [replace(whole, uid=uid, piece_uids=tuple(s.uid for s in series), note=note)]
    if not single:
        return series
    why = f"it is one of {len(pieces)} single slices with a Series Instance UID each, which make no volume: {reason}"
    return [replace(s, unfitness=s.unfitness or why) for s in series]


def _series(key: Key, members: Members) -> Series:
    header: Any = next((h for _, h in members if unfitness_of(h) is None), members[0][1])
    refusals = {refusal_of(h) for _, h in members}
    series_number = number(header, "SeriesNumber")
    return Series(
        uid=text(header, "SeriesInstanceUID"),
        study=key[:2],
        number=None if series_number is None else int(series_number),
        files=tuple(path for path, _ in members),
        n_images=sum(int(number(h, "NumberOfFrames") or 1) for _, h in members),
        modality=text(header, "Modality").upper(),
        weighting=weighting_of(header),
        contrast=contrast_of(header),
        n_volumes=_n_volumes([h for _, h in members]),
        plane=plane_of(header),
        original=is_original(header),
        elsewhere=is_elsewhere(header),
        description=_without_patient(text(header, "SeriesDescription"), header),
        refusal=None if None in refusals else sorted(r for r in refusals if r)[0],
        unfitness=unfitness_of(header),
    )


def _rank(series: Series) -> tuple[Any, ...]:
    """The key by which series are compared, the most important part first. The highest key wins."""
    fit_of_kind = {
        ("T1", True): 5,
        (None, True): 4,
        ("T1", None): 3,
        ("T1", False): 2,
        (None, None): 1,
    }.get((series.weighting, series.contrast), 0)
    return (
        not series.elsewhere,
        fit_of_kind,
        series.n_volumes == 1,
        series.original,
        series.n_images >= 8,
        series.plane == "axial",
        series.n_images,
        -(series.number or 0),
        series.uid,
    )


def _n_volumes(headers: list[Dataset]) -> int:
    """How many images lie at one position, for most positions."""
    places = Counter(text(h, "ImagePositionPatient") for h in headers if value(h, "ImagePositionPatient"))
    return Counter(places.values()).most_common(1)[0][0] if places else 1


def _without_patient(description: str, header: Dataset) -> str:
    """A description with stars for words of the patient's name and ID, which some scanners put there."""
    for word in re.findall(r"[^\W_]+", f"{text(header, 'PatientName')} {text(header, 'PatientID')}"):
        whole = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
        description = re.sub(re.escape(word) if len(word) > 3 else whole, "***", description, flags=re.IGNORECASE)
    description = re.sub(_DATES_AND_NUMBERS, "***", description)
    return "".join(c if c.isprintable() else " " for c in description).strip()
