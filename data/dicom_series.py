"""DICOM files -> series, and which of a study's series is the one to run."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.dicom_headers import number, read_header, text, value
from data.dicom_kind import contrast_of, is_original, plane_of, refusal_of, unfitness_of, weighting_of
from data.errors import InputError, printable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "AcquisitionContrast", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "ContrastBolusUsageSequence", "ScanningSequence", "RepetitionTime", "EchoTime",
    "InversionTime", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "ImageOrientationPatient", "ImagePositionPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "PatientName", "PatientID", "SpecificCharacterSet",
)  # fmt: skip
_DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Series:
    """One series: the files that share a Series Instance UID.

    Attributes:
        uid: Series Instance UID.
        study: Study Instance UID; empty if the header has none.
        number: Series Number, or none.
        files: Its image files, in the order they were found.
        n_images: Images in them; a multi-frame file holds several.
        n_volumes: How many volumes they make, judged by the places of classic images; 1 if that is not known.
        modality: ``"MR"``, ``"CT"`` ..., empty if the header does not say.
        weighting: ``"T1"`` ..., or none if the header does not tell.
        contrast: Whether contrast agent had been given, or none.
        plane: ``"axial"`` ..., or none.
        original: Whether it was acquired so, and not computed from another series.
        description: Series Description, without the patient's name and ID.
        refusal: Why it cannot be run, or none.
        unfitness: Why it is not taken by itself, or none.
    """

    uid: str
    study: str
    number: int | None
    files: tuple[Path, ...]
    n_images: int
    n_volumes: int = 1
    modality: str = ""
    weighting: str | None = None
    contrast: bool | None = None
    plane: str | None = None
    original: bool = True
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
        return f"#{self.number}" if self.number is not None else f"#{self.uid[-8:]}"

    def is_called(self, name: str) -> bool:
        """Whether a user's ``--series`` means this one: its UID, its number, its tag, or ``all``."""
        return name in (self.uid, "all", self.tag) or (self.number is not None and name == str(self.number))

    @property
    def kind(self) -> str:
        """What it shows, in words: ``"T1 after contrast agent"``."""
        shown = self.weighting or "unknown weighting"
        return shown + {True: " after contrast agent", False: " without contrast agent", None: ""}[self.contrast]


def find_series(paths: Iterable[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Group image files by Series Instance UID, never by folder or name.

    Args:
        paths: DICOM files. Reports, presentation states and the like are passed over.

    Returns:
        The series in the order of study, number and UID; and each file whose header cannot be read, with the reason.
    """
    groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    problems = []
    for path in paths:
        try:
            header = read_header(path, _TAGS)
        except InputError as error:
            problems.append((path, str(error)))
            continue
        if number(header, "Rows") is None or number(header, "Columns") is None:
            if not text(header, "SOPClassUID"):
                problems.append((path, printable(f"{path}: the DICOM file is cut off before its image begins")))
            continue
        groups[text(header, "SeriesInstanceUID") or f"(no UID) {path.parent}"].append((path, header))
    series = [_series(uid, members) for uid, members in groups.items()]
    return sorted(series, key=lambda s: (s.study, s.number is None, s.number or 0, s.uid)), problems


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
    if best.weighting == "T1" and best.contrast:
        return best, f"series {best.tag} of {len(series)} was taken: T1 after contrast agent, by the header"
    return best, (
        f"series {best.tag} of {len(series)} was taken ({best.kind}): the headers name no T1 after contrast agent, "
        "which is what the models know"
    )


def common_folder(files: Sequence[Path]) -> Path:
    """The folder that holds all files, as the user spells it where all are spelled alike."""
    folders = [file.parent for file in files]
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


def read_dicomdir(path: Path) -> list[Path]:
    """The image files that a DICOMDIR lists (PS3.3 F.3), as far as they are there.

    Raises:
        InputError: Damaged, or none of its files is there.
    """
    header = read_header(path)
    records = value(header, "DirectoryRecordSequence") or []
    root, files, missing = path.parent.resolve(), [], 0
    for record in records:
        parts = [part for part in text(record, "ReferencedFileID").split("\\") if part]
        file = root.joinpath(*parts).resolve()
        if not parts or root not in file.parents:  # no record of a file, or one that leads out of the medium
            continue
        if file.is_file():
            files.append(path.parent.joinpath(*parts))
        else:
            missing += 1
    if not files:
        what = f"none of the {missing} files it lists is there" if missing else "it lists no file"
        raise InputError(f"{path}: {what}")
    return files


def is_dicomdir(path: Path) -> bool:
    """Whether a DICOM file is a directory of others."""
    try:
        return text(read_header(path, ("SOPClassUID", "DirectoryRecordSequence")), "SOPClassUID") == _DICOMDIR or (
            path.name.upper() == "DICOMDIR"
        )
    except InputError:
        return False


def _series(uid: str, members: list[tuple[Path, Dataset]]) -> Series:
    header: Any = members[0][1]
    refusals = {refusal_of(h) for _, h in members}
    series_number = number(header, "SeriesNumber")
    return Series(
        uid=uid,
        study=text(header, "StudyInstanceUID") or f"(no UID) {members[0][0].parent}",
        number=None if series_number is None else int(series_number),
        files=tuple(path for path, _ in members),
        n_images=sum(int(number(h, "NumberOfFrames") or 1) for _, h in members),
        modality=text(header, "Modality").upper(),
        weighting=weighting_of(header),
        contrast=contrast_of(header),
        n_volumes=_n_volumes([h for _, h in members]),
        plane=plane_of(header),
        original=is_original(header),
        description=_without_patient(text(header, "SeriesDescription"), header),
        refusal=None if None in refusals else sorted(r for r in refusals if r)[0],
        unfitness=unfitness_of(header),
    )


def _rank(series: Series) -> tuple[Any, ...]:
    """Higher is better. Within a kind: one volume, acquired so, a whole head, axial, many slices, the lowest number."""
    fits = {
        ("T1", True): 5,
        (None, True): 4,
        ("T1", None): 3,
        ("T1", False): 2,
        (None, None): 1,
    }.get((series.weighting, series.contrast), 0)
    return (
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
    return "".join(c if c.isprintable() else " " for c in description).strip()
