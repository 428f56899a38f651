"""Where results go in an output folder that holds those of earlier calls: never in the place of another scan's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from tumorlens.data.dicom.series import common_folder
from tumorlens.data.errors import InputError, printable
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.names import possible_folders
from tumorlens.pipeline.batch.read_ahead import hash_of
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import TABLE
from tumorlens.pipeline.outputs.table import read_table
from tumorlens.pipeline.outputs.write import origin_of, read_result, remove_result
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.versions import package_versions

# What of a card a result depends on; all but the first two can change under the very same weights.
_OF_CLASSIFIER = ("sha256", "input_size", "normalization", "operating_point", "calibration", "conformal", "refusal")
_OF_SEGMENTER = ("sha256", "input_size", "normalization", "operating_point")


def settings_of(pipeline: Pipeline, options: RunOptions) -> dict[str, Any]:
    """What a result depends on besides its source."""
    return {
        "tumorlens": package_versions()["tumorlens"],
        "classification": {key: pipeline.classifier.card.get(key) for key in _OF_CLASSIFIER},
        "segmentation": {key: pipeline.segmenter.card.get(key) for key in _OF_SEGMENTER},
        "preprocess_version": PREPROCESS_VERSION,
        "threshold": pipeline.threshold,
        "tta": pipeline.classifier.tta,
        "engine": pipeline.engine.facts(),
        **asdict(options),
    }


def remove_earlier_results(out: Path) -> None:
    """Remove the results in the table of an earlier run, so that none of them is taken for one of this run."""
    for row in read_table(out / TABLE):
        for folder in possible_folders(row["scan"]):
            origin = origin_of(out / folder)
            if origin and origin.name == row["scan"]:
                remove_result(out / folder)
                with suppress(OSError):  # files of the user's may lie there too
                    (out / folder).rmdir()
    (out / TABLE).unlink(missing_ok=True)  # a run that is killed at once must not leave rows without results


def earlier_result(job: Job, out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the very same file, models and settings, or none."""
    if job.error or not (out / job.folder / "result.json").is_file():
        return None
    try:
        return read_result(out / job.folder, job.name, {"source_sha256": hash_of(job), **settings})
    except (InputError, OSError):
        return None


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
