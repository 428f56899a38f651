"""`tumorlens run --list`: which scans and series were found, and which of them would be run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.job import Job, Work
from tumorlens.pipeline.batch.series import Candidate

_HEADINGS = ("", "series", "modality", "images", "plane", "shows", "description", "note")


def check_headers(job: Job, frame: int | None) -> Job:
    """The job, with an error if the headers of its series say that it cannot be run; pixels are not looked at."""
    if job.error or not job.files:
        return job
    from tumorlens.data.dicom.reader import check_series

    try:
        check_series(job.files, frame)
    except InputError as error:
        return replace(job, error=job.told(str(error)))
    return job


def describe(work: Work, keep_identifiers: bool = False) -> dict[str, Any]:
    """The scans that would be run, every DICOM series, and what cannot be run, as plain values for JSON."""
    return {
        "scans": [{"name": job.name, "notes": list(job.notes)} for job in work.jobs if not job.error],
        "series": [_facts(name, candidate, keep_identifiers) for name, candidate in work.candidates],
        "errors": [{"name": job.name, "error": job.error} for job in work.jobs if job.error],
    }


def list_work(work: Work) -> str:
    """The same as lines for a terminal: ``*`` marks what would be run."""
    lines = []
    if work.candidates:
        failed = {job.files for job in work.jobs if job.error and job.files}
        rows = [_HEADINGS, *(_row(candidate, candidate.series.files in failed) for _, candidate in work.candidates)]
        widths = [max(len(row[c]) for row in rows) for c in range(len(_HEADINGS))]
        for row, (name, candidate) in zip(rows[1:], work.candidates, strict=True):
            lines.append(_line(row, widths))
            lines.append(f"    {name}  {candidate.series.uid}")
        lines.insert(0, _line(rows[0], widths))
    lines += [f"*  {job.name}" for job in work.jobs if not job.error and not job.files]
    lines += [f"!  {job.error}" for job in work.jobs if job.error]
    run = sum(not job.error for job in work.jobs)
    lines.append(f"{run} scan{'s' if run != 1 else ''} would be run (*)")
    return "\n".join(lines)


def _row(candidate: Candidate, failed: bool) -> tuple[str, ...]:
    series = candidate.series
    return (
        "!" if failed else "*" if candidate.taken else " ",
        series.tag,
        series.modality or "?",
        str(series.n_images),
        series.plane or "?",
        series.kind,
        series.description[:40],
        candidate.why,
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
        "taken": candidate.taken,
        "why": candidate.why,
    }
