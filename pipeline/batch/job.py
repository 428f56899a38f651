"""`Job`: one scan to run, and the names that it has."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tumorlens.data.dicom.series import common_folder
from tumorlens.data.errors import one_line
from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.pipeline.options import is_dicomweb

_EXTENSIONS = sorted((*SCAN_SUFFIXES, ".zip", ".img", ".img.gz"), key=len, reverse=True)


@dataclass(frozen=True)
class Job:
    """One scan to run, or an input that cannot be run.

    Attributes:
        path: The file, or the folder of a DICOM series.
        name: The scan's name in ``results.csv``, with forward slashes.
        error: Why it cannot be run, or None.
        files: The files of a DICOM series; empty for other scans.
        uid: The Series Instance UID of a DICOM series; empty for other scans.
        study: What all series of its study have in common; empty for other scans.
        notes: Why this series of a study was chosen, in words.
        unpacked: The folder that a zip was unpacked to, and the path of the zip, which messages name instead; or the
            folder that stands for a URL, and the URL.
        plain_name: The name before `pipeline.batch.names.name_jobs` made it unique; empty means `name`.
    """

    path: Path
    name: str
    error: str | None = None
    files: tuple[Path, ...] = ()
    uid: str = ""
    notes: tuple[str, ...] = ()
    unpacked: tuple[str, str] | None = None
    plain_name: str = ""
    study: str = ""

    @property
    def folder(self) -> str:
        """The output folder, relative to OUT and always inside it: the name without its extension."""
        return folder_of(self.name)

    @cached_property
    def key(self) -> frozenset[str]:
        """The real paths of the files: two jobs with the same files are one scan."""
        return frozenset(os.path.realpath(file) for file in self.files or (self.path,))

    @cached_property
    def place(self) -> str:
        """Where the scan lies: the real path of the file, of the series' folder, or inside a zip; or its URL."""
        place = self.shown_path(common_folder(self.files) if self.files else self.path)
        return place if "://" in place else os.path.realpath(place)

    def shown_path(self, path: Path | None = None) -> str:
        """The job's path, or a path below it, as the user knows it: inside the zip, not in the temporary folder."""
        text = str(self.path if path is None else path)
        return with_origin(text, *self.unpacked) if self.unpacked else text

    def with_path(self, message: str) -> str:
        """A message about this scan that names its path as the user knows it."""
        if self.unpacked:
            message = one_line(with_origin(message, *self.unpacked))
        path = one_line(self.shown_path())
        if message.startswith(f"{path}:") or (os.sep in path and path in message):
            return message
        return f"{path}: {message.removeprefix(f'{one_line(self.path.name)}: ')}"


def with_origin(text: str, folder: str, place: str) -> str:
    """A text that names a zip or URL instead of the folder that stands for it."""
    if is_dicomweb(place):  # the folder has STUDY/SERIES for what the standard calls studies/STUDY/series/SERIES
        text = re.sub(rf"({re.escape(folder)})/(?=[\w.-])", r"\1/studies/", text)
        text = re.sub(rf"({re.escape(folder)}/studies/[\w.-]+)/(?=[\w.-])", r"\1/series/", text)
    return text.replace(folder, place)


def place_of(job: Job) -> str:
    """SHA-256 of where a scan lies. It tells scans of one name apart. The path itself may name the patient."""
    return hashlib.sha256(os.fsencode(job.place)).hexdigest()


def split_extension(name: str) -> tuple[str, str]:
    """A scan's name without its extension, and the extension."""
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension) and len(PurePosixPath(name).name) > len(extension):
            return name[: -len(extension)], name[-len(extension) :]
    return name, ""


def folder_of(name: str) -> str:
    """The output folder of a scan's name, relative to OUT and always inside it."""
    parts = PurePosixPath(split_extension(name)[0]).parts
    return str(PurePosixPath(*(part for part in parts if part != ".." and "/" not in part)))
