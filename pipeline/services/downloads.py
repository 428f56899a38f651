"""The files of a result, made when somebody wants to save them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.job import folder_of
from tumorlens.pipeline.services.jobs import QueuedJob

MASKS = ("mask.nii.gz", "mask.png")
OVERLAY = "overlay.png"
REPORT = "report.html"


def write_files(job: QueuedJob) -> Path:
    """The folder with the files of a job's result, as `tumorlens run` writes them, and with the report.

    Raises:
        InputError: There is no result.
    """
    from tumorlens.pipeline.outputs.report_html import render_report
    from tumorlens.pipeline.outputs.write import write_result

    folder = job.folder / f"{job.id}.files"
    if not (folder / REPORT).is_file():
        content = write_result(job.result, folder, job.name, job.made_of, job.options)
        (folder / REPORT).write_text(render_report(content, folder), encoding="utf-8")
    return folder


def find_file(folder: Path, *names: str) -> Path:
    """The first of some files that is there.

    Raises:
        InputError: None is.
    """
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"this result has no {names[0]}")
    return file


def zip_files(folder: Path) -> Path:
    """A zip of all files of a result, beside their folder."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(folder.iterdir()):
            zipped.write(file, file.name)
    return archive


def saved_name(job: QueuedJob, file: Path) -> str:
    """The name under which a file of a result is saved: it begins with the scan's."""
    stem = folder_of(job.name).replace("/", "_")
    return f"{stem}.zip" if file.suffix == ".zip" else f"{stem}_{file.name}"
