"""The files of a data set, one row each, and the problems that its names and its index show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError

HINT = "`tumorlens data check` lists all that is wrong"


@dataclass(frozen=True)
class Row:
    """One scan file of a set: a picture, or a volume with all its slices.

    Attributes:
        sample: The file. Its `slice_index` is None, and its label is empty where the set gives none.
        where: The place in the index, such as ``"line 7"``; empty in a folder.
        every: Take only each n-th slice of the volume.
        mask_missing: Whether a mask is expected that is not there.
        error: Why the file cannot be used, if it had to be opened to list it.
    """

    sample: Sample
    where: str = ""
    every: int = 1
    mask_missing: bool = False
    error: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a set.

    Attributes:
        kind: A key of `data.inspection.findings.PROBLEMS` or ``NOTES``.
        place: The file or folder, or the place in the index (``"line 7"``).
        text: The problem in words; empty where the kind says it all.
        stops: Whether the set cannot be loaded because of it.
    """

    kind: str
    place: Path | str
    text: str
    stops: bool = True


@dataclass
class Listing:
    """The rows of a set, and the problems on the way to them.

    Attributes:
        root: The folder at which the paths start.
        index: The index file, or None.
        rows: The files that are there.
        problems: In the order in which they appear.
    """

    root: Path
    index: Path | None = None
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, place: Path | str, kind: str, text: str, stops: bool = True) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, place, text, stops))

    def name(self, path: Path) -> str:
        """A path relative to the root, with forward slashes; a path elsewhere as it is."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def raise_first(self) -> None:
        """Raise an `InputError` with the first reason why the set cannot be loaded, if there is one."""
        reasons = [f"{self._absolute(p.place)}: {p.text}" for p in self.problems if p.stops]
        reasons += [row.error for row in self.rows if row.error]
        if reasons:
            number = f"{len(reasons)} problems" if len(reasons) > 1 else "that is wrong"
            raise InputError(f"{reasons[0]}; `tumorlens data check` lists all {number}")

    def error_of(self, row: Row, error: InputError) -> InputError:
        """The error of a row's file, with the row's place in the index."""
        return InputError(f"{f'{self._absolute(row.where)}: ' if row.where else ''}{error}; {HINT}")

    def _absolute(self, place: Path | str) -> str:
        return str(place) if isinstance(place, Path) else f"{self.index} {place}"
