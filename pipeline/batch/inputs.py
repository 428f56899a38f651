"""The inputs on the command line -> the scans to run, each with a name of its own."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tumorlens.data.dicom.dicomdir import is_dicomdir, missing_note, note_on, read_dicomdir
from tumorlens.data.dicom.headers import is_dicom
from tumorlens.data.errors import DiskFullError, InputError, one_line
from tumorlens.data.formats.archives import is_zip, unpack
from tumorlens.data.formats.open import SCAN_SUFFIXES, is_scan, source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.names import name_jobs
from tumorlens.pipeline.batch.series import Candidate, DicomInput, find_candidates
from tumorlens.pipeline.outputs import RESULT_FILES

_SURE_FILES = ("overlay.png", "mask.png", "mask.nii.gz")  # one of them lies beside each result.json, or no file at all
_DEAD_LINK = "the link leads nowhere"


@dataclass
class Work:
    """Everything in the inputs.

    Attributes:
        jobs: The scans to run, then the inputs that failed.
        candidates: Every DICOM series, with the name it has, or would have, in ``results.csv``.
        left_alone: Files in the input folders that are no scans, as the user knows them.
        copies: Series that are not run, because one of the jobs has the same content.
    """

    jobs: list[Job] = field(default_factory=list)
    candidates: list[tuple[str, Candidate]] = field(default_factory=list)
    copies: list[Job] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def collect(
    inputs: Iterable[str],
    out: Path,
    scratch: Path,
    series_names: Sequence[str] = (),
    origins: Sequence[tuple[str, str]] = (),
    needs_room: bool = False,
) -> Work:
    """Files, folders (searched recursively), zips, DICOMDIRs and glob patterns as jobs, in order, each scan once.

    In folders, a file is a scan if it has a scan's extension or content. Hidden files, the output folder and the
    results of other runs are left out. DICOM files are grouped to series, and one series of each study is run (see
    `pipeline.batch.series.find_candidates`). An input that does not exist, or a folder without scans, becomes a job
    with an error. For the names see `pipeline.batch.names`.

    Args:
        inputs: Paths and patterns.
        out: The output folder.
        scratch: An empty folder that lives as long as the jobs. Zips are unpacked there.
        series_names: The DICOM series to run, by UID or number, and nothing else. ``all`` runs all other scans too.
        origins: Folders that stand for URLs, each with its URL, which messages name instead.
        needs_room: Whether a zip for which the disk is full is an error. Otherwise it costs no other input.

    Raises:
        DiskFullError: The disk is full, and `needs_room` is true.
        InputError: No input looks like a scan, or a series that you named does not exist.
    """
    search = _Search(out.resolve(), scratch, series_names, origins, needs_room)
    search.look_at(inputs)
    scans = _each_once(search.scans)
    if series_names:
        run_all = "all" in (name.lower() for name in series_names)
        scans = [job for job in scans if job.files or run_all]
        missing = [name for name in series_names if not any(c.series.is_called(name) for _, c in search.candidates)]
        if scans and run_all:  # pictures have no series
            missing = [name for name in missing if name.lower() != "all"]
        if missing:
            there = ", ".join(c.series.tag for _, c in search.candidates[:20]) or "no DICOM series"
            raise InputError(f"no series is called {missing[0]!r}; there is {there}")
    if not scans and not search.broken:
        raise InputError("; ".join(str(job.error) for job in search.failures) or "no input given")
    scans = _without_parts(scans)
    run_instead = _find_copies(scans)
    runs = [*(job for job in scans if job.key not in run_instead), *search.failures]
    keys = {job.key for job in runs}
    others = _each_once(job for job, _ in search.candidates if job.key not in keys)  # they keep their names free
    with_names = name_jobs([*runs, *others])
    names = {job.key: job.name for job in with_names}
    work = Work(with_names[: len(runs)], [(names[job.key], candidate) for job, candidate in search.candidates])
    work.left_alone = search.left_alone
    if run_instead:
        work.copies = [job for job in with_names if job.key in run_instead]
        work.jobs = [
            _with_note(job, [names[key] for key in run_instead if run_instead[key] == job.key]) for job in work.jobs
        ]
        same = {names[key]: names[other] for key, other in run_instead.items()}
        work.candidates = [(name, _run_once(candidate, same.get(name))) for name, candidate in work.candidates]
    return work


@dataclass
class _Search:
    """Looks through the inputs and collects scans, failures and DICOM series."""

    out: Path
    scratch: Path
    series_names: Sequence[str]
    origins: Sequence[tuple[str, str]] = ()
    needs_room: bool = False
    scans: list[Job] = field(default_factory=list)
    failures: list[Job] = field(default_factory=list)
    broken: bool = False  # whether a failure is of something that exists
    candidates: list[tuple[Job, Candidate]] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    dicom_files: list[Path] = field(default_factory=list)  # named one by one: a shell's *.dcm is one series
    unpacked: set[Path] = field(default_factory=set)

    def look_at(self, inputs: Iterable[str]) -> None:
        """Look through all inputs, the outermost folders first: they give the longest names to the scans in them."""
        paths = list(self._expand(inputs))
        scans: dict[int, list[Job]] = {}
        for n in sorted(range(len(paths)), key=lambda n: (os.path.realpath(paths[n]).count(os.sep), str(paths[n]))):
            self._look_at_path(paths[n])
            scans[n], self.scans = self.scans, []
        self.scans = [job for n in range(len(paths)) for job in scans[n]]
        if self.dicom_files:
            root = self.dicom_files[0].parent
            self._add_dicom(DicomInput(tuple(self.dicom_files), root, PurePosixPath(root.name), named=True))

    def _look_at_path(self, path: Path) -> None:
        if _is_dead_link(path):
            self._fail(path, str(path), _DEAD_LINK)
        elif path.is_dir():
            if not self._add_folder(path, PurePosixPath(path.resolve().name)) and path.resolve() != self.out:
                self._fail(path, str(path), "the folder holds no scan")
        elif path.is_file() and is_zip(path):
            if not self._add_zip(path, PurePosixPath(path.name)):
                self._fail(path, str(path), "the archive holds no scan")
        elif not is_dicom(path):
            self.scans.append(Job(path, path.name, unpacked=self._origin_of(path)))
        elif is_dicomdir(path):
            self._add_dicomdir(path)
        else:
            self.dicom_files.append(path)

    def _expand(self, inputs: Iterable[str]) -> Iterator[Path]:
        for text in inputs:
            if not text.strip():
                raise InputError("an input is empty; name a file or a folder")
            paths = _matches(text)
            if not paths:
                self._fail(Path(text), text, "no such file or folder")
            yield from paths

    def _origin_of(self, path: Path) -> tuple[str, str] | None:
        """The folder that stands for a URL and holds a path, and the URL; None for a path of the user's."""
        return next((origin for origin in self.origins if path.is_relative_to(origin[0])), None)

    def _shown(self, path: Path) -> str:
        """The path, or the URL that it stands for."""
        return str(path).replace(*self._origin_of(path) or ("", ""))

    def _fail(self, path: Path, name: str, reason: str, unpacked: tuple[str, str] | None = None) -> None:
        origin = unpacked or self._origin_of(path)
        job = Job(path, name.replace(*origin) if origin else name, unpacked=origin)
        self.failures.append(replace(job, error=job.with_path(reason)))

    def _fail_broken(self, path: Path, name: str, reason: str, unpacked: tuple[str, str] | None = None) -> None:
        self._fail(path, name, reason, unpacked)
        self.broken = True

    def _add_folder(self, folder: Path, name: PurePosixPath, archive: Path | None = None) -> bool:
        """Add the scans of a folder, or of the folder that a zip was unpacked to; returns whether there are any."""
        before = self._count()
        unpacked = (str(folder), self._shown(archive)) if archive else self._origin_of(folder)
        contents = _look_into(folder, self.out)

        def name_of(file: Path) -> PurePosixPath:
            inside = PurePosixPath(file.relative_to(folder).as_posix())
            return name / inside if archive else inside

        for file, reason in contents.unreadable:
            self._fail_broken(file, str(name_of(file)), f"cannot be read ({reason})", unpacked)
        if contents.others:
            parts = {part for scan in contents.scans for part in source_files(scan)}
            self.left_alone += [one_line(str(name_of(file))) for file in contents.others if file not in parts]
        self.scans += [Job(file, str(name_of(file)), unpacked=unpacked) for file in contents.scans]
        if contents.dicom:
            lists = {file.parent: lost for file in contents.dicomdirs if (lost := missing_note(file))}
            source = DicomInput(tuple(contents.dicom), folder, name, whole=archive is not None)
            self._add_dicom(source, unpacked if archive else None, lists)
        for file in [] if archive else contents.zips:  # a zip within a zip is left alone
            self._add_zip(file, name_of(file))
        return self._count() > before

    def _count(self) -> int:
        return len(self.scans) + len(self.failures) + len(self.candidates)

    def _add_zip(self, path: Path, name: PurePosixPath) -> bool:
        """Add the scans of a zip; returns False if it holds none."""
        if path.resolve() in self.unpacked:
            return True
        folder = self.scratch / str(len(self.unpacked))
        self.unpacked.add(path.resolve())
        try:
            skipped = unpack(path, folder)
        except InputError as error:
            if self.needs_room and isinstance(error, DiskFullError):
                raise
            self._fail_broken(path, str(name), str(error))
            return True
        for file, reason in skipped.items():
            inside = file.relative_to(folder)
            if any(part.startswith(".") for part in inside.parts):  # hidden, as in folders
                continue
            if not file.suffix or file.suffix[1:].isdigit() or file.name.lower().endswith(SCAN_SUFFIXES):
                self._fail_broken(file, str(name / inside.as_posix()), reason, (str(folder), self._shown(path)))
            else:
                self.left_alone.append(one_line(str(name / inside.as_posix())))
        return self._add_folder(folder, name, path) or bool(skipped)

    def _add_dicomdir(self, path: Path) -> None:
        try:
            files, missing = read_dicomdir(path)
        except InputError as error:
            self._fail_broken(path, str(path), str(error))
            return
        if missing:
            self._fail(path, path.name, note_on(files, missing))
        self._add_dicom(DicomInput(tuple(files), path.parent, PurePosixPath(path.name), whole=True))

    def _add_dicom(
        self, source: DicomInput, unpacked: tuple[str, str] | None = None, lists: Mapping[Path, str] | None = None
    ) -> None:
        """Add the series of DICOM files. `lists` holds a note on each DICOMDIR beside or above them, by its folder."""
        candidates, failures = find_candidates(source, self.series_names)
        for candidate in candidates:
            series = candidate.series
            path = series.files[0] if len(series.files) == 1 else series.folder
            if candidate.chosen and unpacked:
                path = source.root  # the zip: a path inside it means nothing to you
            incomplete = [note for folder, note in (lists or {}).items() if folder in series.files[0].parents]
            notes = tuple(filter(None, (candidate.reason, *incomplete))) if candidate.chosen else ()
            study = "\n".join(series.study)
            shown = unpacked or self._origin_of(path)
            job = Job(path, candidate.name, series.refusal, series.files, series.uid, notes, shown, study=study)
            self.candidates.append((job, candidate))
            if candidate.chosen:
                self.scans.append(job)
            elif candidate.error:
                self.failures.append(replace(job, error=job.with_path(candidate.error)))
                self.broken = True
            elif unpacked:  # many archives at once must not fill the disk with series that are not run
                for file in series.files:
                    file.unlink()
        for failure in failures:
            self._fail_broken(failure.path, failure.name, failure.reason, unpacked)


