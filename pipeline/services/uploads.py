"""Files that a browser sends: limits while they are read, a private folder for each visit, and the scans in them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.options import RunOptions, UploadLimits
from tumorlens.pipeline.services.jobs import JobQueue, QueuedJob

if TYPE_CHECKING:
    from tumorlens.data.dicom.series import Series
    from tumorlens.pipeline.batch.inputs import Work
    from tumorlens.pipeline.batch.job import Job

_LONGEST_NAME = 200  # bytes; file systems take 255, and other names are made of it
_OPTIONS = RunOptions(explain=True)


@dataclass(eq=False)
class Visit:
    """A visitor's files, scans and results, in a private folder.

    Attributes:
        id: Its name in addresses; nobody can guess it.
        folder: Only this user of the machine may enter it.
        limits: How much may be sent.
        queue: Where its scans run.
        jobs: All scans so far, the oldest first.
        problems: What went wrong with files, a sentence each.
        shown: The id of the scan that the visitor looks at.
        pages: How many pages of the browser show the visit.
    """

    id: str
    folder: Path
    limits: UploadLimits
    queue: JobQueue
    jobs: list[QueuedJob] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    shown: str = ""
    pages: int = 0
    _group: Path | None = None  # the folder of the files that came together
    _received: list[Path] = field(default_factory=list)
    _n_files: int = 0
    _n_bytes: int = 0

    async def receive(self, name: str, chunks: AsyncIterator[bytes], announced: int = 0) -> None:
        """Store a file. A file over the limit is refused while it is read, and its part is deleted.

        Args:
            name: As the browser says it.
            chunks: The file's bytes.
            announced: How many bytes the browser says they are.

        Raises:
            InputError: The file is over the limit. The sentence is in `problems`, too.
        """
        self._check(1, announced)
        file = self._new_file(name)
        self._n_files += 1
        try:
            with file.open("wb") as part:
                async for chunk in chunks:
                    self._check(0, len(chunk))
                    self._n_bytes += len(chunk)
                    await asyncio.to_thread(part.write, chunk)
        except BaseException:
            if file.exists():  # else the visit has ended
                self._n_bytes -= file.stat().st_size
            self._n_files -= 1
            file.unlink(missing_ok=True)
            raise
        self._received.append(file)

    def take_received(self) -> list[QueuedJob]:
        """Queue the scans in all files that came since the last call. Files that came together are one study.

        Reads the files' headers and unpacks zips: call it in a thread.
        """
        files, self._received, self._group = sorted(self._received), [], None
        return self.submit(files) if files else []

    def submit(self, files: list[Path]) -> list[QueuedJob]:
        """Queue the scans in some files of one folder; a sentence in `problems` says why there are none."""
        from tumorlens.pipeline.batch.inputs import collect

        folder = files[0].parent
        try:
            work = collect([str(file) for file in files], folder / "none", self._new_folder())
            jobs = self.queue.submit(self._with_names(work, folder), folder, _OPTIONS)
        except InputError as error:
            self.problems.append(str(error).replace(f"{folder}/", ""))
            return []
        self.jobs += jobs
        return jobs

    def run_again(self, job: QueuedJob, **changes: Any) -> list[QueuedJob]:
        """Queue a scan once more, in the place of this job, with changes to its `RunOptions`."""
        try:
            jobs = self.queue.submit([job.scan], job.folder, replace(job.options, **changes))
        except InputError as error:
            self.problems.append(str(error))
            return []
        self.jobs = [*(other for other in self.jobs if other is not job), *jobs]
        return jobs

    def remove(self, job: QueuedJob) -> None:
        """Take a scan off the list, and delete its result, and its files unless other scans on the list need them."""
        self.jobs = [other for other in self.jobs if other is not job]
        needed = {file for other in self.jobs for file in other.scan.files or (other.scan.path,)}
        files = [file for file in job.scan.files or (job.scan.path,) if file not in needed]
        _delete(self.queue, [job], [*files, *job.folder.glob(f"{job.id}.*")])

    def new_file(self, name: str) -> Path:
        """A path for a file that the server itself makes, in a new folder."""
        return self._new_folder() / name

    def clear(self) -> None:
        """Cancel all scans and delete all files."""
        jobs, self.jobs, self.problems, self.shown = self.jobs, [], [], ""
        folders = list(self.folder.iterdir())
        self._group, self._received, self._n_files, self._n_bytes = None, [], 0, 0
        _delete(self.queue, jobs, folders)

    def _check(self, n_files: int, n_bytes: int) -> None:
        refusal = self.limits.refusal(self._n_files + n_files, self._n_bytes + n_bytes)
        if refusal:
            if refusal not in self.problems:
                self.problems.append(refusal)
            raise InputError(refusal)

    def _with_names(self, work: Work, folder: Path) -> list[Job]:
        """The scans. Series of loose DICOM files have names such as ``MR series 601`` instead of our folder's."""
        series = {name: candidate.series for name, candidate in work.candidates}
        taken = {job.name for job in self.jobs} | {scan.name for scan in work.jobs}
        scans = []
        for scan in work.jobs:
            if scan.path == folder and scan.name in series:
                name = plain = series_name(series[scan.name])
                n = 1
                while name in taken:
                    n += 1
                    name = f"{plain} ({n})"
                scan = replace(scan, name=name)
                taken.add(name)
            scans.append(scan)
        return scans

    def _new_folder(self) -> Path:
        return Path(mkdtemp(dir=self.folder))

    def _new_file(self, name: str) -> Path:
        if self._group is None:
            self._group = self._new_folder()
        return new_file(self._group, safe_name(name))


