"""The scans of stored results, found again and read as they were judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan, open_series
from tumorlens.data.scan import Scan
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.job import Job, place_of
from tumorlens.pipeline.batch.memory import remembered_inputs
from tumorlens.pipeline.batch.read_jobs import hash_of
from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.case import open_source
from tumorlens.pipeline.options import RunOptions


def find_sources(results: Sequence[StoredResult], out: Path, inputs: Sequence[str], scratch: Path) -> dict[str, Job]:
    """The scans of stored results: the scan's name in ``results.csv`` -> the job that reads it.

    A scan is found by its place, or by its name where the inputs have moved. `open_stored` checks the content.

    Args:
        results: From `pipeline.batch.stored.read_results`.
        out: The output folder.
        inputs: Files, folders and patterns; by default those that `remember_inputs` noted.
        scratch: An empty folder that lives as long as the jobs. Zips are unpacked there.

    Raises:
        InputError: You named inputs, and they hold no scan.
    """
    places = list(inputs) or [text for text in remembered_inputs(out) if Path(text).exists() or "*" in text]
    if not places:
        return {}
    try:
        work = collect(places, out, scratch, ("all",))
    except InputError as error:
        if inputs:
            missing = next((text for text in inputs if "*" not in text and not Path(text).exists()), None)
            raise InputError(f"{missing}: no such file or folder") if missing else error from None
        return {}
    jobs = [job for job in (*work.jobs, *work.copies) if not job.error]  # a copy may have been run at another time
    by_place: dict[tuple[str, str], Job] = {(place_of(job), job.uid): job for job in jobs}
    by_name = {job.name: job for job in jobs}
    found = {}
    for result in results:
        if result.failed:
            continue
        uid = str(result.content["scan"].get("dicom", {}).get("series_instance_uid", ""))
        place = str(result.content.get("place_sha256"))
        job = by_place.get((place, uid)) or by_place.get((place, "")) or by_name.get(result.name)
        if job is not None:
            found[result.name] = job
    return found


def open_stored(result: StoredResult, job: Job) -> Scan:
    """The scan of a stored result, as it was judged: the same frame, channel and plane.

    Raises:
        InputError: It cannot be read, or it has changed since.
    """
    made_of = result.content.get("made_of") or {}
    names = {field.name for field in fields(RunOptions)}
    options = RunOptions(**{name: value for name, value in made_of.items() if name in names})
    if made_of.get("source_sha256") not in (None, hash_of(job)):
        raise InputError(f"{job.shown_path()}: the scan has changed since {result.name} was run")
    scan = open_series(job.files, options.frame) if job.files else open_scan(job.path, options.frame)
    return open_source(scan, options)