def _each_once(jobs: Iterable[Job]) -> list[Job]:
    """Each scan once, by its longest name: the one below the outermost folder that you named."""
    best: dict[frozenset[str], Job] = {}
    for job in jobs:
        other = best.get(job.key)
        if other is None or (job.name.count("/"), job.name) > (other.name.count("/"), other.name):
            best[job.key] = job
    return list(best.values())


def _without_parts(jobs: list[Job]) -> list[Job]:
    """The jobs without series of which another job has all files, and more."""
    keys = [job.key for job in jobs if job.files]
    return [job for job in jobs if not job.files or not any(job.key < other for other in keys)]


def _find_copies(jobs: list[Job]) -> dict[frozenset[str], frozenset[str]]:
    """The key of each series that another job holds too, file by file -> the key of the job that is run instead.

    A zip stands behind a folder. Otherwise the places decide, so that the order of the inputs makes no difference.
    """
    alike: defaultdict[tuple[str, int], list[Job]] = defaultdict(list)
    for job in sorted(jobs, key=lambda job: (job.unpacked is not None, job.place)):
        if job.uid and not job.error:
            alike[job.uid, len(job.files)].append(job)
    run_instead = {}
    for group in alike.values():
        first: dict[str, Job] = {}
        for job in group if len(group) > 1 else ():
            with suppress(InputError):  # a file that cannot be read: running it will say why
                same = first.setdefault(_hash_of(job), job)
                if same is not job:
                    run_instead[job.key] = same.key
    return run_instead


