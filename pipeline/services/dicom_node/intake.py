"""Objects on their way in: each lies in the node's folder, whole, before its sender hears of success.

The objects of a study gather in the folder of a job that is not accepted yet. The study is complete once no object has
come for a while; then the job is. Files and folders are called by UIDs, which name no patient.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from tumorlens.data.dicom.derived import MANUFACTURER
from tumorlens.data.dicom.headers import number, read_header, text
from tumorlens.data.errors import InputError, one_line
from tumorlens.data.files import flush, write_text
from tumorlens.pipeline.services.dicom_node.delivery import is_answered
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits
from tumorlens.pipeline.services.jobs import DONE, FAILED, RUNNING, WAITING
from tumorlens.pipeline.services.spool import DICOM, Arrival, FullError, Spool, StoredJob

_TAGS = ("StudyInstanceUID", "SOPInstanceUID", "Manufacturer", "Rows")
_is_uid = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*").fullmatch
_log = logging.getLogger(__name__)


class BrokenError(Exception):
    """An object cannot be read, or is not the one that its sender says. The message is a sentence.

    Attributes:
        is_another: Whether it can be read.
    """

    def __init__(self, message: str, is_another: bool = False) -> None:
        super().__init__(message)
        self.is_another = is_another


@dataclass
class _Study:
    """A study that may still grow.

    Attributes:
        arrival: Its job, and its folder.
        last: When its last object came; monotonic, as the next.
        cut: When something of it was last lost, as far as we know; None if nothing was.
        whole: When the last association began that has brought all it had; 0 before the first.
    """

    arrival: Arrival
    last: float
    cut: float | None = None
    whole: float = 0.0

    def folder(self, uid: str) -> Path:
        return self.arrival.folder / uid


class Intake:
    """Takes objects in and makes jobs of studies. Any thread may `store`; one thread calls the rest."""

    def __init__(self, spool: Spool, limits: NodeLimits, options: Mapping[str, Any] | None = None) -> None:
        """Args:
        spool: Nobody else puts DICOM jobs into it.
        limits: Of its size, and of time.
        options: Fields of `pipeline.options.RunOptions` for the jobs.
        """
        self.spool, self.limits, self._options = spool, limits, dict(options or {})
        self._parts, self._aside = spool.folder / "parts", spool.folder / "aside"
        shutil.rmtree(self._parts, ignore_errors=True)  # of a process that was killed; nobody was told of success
        for place in (self._parts, self._aside):
            place.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._n_bytes = _size(spool.folder)
        self._open: dict[str, _Study] = {}
        self.under_way: Callable[[], set[str]] = set  # gives the studies that senders are at
        for arrival in spool.unaccepted(DICOM):
            self._open_again(arrival)

    def _open_again(self, arrival: Arrival) -> None:
        """Go on with a study that was not complete when the process ended."""
        for folder in arrival.folder.iterdir() if arrival.folder.is_dir() else ():
            uid = folder.name
            if uid not in self._open:  # senders that were cut off get their time again
                self._open[uid] = _Study(arrival, time.monotonic(), cut=time.monotonic())
                return
            for file in folder.iterdir():  # it was being closed while more came
                file.replace(self._open[uid].folder(uid) / file.name)
            flush(self._open[uid].folder(uid))
        self.spool.discard(arrival)

    def new_folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for files on their way in, which does not outlive the process for long."""
        return tempfile.TemporaryDirectory(dir=self._parts)

    def check_room(self, n_bytes: int) -> None:
        """Raises:
        FullError: Another object of this size would exceed a limit.
        """
        if self._n_bytes + n_bytes > self.limits.spool_gb * 1e9:
            raise FullError(f"the folder would hold more than {self.limits.spool_gb:g} GB (--spool-gb)")
        if shutil.disk_usage(self.spool.folder).free - n_bytes < self.limits.free_gb * 1e9:
            rest = f"less than {self.limits.free_gb:g} GB of it would stay free (--free-gb)"
            raise FullError("the disk is full" if not self.limits.free_gb else rest)

    def store(self, content: bytes, instance: str) -> str:
        """Keep an object. When this returns, it outlives a power failure.

        Reports, segmentations and our own results are not kept: nobody runs them.

        Args:
            content: The bytes of a DICOM file.
            instance: The SOP Instance UID that its sender gives.

        Returns:
            Study Instance UID; empty for an object that is not kept.

        Raises:
            FullError: There is no room.
            InputError, OSError: It cannot be written.
            BrokenError: It cannot be read, or is another object than its sender says. It is set aside.
        """
        self.check_room(len(content))
        handle, name = tempfile.mkstemp(suffix=".dcm", dir=self._parts)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                study, is_used = _look_at(part, instance)
            except BrokenError as error:
                self._n_bytes += len(content)
                self._set_aside(part, str(error))
                raise
            if is_used:
                self._keep(part, study, instance)
                self._n_bytes += len(content)
            return study if is_used else ""
        finally:
            part.unlink(missing_ok=True)

    def _keep(self, part: Path, uid: str, instance: str) -> None:
        with self._lock:  # the study must not be closed meanwhile
            study = self._open.get(uid)
            if study is None:
                study = _Study(self.spool.receive(DICOM), 0)
                try:
                    study.folder(uid).mkdir()
                except OSError:
                    self.spool.discard(study.arrival)
                    raise
                for place in (study.arrival.folder, study.arrival.folder.parent, study.arrival.folder.parent.parent):
                    flush(place)
                self._open[uid] = study
                _log.info("study %s: the first object has come", uid)
            part.replace(study.folder(uid) / f"{instance}.dcm")
            flush(study.folder(uid))
            study.last = time.monotonic()

    def note_loss(self, uid: str, when: float | None = None) -> None:
        """Note that a study lacks something that was sent, now or at a time (monotonic) that is over."""
        when = time.monotonic() if when is None else when
        with self._lock:
            study = self._open.get(uid)
            if study is not None and when > study.whole:
                study.cut = max(when, study.cut or when)

    def note_end(self, uid: str, begun: float) -> None:
        """Note that all came of what a sender had of a study; it makes good what was lost before the time `begun`."""
        with self._lock:
            study = self._open.get(uid)
            if study is not None:
                study.whole = max(study.whole, begun)
                if study.cut is not None and study.cut < begun:
                    study.cut = None

    def drop(self, uid: str) -> None:
        """Delete what has come of a study that is not complete: it will be fetched again."""
        with self._lock:
            study = self._open.pop(uid, None)
        if study is not None:
            self.spool.discard(study.arrival)

    def close_complete(self) -> None:
        """Make jobs of the studies to which no object has come for ``--study-timeout`` seconds.

        Those that were cut off, or whose sender may be, wait for ``--incomplete-timeout`` seconds.
        """
        under_way = self.under_way()
        now, limits = time.monotonic(), self.limits
        with self._lock:
            doubtful = {uid for uid, study in self._open.items() if study.cut is not None or uid in under_way}
            waits = {uid: limits.incomplete_timeout if uid in doubtful else limits.study_timeout for uid in self._open}
            complete = [uid for uid, study in self._open.items() if now - study.last >= waits[uid]]
        for uid in complete:
            if uid in doubtful:
                text = "study %s: may be incomplete, for it was cut off or an object was refused; run as it is"
                _log.warning(text, uid)
            self.close(uid)

    def close(self, uid: str) -> StoredJob | None:
        """Make a job of a study; None if everything in it has been in a job before.

        Objects of the study that came earlier, and still lie here, belong to the job: the best series is chosen from
        all of them.

        Raises:
            InputError, OSError: The job cannot be written. The study stays open.
        """
        with self._lock:
            study = self._open.pop(uid, None)
        if study is None:  # nothing in it was worth keeping
            return None
        try:
            return self._job_of(uid, study)
        except (InputError, OSError):
            with self._lock:
                self._open.setdefault(uid, study)  # if there is another one by now, they meet after the next start
            raise

    def _job_of(self, uid: str, study: _Study) -> StoredJob | None:
        folder = study.folder(uid)
        names = {file.name for file in folder.iterdir()}
        if not names:  # the process was killed before the first object
            self.spool.discard(study.arrival)
            return None
        for job in self.spool.jobs(DICOM):
            if job.details.get("study") != uid:
                continue
            earlier = {file.name: file for file in (job.files / uid).glob("*.dcm")}
            if job.state in (WAITING, RUNNING, DONE) and is_answered(job) and names <= set(earlier):
                _log.info("study %s: nothing new in %d objects, which are not run again", uid, len(names))
                self.spool.discard(study.arrival)
                return None
            if job.state == FAILED:
                earlier = _not_replaced(earlier, names)
            for name in set(earlier) - names:
                _link(earlier[name], folder / name)
            names |= set(earlier)
        job = self.spool.accept(study.arrival, self._options, {"study": uid})
        _log.info("study %s: complete with %d objects, queued", uid, len(names))
        return job

    def _set_aside(self, path: Path, reason: str) -> None:
        place = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=self._aside))
        path.replace(place / "object.dcm")
        write_text(place / "reason.txt", f"{reason}\n")
        _log.warning("%s; it was set aside in aside/%s", reason, place.name)

    def tidy(self) -> None:
        """Delete what was set aside before ``--keep-hours``, and measure the folder."""
        until = time.time() - 3600 * self.limits.keep_hours
        for place in self._aside.iterdir():
            if place.stat().st_mtime < until:
                shutil.rmtree(place, ignore_errors=True)
        self._n_bytes = _size(self.spool.folder)


