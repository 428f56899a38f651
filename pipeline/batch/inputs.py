"""What the user named on the command line -> the scans to run, each with a name of its own."""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tumorlens.data.dicom.dicomdir import is_dicomdir, read_dicomdir
from tumorlens.data.errors import InputError, printable
from tumorlens.data.formats.archives import is_zip, unpack
from tumorlens.data.formats.open import SCAN_SUFFIXES, is_dicom, sniff
from tumorlens.pipeline.batch.job import Job, Work, _Found
from tumorlens.pipeline.batch.names import output_folders, unique_names
from tumorlens.pipeline.batch.series import Candidate, DicomInput, survey
from tumorlens.pipeline.outputs import RESULT_FILES

_LOST = "the link leads nowhere"


def collect(inputs: Iterable[str], out: Path, scratch: Path, wanted: Sequence[str] = ()) -> Work:
    """Files, folders (searched recursively), zips, DICOMDIRs and glob patterns as jobs, in order, each scan once.

    In folders, files are taken that have a scan's suffix or a scan's content; hidden ones, the output folder and the
    results of other runs are left out. DICOM files are grouped to series; of a study one is run (see
    `pipeline.batch.series.survey`). An input that is not there, or a folder without scans, becomes a job with an error.

    Args:
        inputs: What the user named.
        out: The output folder.
        scratch: An empty folder that lives as long as the jobs; zips are unpacked there.
        wanted: The DICOM series to run, by UID or number, and nothing else; or ``all``, and all other scans, too.

    Raises:
        InputError: Nothing in all inputs that looks like a scan, or a wanted series that is not there.
    """
    search = _Search(out.resolve(), scratch, wanted)
    for text in inputs:
        if not text.strip():
            raise InputError("an input is empty text")
        search.look_at(text)
    search.look_at_named_dicom()
    found = search.found
    if wanted:
        every = "all" in (w.lower() for w in wanted)
        found = [f for f in found if f.files or every]
        missing = [w for w in wanted if not any(c.series.is_called(w) for c in search.candidates)]
        if found and every:  # pictures have no series
            missing = [w for w in missing if w.lower() != "all"]
        if missing:
            there = ", ".join(c.series.tag for c in search.candidates[:20]) or "no DICOM series"
            raise InputError(f"no series is called {missing[0]!r}; there is {there}")
    if not found and not search.broken:
        raise InputError("; ".join(reason for _, reason, _ in search.failures) or "no input given")
    return _work(found, search)


@dataclass
class _Search:
    """Looks through the inputs, and keeps what it finds."""

    results: Path
    scratch: Path
    wanted: Sequence[str]
    found: list[_Found] = field(default_factory=list)
    failures: list[tuple[str, str, Path]] = field(default_factory=list)  # name, reason, place
    broken: bool = False  # whether one of the failures is of a scan that is there
    candidates: list[Candidate] = field(default_factory=list)
    named_dicom: list[Path] = field(default_factory=list)
    unpacked: set[Path] = field(default_factory=set)

    def look_at(self, text: str) -> None:
        paths = _expand(text)
        if not paths:
            self.failures.append((text, f"{text}: no such file or folder", Path(text)))
        for path in paths:
            if _is_lost(path):
                self.failures.append((str(path), f"{path}: {_LOST}", path))
            elif path.is_dir():
                if not self.folder(path, PurePosixPath(path.resolve().name)) and path.resolve() != self.results:
                    self.failures.append((str(path), f"{path}: the folder holds no scan", path))
            elif path.is_file() and is_zip(path):
                self.archive(path, PurePosixPath(path.name))
            elif not is_dicom(path):
                self.found.append(_Found(path, PurePosixPath(path.name)))
            elif is_dicomdir(path):
                self.directory(path)
            else:
                self.named_dicom.append(path)

    def folder(self, folder: Path, name: PurePosixPath, unpacked: tuple[Path, PurePosixPath] | None = None) -> bool:
        """Whether there is anything in the folder that can be a scan."""
        before = self._seen()
        pictures, dicom, zips, closed = _scans_below(folder, self.results)
        for file, reason in closed:
            self.failures.append((file.relative_to(folder).as_posix(), f"{file}: cannot be read ({reason})", file))
            self.broken = True
        alias = None if unpacked is None else (str(folder), str(unpacked[0]))
        for file in pictures:
            inside = PurePosixPath(file.relative_to(folder).as_posix())
            shown = inside if unpacked is None else unpacked[1] / inside
            self.found.append(_Found(file, shown, unpacked=alias))
        if dicom:
            self.dicom(DicomInput(tuple(dicom), folder, name, whole=unpacked is not None), alias)
        for file in zips if unpacked is None else ():  # a zip within a zip is left alone
            self.archive(file, PurePosixPath(file.relative_to(folder).as_posix()), inside=True)
        return self._seen() > before

    def _seen(self) -> int:
        return len(self.found) + len(self.failures) + len(self.candidates)

    def archive(self, path: Path, name: PurePosixPath, inside: bool = False) -> None:
        """A zip, named by the user or found `inside` a folder, where one without scans says nothing."""
        if path.resolve() in self.unpacked:  # named twice, or by itself and with its folder
            return
        place = self.scratch / str(len(self.unpacked))
        self.unpacked.add(path.resolve())
        try:
            unpack(path, place)
        except InputError as error:
            self.failures.append((str(name), str(error), path))
            self.broken = True
            return
        if not self.folder(place, name, (path, name)) and not inside:
            self.failures.append((str(path), f"{path}: the archive holds no scan", path))

    def directory(self, path: Path) -> None:
        try:
            files, missing = read_dicomdir(path)
        except InputError as error:
            self.failures.append((str(path), str(error), path))
            self.broken = True
            return
        if missing:
            lost = f"{path}: {missing} of the {missing + len(files)} files that it lists are missing"
            self.failures.append((path.name, lost, path))
        self.dicom(DicomInput(tuple(files), path.parent, PurePosixPath(path.name), whole=True), None)

    def look_at_named_dicom(self) -> None:
        """All files the user named belong together: a shell's ``*.dcm`` is one series, not a hundred scans."""
        if self.named_dicom:
            first = self.named_dicom[0]
            self.dicom(DicomInput(tuple(self.named_dicom), first.parent, PurePosixPath(first.name), named=True), None)

    def dicom(self, source: DicomInput, alias: tuple[str, str] | None) -> None:
        seen = survey(source, self.wanted)
        self.candidates += seen.candidates
        for candidate in seen.candidates:
            if candidate.taken:
                files = candidate.series.files
                path = files[0] if len(files) == 1 else candidate.series.folder
                if source.whole and alias:
                    path = source.root  # the zip: what lies in it has no other name for the user
                notes = (candidate.why,) if candidate.why else ()
                self.found.append(_Found(path, candidate.name, candidate.tail, files, notes, alias))
            elif alias:  # many archives at once must not fill the disk with what is not run
                for file in candidate.series.files:
                    file.unlink()
        for failure in seen.failures:
            told = failure.reason if str(failure.path) in failure.reason else f"{failure.path}: {failure.reason}"
            place = failure.path
            if alias is not None:
                told, place = told.replace(*alias), Path(str(place).replace(*alias))
            self.failures.append((failure.name, told, place))
            self.broken = True


