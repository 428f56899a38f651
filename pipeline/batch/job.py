"""`Job`: one scan to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tumorlens.data.errors import printable
from tumorlens.pipeline.batch.series import Candidate


@dataclass(frozen=True)
class Job:
    """One scan to run.

    Attributes:
        path: The file, or the folder of a DICOM series.
        name: What `results.csv` calls it: the path relative to the input folder, with forward slashes; for a series in
            a folder that holds several, with ``#`` and the series number.
        folder: Where its outputs go, relative to the output folder.
        error: Why there is nothing to run, or none.
        files: The files of a DICOM series; empty for other scans.
        notes: What was chosen on the way, in words.
        unpacked: The folder a zip was unpacked to, and the zip's own path, which messages shall name.
    """

    path: Path
    name: str
    folder: str
    error: str | None = None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    unpacked: tuple[str, str] | None = None

    def known(self, path: Path) -> Path:
        """A path of this scan as the user knows it: within the zip, and not where that was unpacked."""
        return Path(str(path).replace(*self.unpacked)) if self.unpacked else path

    def told(self, message: str) -> str:
        """A message about this scan, with the path that the user knows."""
        if self.unpacked:
            message = message.replace(*self.unpacked)
        path = printable(str(self.known(self.path)))
        if path in message:
            return message
        return f"{path}: {message.removeprefix(f'{self.path.name}: ')}"


@dataclass
class Work:
    """All that the inputs gave.

    Attributes:
        jobs: The scans to run, and the inputs that failed.
        candidates: Every DICOM series that was found, with the name it has, or would have, in ``results.csv``.
    """

    jobs: list[Job] = field(default_factory=list)
    candidates: list[tuple[str, Candidate]] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A scan with its first name; `path` can lend it more parent folders."""

    path: Path
    name: PurePosixPath
    tail: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    unpacked: tuple[str, str] | None = None
