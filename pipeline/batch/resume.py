"""All that ``--continue`` and ``--overwrite`` need: the results of earlier calls in OUT, and whose they are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION
from tumorlens.pipeline.batch.job import Job, folder_of, place_of
from tumorlens.pipeline.batch.names import name_jobs
from tumorlens.pipeline.batch.read_jobs import hash_of
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import PARQUET, QUARANTINE, REPORT, TABLE
from tumorlens.pipeline.outputs.table import csv_row, read_table
from tumorlens.pipeline.outputs.write import remove_result
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.versions import package_versions

_OF_REPORTS = ("report", "pdf")  # reports are made from a result and do not change it
# What reading a result.json raises that is damaged, or that somebody has edited.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_EXTRAS = ("explain", "maps", "overlay", "secondary_capture")  # they add files to a result and change nothing else

# The parts of a card that a result depends on. All but the first two can change while the weights stay the same.
_OF_CLASSIFIER = (
    "sha256",
    "input_size",
    "normalization",
    "operating_point",
    "calibration",
    "conformal",
    "refusal",
    "lesion_rule",
)
_OF_SEGMENTER = ("sha256", "input_size", "normalization", "operating_point")


@dataclass(frozen=True)
class Origin:
    """The scan that a result belongs to.

    Attributes:
        name: The scan's name in ``results.csv``.
        place_sha256: From `pipeline.batch.job.place_of`, or None if the result does not say.
        series_uid: The Series Instance UID of a DICOM series, else empty.
        source_sha256: From `pipeline.batch.read_jobs.hash_of`, or None if the result does not say.
    """

    name: str
    place_sha256: str | None
    series_uid: str
    source_sha256: str | None


def settings_of(pipeline: Pipeline, options: RunOptions) -> dict[str, Any]:
    """Everything that a result depends on besides its source."""
    card = pipeline.classifier.card
    return {
        "tumorlens": package_versions()["tumorlens"],
        "classification": {key: card.get(key) for key in _OF_CLASSIFIER}
        | ({"class_table": card["class_table"]} if "class_table" in card else {}),
        "segmentation": {key: pipeline.segmenter.card.get(key) for key in _OF_SEGMENTER}
        | pipeline.segmenter.regions.to_card(),
        "preprocess_version": PREPROCESS_VERSION,
        "threshold": pipeline.threshold,
        "tta": pipeline.classifier.tta,
        "engine": pipeline.engine.facts(),
        **{name: value for name, value in asdict(options).items() if name not in _OF_REPORTS},
    }


def remove_earlier_results(out: Path) -> None:
    """Remove the results in the table of an earlier call, so that none of them looks like a result of this call."""
    for row in read_table(out / TABLE):
        folder = out / folder_of(row["scan"])
        origin = origin_of(folder)
        if row["error"]:
            (folder / QUARANTINE).unlink(missing_ok=True)
        if row["error"] or (origin and origin.name == row["scan"]):
            if origin and origin.name == row["scan"]:
                remove_result(folder)
            with suppress(OSError):  # your own files may lie there too
                folder.rmdir()
    if (out / REPORT).is_file():
        from tumorlens.pipeline.outputs.report_batch import is_batch_report

        if is_batch_report(out / REPORT):
            (out / REPORT).unlink()
    (out / PARQUET).unlink(missing_ok=True)
    (out / TABLE).unlink(missing_ok=True)  # a run that is killed at once must not leave rows without results


def name_resumed_jobs(jobs: Sequence[Job], out: Path) -> list[Job]:
    """The jobs with names and output folders that hold no result of another scan.

    A scan that was run before keeps its name. Two scans are the same if they lie in the same place, or if they have the
    same name and content: a scan that was moved is still the same.
    """
    folders = {folder.casefold(): folder for folder in (folder_of(row["scan"]) for row in read_table(out / TABLE))}

    def origin_at(job: Job) -> Origin | None:
        return origin_of(out / job.folder) or origin_of(out / folders.get(job.folder.casefold(), job.folder))

    def has_result(job: Job) -> bool:
        origin = origin_at(job)
        return origin is not None and origin.name == job.name and _is_place_of(origin, job)

    def is_free(job: Job) -> bool:
        origin = origin_at(job)
        if origin is None or has_result(job):
            return True
        if origin.name != job.name:
            return False
        return origin.place_sha256 is None or origin.source_sha256 == _content_of(job)

    return name_jobs(jobs, is_free, has_result)


def earlier_result(job: Job, out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The content of the job's ``result.json``, if it is complete and of the same source, models and settings.

    It may hold more files than the settings ask for now, not fewer.

    Args:
        job: The job.
        out: The output folder.
        settings: From `settings_of`. A frame counts only where the source has several.
    """
    folder = out / job.folder
    if job.error or not (folder / "result.json").is_file():
        return None
    try:
        content: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        earlier = content["made_of"]
        frame = None if earlier["frame"] is None else settings["frame"]
        extras = {name: settings[name] or earlier[name] for name in _EXTRAS}
        made_of = {"source_sha256": hash_of(job), **settings, "frame": frame, **extras}
        csv_row(content)  # raises where the file is damaged
        # After a power failure, a file may be there and empty.
        is_complete = all((folder / file).is_file() and (folder / file).stat().st_size for file in content["files"])
        return content if is_complete and content["scan"]["name"] == job.name and earlier == made_of else None
    except (InputError, *DAMAGE):
        return None


