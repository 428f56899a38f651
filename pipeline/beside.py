"""Where results go in an output folder that holds those of earlier calls: never in the place of another scan's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath

from data.dicom_series import common_folder
from data.errors import InputError, printable
from pipeline.export import origin_of
from pipeline.inputs import Job, possible_folders
from pipeline.read_ahead import hash_of


def place_of(job: Job) -> str:
    """SHA-256 of where a scan lies. It tells scans of one name apart; the path itself may name the patient."""
    path = job.known(common_folder(job.files) if job.files else job.path)
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()


def beside_earlier(jobs: list[Job], out: Path) -> list[Job]:
    """The jobs with names and output folders that no other scan's result has.

    An earlier call may have run a scan of the same name from elsewhere (another patient's, as a rule); then the name
    gets as many parent folders in front as it takes, and where no folder tells the two apart, a number behind. Two
    scans are the same where either place or content is.
    """
    names = {job.name for job in jobs}
    folders = {job.folder.casefold() for job in jobs}
    placed = []
    for job in jobs:
        names.discard(job.name)
        folders.discard(job.folder.casefold())
        placed.append(_beside_earlier(job, out, names, folders))
        names.add(placed[-1].name)
        folders.add(placed[-1].folder.casefold())
    return placed


def _beside_earlier(job: Job, out: Path, names: set[str], folders: set[str]) -> Job:
    """One job, beside the names and folders of the others."""
    name = next(name for name in _possible_names(job) if name not in names and not _is_anothers(name, job, out))
    if job.error:
        return replace(job, name=name)
    own = [job.folder] if name == job.name else []
    for folder in (*own, *possible_folders(name)):
        origin = origin_of(out / folder)
        if folder.casefold() not in folders and (origin is None or origin.name == name):
            return replace(job, name=name, folder=folder)
    error = f"{out / job.folder}: this is the result of another scan; choose another -o"
    return replace(job, name=name, folder="", error=error)


def _is_anothers(name: str, job: Job, out: Path) -> bool:
    """Whether a result of this name came neither of the job's place nor of its content. One that does not say of which
    place it came is the job's own."""
    origins = [origin_of(out / folder) for folder in dict.fromkeys((job.folder or name, *possible_folders(name)))]
    elsewhere = [o for o in origins if o and o.name == name and o.place_sha256 not in (None, place_of(job))]
    if not elsewhere or job.error:
        return bool(elsewhere)
    try:
        content = hash_of(job)
    except InputError:  # its reader will say so
        return True
    return any(origin.source_sha256 != content for origin in elsewhere)


def _possible_names(job: Job) -> Iterator[str]:
    yield job.name
    above = _folders_above(job)
    yield from ("/".join((*above[-n:], job.name)) for n in range(1, len(above) + 1))
    yield from (f"{job.name}.{n}" for n in count(2))


def _folders_above(job: Job) -> tuple[str, ...]:
    """The folders that lie above those in a scan's name; none where the name is not the end of its path."""
    own = PurePosixPath(job.name).parts
    path = Path(os.path.realpath(job.known(job.path)))
    for place in (path, path.parent):  # a series of one file may go by its folder
        parts = [printable(part) for part in place.parts if part != place.anchor]
        end = parts[-len(own) :]
        if end and end[:-1] == list(own[:-1]) and (own[-1] == end[-1] or own[-1].startswith(f"{end[-1]}#")):
            return tuple(parts[: -len(own)])
    return ()