def _with_note(job: Job, copies: list[str]) -> Job:
    return replace(job, notes=(*job.notes, *(f"also in {name}, which is not run twice" for name in copies)))


def _run_once(candidate: Candidate, same: str | None) -> Candidate:
    return replace(candidate, chosen=False, reason=f"the same as {same}") if same else candidate


def _hash_of(job: Job) -> str:
    from tumorlens.pipeline.batch.read_jobs import hash_of  # not needed for --list

    return hash_of(job)


def _matches(text: str) -> list[Path]:
    path = Path(text)
    if path.exists() or path.is_symlink():
        return [path]
    if any(mark in text for mark in "*?["):
        paths = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        return [p for p in paths if not (p.name in RESULT_FILES and _is_result(p.parent))]
    return []


@dataclass(frozen=True)
class _Contents:
    """The files below a folder by kind. Unreadable files come with the reason."""

    scans: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    dicomdirs: list[Path] = field(default_factory=list)
    zips: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def _look_into(folder: Path, out: Path) -> _Contents:
    contents = _Contents()
    visited: set[Path] = set()  # links are followed, but not in circles

    def report(error: OSError) -> None:
        contents.unreadable.append((Path(error.filename), error.strerror or "error"))

    for place, folders, names in os.walk(folder, onerror=report, followlinks=True):
        here = Path(place)
        if here.resolve() in visited:
            folders.clear()
            continue
        visited.add(here.resolve())
        folders[:] = sorted(f for f in folders if f[0] != "." and (here / f).resolve() != out)
        results = RESULT_FILES if _is_result(here) else ()  # they may lie next to their source
        for file in (here / name for name in sorted(names) if name[0] != "." and name not in results):
            if _is_dead_link(file):
                contents.unreadable.append((file, _DEAD_LINK))
            elif file.is_file() and not os.access(file, os.R_OK):
                contents.unreadable.append((file, "Permission denied"))
            elif is_dicom(file):
                is_list = file.name.upper() == "DICOMDIR"  # its files are found anyway
                (contents.dicomdirs if is_list else contents.dicom).append(file)
            elif file.is_file() and is_scan(file):
                contents.scans.append(file)
            elif file.suffix.lower() == ".zip" and file.is_file() and (is_zip(file) or not file.stat().st_size):
                contents.zips.append(file)
            elif file.is_file():
                contents.others.append(file)
    return contents


def _is_dead_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_result(folder: Path) -> bool:
    """Whether a folder holds the result of a run. Its files are not scans."""
    return (folder / "result.json").is_file() and any((folder / file).is_file() for file in _SURE_FILES)
