"""The files of a result, made when somebody wants to save them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.job import folder_of
from tumorlens.pipeline.services.jobs import QueuedJob

MASKS = ("mask.nii.gz", "mask.png")
OVERLAY = "overlay.png"
REPORT = "report.html"
_PACKED = (".png", ".gz", ".pdf")  # they get no smaller
_PIECE = 256 * 1024


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
    with archive.open("wb") as zipped:
        zipped.writelines(zip_pieces((file.name, file) for file in sorted(folder.iterdir())))
    return archive


def zip_pieces(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """A zip, piece by piece, so that nothing waits for its end. Little of it is in memory.

    Args:
        files: Name in the zip, and file.
    """
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w") as zipped:
        for name, file in files:
            entry = zipfile.ZipInfo.from_file(file, name, strict_timestamps=False)
            entry.compress_type = zipfile.ZIP_STORED if file.suffix in _PACKED else zipfile.ZIP_DEFLATED
            with file.open("rb") as source, zipped.open(entry, "w") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    if taken := pieces.take():
                        yield taken
    yield pieces.take()


class _Pieces(io.RawIOBase):
    """A stream that cannot go back, and whose content is taken out of it as it comes."""

    def __init__(self) -> None:
        self._content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._content += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._content)
        self._content.clear()
        return taken


def saved_name(job: QueuedJob, file: Path) -> str:
    """The name under which a file of a result is saved: it begins with the scan's."""
    stem = folder_of(job.name).replace("/", "_")
    return f"{stem}.zip" if file.suffix == ".zip" else f"{stem}_{file.name}"
