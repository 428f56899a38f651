"""What the user named on the command line -> the scans to run, each with a name of its own."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.errors import InputError, printable
from data.readers import NO_DICOM, SCAN_SUFFIXES, is_dicom, sniff


@dataclass(frozen=True)
class Job:
    """One scan to run.

    Attributes:
        path: The file.
        name: What `results.csv` calls it: the path relative to the input folder, with forward slashes.
        folder: Where its outputs go, relative to the output folder.
        error: Why there is nothing to run, or none.
    """

    path: Path
    name: str
    folder: str
    error: str | None = None


def collect_jobs(inputs: Iterable[str], out: Path) -> list[Job]:
    """Files, folders (searched recursively) and glob patterns as jobs, in order, each file once.

    In folders, files are taken that have a scan's suffix or a scan's content; hidden ones, the output folder and the
    results of other runs are left out. An input that is not there, or a folder without scans, becomes a job with an
    error.

    Raises:
        InputError: Not one scan in all inputs.
    """
    found: list[tuple[Path, PurePosixPath]] = []
    errors: dict[str, str] = {}
    for text in inputs:
        if not text.strip():
            raise InputError("an input is empty text")
        paths = _expand(text)
        if not paths:
            errors[text] = f"{text}: no such file or folder"
        for path in paths:
            if not path.is_dir():
                found.append((path, PurePosixPath(path.name)))
                continue
            inside, dicom = _scans_below(path, out)
            if dicom:
                errors[str(path)] = f"{path}: {len(dicom)} DICOM files were left out ({dicom[0].name} ...); {NO_DICOM}"
            elif not inside:
                errors[str(path)] = f"{path}: the folder holds no scan"
            found += [(file, PurePosixPath(file.relative_to(path).as_posix())) for file in inside]
    if not found:
        raise InputError("; ".join(errors.values()) or "no input given")
    once = list({path.resolve(): (path, name) for path, name in reversed(found)}.values())[::-1]
    names = _unique_names(once)
    folders = _output_folders(names)
    jobs = [Job(path, printable(str(n)), printable(f)) for (path, _), n, f in zip(once, names, folders, strict=True)]
    taken = {job.name for job in jobs}
    for text, error in errors.items():
        name = printable(text)
        while name in taken:
            name += " (not run)"
        jobs.append(Job(Path(text), name, "", error))
        taken.add(name)
    return jobs


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.exists():
        return [path]
    if any(mark in text for mark in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        return [match for match in matches if not _is_result(match.parent)]
    return []


def _scans_below(folder: Path, out: Path) -> tuple[list[Path], list[Path]]:
    """The scans below a folder, and the DICOM files."""
    results = out.resolve()
    files: list[Path] = []
    dicom: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=False):
        here = Path(place)
        if _is_result(here):
            names = []
        folders[:] = sorted(f for f in folders if f[0] != "." and (here / f).resolve() != results)
        for file in (here / n for n in sorted(names) if n[0] != "."):
            if _is_scan(file):
                files.append(file)
            elif is_dicom(file):
                dicom.append(file)
    return files, dicom


def _is_result(folder: Path) -> bool:
    """Whether a folder holds the result of a run, whose pictures are no scans."""
    return (folder / "result.json").is_file() and (folder / "overlay.png").is_file()


def _is_scan(path: Path) -> bool:
    if path.name.lower().endswith(SCAN_SUFFIXES):
        return path.is_file()
    try:
        return path.is_file() and bool(sniff(path))
    except (InputError, OSError, EOFError):
        return False


def _unique_names(found: list[tuple[Path, PurePosixPath]]) -> list[PurePosixPath]:
    """Names, with as many parent folders put in front as it takes to tell two inputs apart."""
    names = [name for _, name in found]
    while True:
        count = Counter(names)
        longer = [
            _one_folder_more(path, name) if count[name] > 1 else name
            for (path, _), name in zip(found, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer


def _one_folder_more(path: Path, name: PurePosixPath) -> PurePosixPath:
    parts = [p for p in path.resolve().parts if p != path.anchor]
    return PurePosixPath(*parts[-min(len(parts), len(name.parts) + 1) :])


def _output_folders(names: list[PurePosixPath]) -> list[str]:
    """Names without their extension, which stays where two would collide."""
    bare = [bare_name(str(name)) for name in names]
    count = Counter(bare)
    # A bare name may also be the full name of another scan ("a" beside "a.png"), or a folder that others lie in.
    taken = Counter(str(n) for n in names) + Counter(str(p) for n in names for p in n.parents)
    free = [b if count[b] == 1 and not taken[b] else str(n) for b, n in zip(bare, names, strict=True)]
    # The table of all results has its place, too.
    return [f"_{f}" if PurePosixPath(f).parts[0].lower() == "results.csv" else f for f in free]


def bare_name(name: str) -> str:
    """A scan's name without its extension."""
    for suffix in sorted(SCAN_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(PurePosixPath(name).name) > len(suffix):
            return name[: -len(suffix)]
    return name