def _work(found: list[_Found], search: _Search) -> Work:
    once = _without_parts(list({_key(f): f for f in reversed(found)}.values())[::-1])
    names = [PurePosixPath(f"{name}{f.tail}") for f, name in zip(once, unique_names(once), strict=True)]
    folders = output_folders(names)
    jobs = [
        Job(f.path, printable(str(name)), printable(folder), files=f.files, notes=f.notes, unpacked=f.unpacked)
        for f, name, folder in zip(once, names, folders, strict=True)
    ]
    taken = {job.name for job in jobs}
    for text, error, place in search.failures:
        name = printable(text)
        while name in taken:
            name += " (not run)"
        jobs.append(Job(place, name, "", error))
        taken.add(name)
    called = {job.files: job.name for job in jobs if job.files}
    listed = [(called.get(c.series.files, printable(f"{c.name}{c.tail}")), c) for c in search.candidates]
    return Work(jobs, listed)


def _without_parts(found: list[_Found]) -> list[_Found]:
    """Without series of which another input has all files, and more."""
    files = [set(_key(f)) if f.files else set() for f in found]
    return [f for f, own in zip(found, files, strict=True) if not own or not any(own < other for other in files)]


def _key(found: _Found) -> tuple[Path, ...]:
    return tuple(file.resolve() for file in found.files or (found.path,))


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.exists() or path.is_symlink():
        return [path]
    if any(mark in text for mark in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        return [m for m in matches if not (m.name in RESULT_FILES and _is_result(m.parent))]
    return []


def _scans_below(folder: Path, results: Path) -> tuple[list[Path], list[Path], list[Path], list[tuple[Path, str]]]:
    """The scans below a folder, the DICOM files, the zips, and what may not be read, with the reason."""
    files: list[Path] = []
    dicom: list[Path] = []
    zips: list[Path] = []
    closed: list[tuple[Path, str]] = []
    been: set[Path] = set()  # links are followed, but not in circles

    def tell(error: OSError) -> None:
        closed.append((Path(error.filename), error.strerror or "error"))

    for place, folders, names in os.walk(folder, onerror=tell, followlinks=True):
        here = Path(place)
        real = here.resolve()
        if real in been:
            folders.clear()
            continue
        been.add(real)
        if _is_result(here):  # which may be the folder of its source
            names = [n for n in names if n not in RESULT_FILES]
        folders[:] = sorted(f for f in folders if f[0] != "." and (here / f).resolve() != results)
        for file in (here / n for n in sorted(names) if n[0] != "."):
            if _is_lost(file):
                closed.append((file, _LOST))
            elif file.is_file() and not os.access(file, os.R_OK):
                closed.append((file, "Permission denied"))
            elif is_dicom(file):
                if file.name.upper() != "DICOMDIR":  # it lists the files that are found anyway
                    dicom.append(file)
            elif _is_scan(file):
                files.append(file)
            elif file.suffix.lower() == ".zip" and file.is_file() and is_zip(file):
                zips.append(file)
    return files, dicom, zips, closed


def _is_lost(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_result(folder: Path) -> bool:
    """Whether a folder holds the result of a run, whose files are no scans."""
    return (folder / "result.json").is_file() and (folder / "overlay.png").is_file()


def _is_scan(path: Path) -> bool:
    if path.name.lower().endswith(SCAN_SUFFIXES):
        return path.is_file()
    try:
        return path.is_file() and not path.name.lower().endswith((".img", ".img.gz")) and bool(sniff(path))
    except (InputError, OSError, EOFError, zlib.error):
        return False
