"""DICOM files -> series, and which of a study's series is the one to run."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "AcquisitionContrast", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "ContrastBolusUsageSequence", "ScanningSequence", "RepetitionTime", "EchoTime",
    "InversionTime", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "ImageOrientationPatient", "ImagePositionPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "BodyPartExamined", "PatientName", "PatientID", "PatientBirthDate",
    "SpecificCharacterSet",
)  # fmt: skip

_DATES_AND_NUMBERS = r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}|\d{6,}|\d{3,}-\d{3,}"


@dataclass(frozen=True)
class Series:
    """One series: the files that share a Series Instance UID.

    Attributes:
        uid: Series Instance UID.
        study: What its study has in common: the Study Instance UID and the patient. Not to be shown.
        number: Series Number, or none.
        files: Its image files, in the order they were found.
        n_images: Images in them; a multi-frame file holds several.
        n_volumes: How many volumes they make, judged by the places of classic images; 1 if that is not known.
        modality: ``"MR"``, ``"CT"`` ..., empty if the header does not say.
        weighting: ``"T1"`` ..., or none if the header does not tell.
        contrast: Whether contrast agent had been given, or none.
        plane: ``"axial"`` ..., or none.
        original: Whether it was acquired so, and not computed from another series.
        elsewhere: Whether the header names another part of the body than the head.
        description: Series Description, without the patient's name and ID, dates and long numbers.
        refusal: Why it cannot be run, or none.
        unfitness: Why it is not taken by itself, or none.
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

    @property
    def folder(self) -> Path:
        """The folder that holds all its files."""
        return common_folder(self.files)

    @property
    def tag(self) -> str:
        """How people call it: ``#5``, or the end of its UID where it has no number."""
        return f"#{self.number}" if self.number is not None else f"#{self.uid[-8:] or 'without UID'}"

    def is_called(self, name: str) -> bool:
        """Whether a user's ``--series`` means this one: its UID, its number, its tag, or ``all``."""
        return (
            name in (self.uid, self.tag)
            or name.lower() == "all"
            or (self.number is not None and name == str(self.number))
        )

    @property
    def kind(self) -> str:
        """What it shows, in words: ``"T1 after contrast agent"``."""
        if self.modality not in ("", "MR"):
            return ""
        shown = self.weighting or "unknown weighting"
        return shown + {True: " after contrast agent", False: " without contrast agent", None: ""}[self.contrast]


@dataclass
class Found:
    """What a number of DICOM files hold.

    Attributes:
        series: In the order of their studies' paths, then of number and UID.
        problems: Each file whose header cannot be read, with the reason.
        others: Each file that holds no image (reports, presentation states ...), with what it is.
    """

    series: list[Series] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)


def find_series(paths: Iterable[Path]) -> Found:
    """Group DICOM files by Series Instance UID (within a study of one patient), never by folder or name.

    Where a bad anonymizer has taken the UID, files of one folder, number and description are a series.
    """
    found = Found()
    groups: dict[tuple[str, ...], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path in paths:
        try:
            header = read_header(path, _TAGS)
        except InputError as error:
            found.problems.append((path, str(error)))
            continue
        if number(header, "Rows") is not None and number(header, "Columns") is not None:
            groups[_key(path, header)].append((path, header))
            continue
        kind = class_name(header)
        if not kind or "Image" in kind:
            found.problems.append((path, printable(f"{path}: the DICOM file is cut off before its image begins")))
        else:
            found.others.append((path, f"it holds no image but a {kind}"))
    found.series = [_series(key, members) for key, members in groups.items()]
    first: dict[tuple[str, ...], Path] = {}
    for series in found.series:
        first[series.study] = min(series.files[0], first.get(series.study, series.files[0]))
    found.series.sort(key=lambda s: (first[s.study], s.study, s.number is None, s.number or 0, s.uid))
    return found


def _key(path: Path, header: Dataset) -> tuple[str, ...]:
    study = text(header, "StudyInstanceUID") or f"(no UID) {path.parent}"
    uid = text(header, "SeriesInstanceUID")
    if not uid:
        uid = f"(no UID) {path.parent} {text(header, 'SeriesNumber')} {text(header, 'SeriesDescription')}"
    return study, text(header, "PatientID"), uid


def choose_series(series: Sequence[Series]) -> tuple[Series | None, str]:
    """Which of one study's series to run: the post-contrast T1 if there is one, by the header.

    Returns:
        The series, or none if not one can be run; and why, in words.
    """
    fit = [s for s in series if not s.refusal and not s.unfitness]
    if not fit:
        return None, "; ".join(f"{s.tag}: {s.refusal or s.unfitness}" for s in series)
    best = max(fit, key=_rank)
    if len(series) == 1:
        return best, ""
    equals = [s.tag for s in fit if s is not best and _rank(s)[:2] == _rank(best)[:2]]
    also = f" ({', '.join(equals)} fit as well)" if equals else ""
    if best.weighting == "T1" and best.contrast:
        return best, f"{best.tag} was taken of {len(series)} series: T1 after contrast agent, by the header{also}"
    return best, (
        f"{best.tag} was taken of {len(series)} series ({best.kind}): the headers name no T1 after contrast agent, "
        f"which is what the models know{also}"
    )


def common_folder(files: Sequence[Path]) -> Path:
    """The folder that holds all files, as the user spells it where all are spelled alike."""
    folders = [file.parent for file in files]
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def _series(key: tuple[str, ...], members: list[tuple[Path, Dataset]]) -> Series:
    header: Any = members[0][1]
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
    """Higher is better: the head, the kind, one volume, acquired so, a whole head, axial, many slices, a low number."""
    fits = {
        ("T1", True): 5,
        (None, True): 4,
        ("T1", None): 3,
        ("T1", False): 2,
        (None, None): 1,
    }.get((series.weighting, series.contrast), 0)
    return (
        not series.elsewhere,
        fits,
        series.n_volumes == 1,
        series.original,
        series.n_images >= 8,
        series.plane == "axial",
        series.n_images,
        -(series.number or 0),
        series.uid,
    )


def _n_volumes(headers: list[Dataset]) -> int:
    """How many images there are at the usual place."""
    places = Counter(text(h, "ImagePositionPatient") for h in headers if value(h, "ImagePositionPatient"))
    return Counter(places.values()).most_common(1)[0][0] if places else 1


def _without_patient(description: str, header: Dataset) -> str:
    """A description in which words of the patient's name and ID are starred out: some scanners put them there."""
    for word in re.findall(r"[^\W_]+", f"{text(header, 'PatientName')} {text(header, 'PatientID')}"):
        whole = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
        description = re.sub(re.escape(word) if len(word) > 3 else whole, "***", description, flags=re.IGNORECASE)
    description = re.sub(_DATES_AND_NUMBERS, "***", description)
    return "".join(c if c.isprintable() else " " for c in description).strip()
