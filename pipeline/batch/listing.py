"""`tumorlens run --list`: the scans and DICOM series in the inputs, and which of them would be run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tumorlens.data.errors import InputError, one_line, printable
from tumorlens.pipeline.batch.inputs import Work
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.series import Candidate

_HEADINGS = ("", "series", "modality", "images", "plane", "shows", "description", "note")


def check_headers(job: Job, frame: int | None) -> Job:
    """The job, with an error if the headers of its series rule out a run; pixels are not read."""
    if job.error or not job.files:
        return job
    from tumorlens.data.dicom.reader import check_series

    try:
        check_series(job.files, frame)
    except InputError as error:
        return replace(job, error=job.with_path(str(error)))
    return job


def describe(work: Work, keep_identifiers: bool = False) -> dict[str, Any]:
    """The scans that would be run, every DICOM series, and the inputs that cannot be run, as plain values for JSON."""
    return {
        "scans": [
            {"name": job.name, "path": printable(job.shown_path()), "notes": list(job.notes)}
            for job in work.jobs
            if not job.error
        ],
        "series": [_facts(name, candidate, keep_identifiers) for name, candidate in work.candidates],
        "errors": [{"name": job.name, "error": job.error} for job in work.jobs if job.error],
    }


def list_work(work: Work) -> str:
    """The same as lines for a terminal; ``*`` marks scans that would be run, ``!`` inputs that cannot be run."""
    lines = []
    if work.candidates:
        failed = {job.files for job in work.jobs if job.error and job.files}
        rows = [_HEADINGS, *(_row(candidate, candidate.series.files in failed) for _, candidate in work.candidates)]
        widths = [max(len(row[c]) for row in rows) for c in range(len(_HEADINGS))]
        for row, (name, candidate) in zip(rows[1:], work.candidates, strict=True):
            lines.append(_line(row, widths))
            lines.append(f"    {name}  {candidate.series.uid}")
        lines.insert(0, _line(rows[0], widths))
    lines += [f"*  {_name_and_path(job)}" for job in work.jobs if not job.error and not job.files]
    lines += [f"!  {job.error}" for job in work.jobs if job.error]
    n_scans = sum(not job.error for job in work.jobs)
    lines.append(f"{n_scans} scan{'s' if n_scans != 1 else ''} would be run (*)")
    return "\n".join(lines)


def _name_and_path(job: Job) -> str:
    """The name; where another scan is called so too, also the path."""
    return job.name if job.name == job.plain_name else one_line(f"{job.name}  {job.shown_path()}")


def _row(candidate: Candidate, failed: bool) -> tuple[str, ...]:
    series = candidate.series
    return (
        "!" if failed else "*" if candidate.chosen else " ",
        series.tag,
        series.modality or "?",
        str(series.n_images),
        series.plane or "?",
        series.kind,
        series.description[:40],
        candidate.reason,
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _facts(name: str, candidate: Candidate, keep_identifiers: bool) -> dict[str, Any]:
    facts = asdict(candidate.series)
    for key in ("files", "study", *(() if keep_identifiers else ("description",))):
        del facts[key]
    return {
        "name": name,
        **facts,
        "n_files": len(candidate.series.files),
        "taken": candidate.chosen,
        "why": candidate.reason,
    }