class Visits:
    """The visits of all visitors, by the id of the browser's tab. Their folders go with them."""

    def __init__(self, queue: JobQueue, limits: UploadLimits) -> None:
        self.queue, self.limits = queue, limits
        self._root = ScratchFolder()
        self._by_tab: dict[str, Visit] = {}

    def enter(self, tab: str) -> Visit:
        """The visit of a tab, a new one where it has none: a page that is reloaded finds its results again."""
        if tab not in self._by_tab:
            folder = Path(mkdtemp(dir=self._root.name))
            self._by_tab[tab] = Visit(secrets.token_urlsafe(16), folder, self.limits, self.queue)
        visit = self._by_tab[tab]
        visit.pages += 1
        return visit

    def leave(self, visit: Visit) -> None:
        """End a visit once the last page that shows it is gone: cancel its scans, delete its files."""
        visit.pages -= 1
        if visit.pages > 0:
            return
        self._by_tab = {tab: other for tab, other in self._by_tab.items() if other is not visit}
        _delete(visit.queue, visit.jobs, [visit.folder])

    def find(self, id: str) -> Visit | None:
        """The visit with an id, or None."""
        return next((visit for visit in self._by_tab.values() if secrets.compare_digest(visit.id, id)), None)

    def close(self) -> None:
        """Delete everything. Close the queue first."""
        self._by_tab.clear()
        self._root.cleanup()


def safe_name(name: str) -> str:
    """A file name without folders, control characters and leading dots; the end of one over 200 bytes of UTF-8."""
    plain = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "", re.split(r"[/\\]", name)[-1])
    return plain.encode()[-_LONGEST_NAME:].decode("utf-8", "ignore").lstrip(". ") or "file"


def new_file(folder: Path, name: str) -> Path:
    """An empty file in a private folder, called ``2-NAME`` and so on where the name is taken."""
    file, n = folder / name, 1
    while file.exists():
        n += 1
        file = folder / f"{n}-{name}"
    file.touch(0o600)
    return file


def series_name(series: Series) -> str:
    """``MR series 601``: modality and number, which name no patient, as descriptions may."""
    kind = series.modality if re.fullmatch("[A-Z]{2,8}", series.modality) else "DICOM"
    return f"{kind} series" + ("" if series.number is None else f" {series.number}")


def _delete(queue: JobQueue, jobs: list[QueuedJob], paths: list[Path]) -> None:
    """Delete folders and files once none of their scans runs any more, without making the caller wait."""
    for job in jobs:
        queue.cancel(job)

    def wait_and_delete() -> None:
        for job in jobs:
            job.ended.wait()
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    threading.Thread(target=wait_and_delete, name="delete", daemon=True).start()