def study_of(file: BytesIO) -> str:
    """The Study Instance UID of the bytes of a DICOM file, which may be cut off; empty if it cannot be read."""
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
        return str(header.StudyInstanceUID)
    except Exception:  # whatever damage does to the parser
        return ""


def _look_at(path: Path, instance: str) -> tuple[str, bool]:
    """The Study Instance UID of a file, and whether it may be part of a scan.

    Raises:
        BrokenError: As `Intake.store`.
    """
    try:
        header = read_header(path, _TAGS)
    except InputError:
        raise BrokenError("an object that was received is damaged: its header cannot be read") from None
    study, own = text(header, "StudyInstanceUID"), text(header, "SOPInstanceUID")
    if not (_is_uid(study) and _is_uid(own)):
        raise BrokenError("an object that was received is damaged: it has no valid Study or SOP Instance UID")
    if instance != own:
        raise BrokenError(f"an object that was received is {own}, but was sent as {one_line(instance[:64])}", True)
    return study, number(header, "Rows") is not None and text(header, "Manufacturer") != MANUFACTURER


def _not_replaced(earlier: dict[str, Path], names: set[str]) -> dict[str, Path]:
    """The files of a failed job but those of series that have come again: what these lack now may be what was damaged.

    A series has come again if most of it has: single objects replace, or complete, what is there.
    """
    series: dict[str, list[str]] = {}
    for name, file in earlier.items():
        with suppress(InputError):  # damaged, or deleted meanwhile
            series.setdefault(text(read_header(file, ("SeriesInstanceUID",)), "SeriesInstanceUID"), []).append(name)
    kept = [each for each in series.values() if 2 * len(names.intersection(each)) <= len(each)]
    return {name: earlier[name] for each in kept for name in each}


def _link(file: Path, name: Path) -> None:
    """A file under another name, without its bytes once more where the file system can do that."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _size(folder: Path) -> int:
    n_bytes = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # it has moved on
            n_bytes += file.lstat().st_size if file.is_file() else 0
    return n_bytes