def find_earlier(job: Job, out: Path, settings: dict[str, Any], job_seconds: float = math.inf) -> dict[str, Any] | None:
    """The same as `earlier_result`, for scans that are not in quarantine.

    Args:
        job: The job.
        out: The output folder.
        settings: From `settings_of`.
        job_seconds: How long a scan may take now.

    Raises:
        InputError: The scan has no such result and is in quarantine, with these settings. The message says why.
    """
    folder = out / job.folder
    earlier = earlier_result(job, out, settings)
    if earlier is None and (folder / QUARANTINE).is_file():
        reason = _quarantined(folder, {"source_sha256": _content_of(job), **settings}, job_seconds)
        if reason:
            raise InputError(reason)
    return earlier


def _quarantined(folder: Path, made_of: dict[str, Any], job_seconds: float) -> str | None:
    """Why the scan of an output folder is in quarantine; None if it is not, or was with other settings or less time."""
    try:
        record = json.loads((folder / QUARANTINE).read_text(encoding="utf-8"))
        has_more_time = record["job_seconds"] is not None and record["job_seconds"] < job_seconds
        return str(record["error"]) if record["made_of"] == made_of and not has_more_time else None
    except DAMAGE:
        return None


def quarantine_record(job: Job, settings: dict[str, Any], tries: int, job_seconds: float | None) -> dict[str, Any]:
    """The content of the file that keeps a scan from being run again with these settings.

    It lacks the hash of the source, from `pipeline.batch.read_jobs.hash_of`: the scan is tried again until that is
    there, unless it cannot be read.

    Args:
        job: The scan.
        settings: From `settings_of`.
        tries: How often it was run alone.
        job_seconds: How long it may take, if it took longer; None if it ended its process.
    """
    if job_seconds is None:
        what, remedy = f"ended its process {tries} times", ""
    else:
        what, remedy = f"took longer than --job-seconds allows ({job_seconds:g})", "raise --job-seconds, or "
    return {
        "scan": {"name": job.name},
        "error": f"reading or judging it {what}, so it is in quarantine; check the file, and {remedy}delete "
        f"{QUARANTINE} in its output folder to try it again",
        "tries": tries,
        "job_seconds": job_seconds,
        "place_sha256": place_of(job),
        "made_of": {"source_sha256": None, **settings},
    }


def origin_of(folder: Path) -> Origin | None:
    """The scan that the result in a folder belongs to, complete or not; None if there is no result."""
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Origin(
            name=str(content["scan"]["name"]),
            place_sha256=content.get("place_sha256"),
            series_uid=str(content["scan"].get("dicom", {}).get("series_instance_uid", "")),
            source_sha256=(content.get("made_of") or {}).get("source_sha256"),
        )
    except DAMAGE:
        return None


def _is_place_of(origin: Origin, job: Job) -> bool:
    """Whether the result's scan lay where the job's lies. Of a series that has no UID, the place alone decides."""
    is_other_series = bool(job.uid and origin.series_uid) and job.uid != origin.series_uid
    return origin.place_sha256 == place_of(job) and not is_other_series


def _content_of(job: Job) -> str | None:
    try:
        return hash_of(job)
    except InputError:  # reading will say why
        return None
