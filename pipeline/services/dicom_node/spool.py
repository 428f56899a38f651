"""The node's folder: an object lies here, whole, before its sender hears of success.

``incoming/STUDY/OBJECT.dcm`` holds the objects of studies that may still grow. The objects of a complete study move to
``studies/STUDY/``. ``results/STUDY/`` gets what a run writes, ``aside/`` what cannot be used. Studies and objects are
called by their UIDs, which name no patient.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tumorlens.data.dicom.derived import MANUFACTURER
from tumorlens.data.dicom.headers import number, read_header, text
from tumorlens.data.errors import InputError, one_line
from tumorlens.data.files import PART, remove_stale_parts, write_text
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits

_TAGS = ("StudyInstanceUID", "SOPInstanceUID", "Manufacturer", "Rows")
_is_uid = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*").fullmatch
_log = logging.getLogger(__name__)


class FullError(Exception):
    """There is no room for another object."""


class BrokenError(Exception):
    """An object cannot be read, or is not the one that its sender says. The message is a sentence.

    Attributes:
        is_another: Whether it can be read.
    """

    def __init__(self, message: str, is_another: bool = False) -> None:
        super().__init__(message)
        self.is_another = is_another


class Spool:
    """The folder, and which studies in it may still grow. All methods may be called from any thread."""

    def __init__(self, folder: Path, limits: NodeLimits) -> None:
        self.folder, self.limits = folder, limits
        self._incoming, self._studies, self._results, self._aside = (
            folder / name for name in ("incoming", "studies", "results", "aside")
        )
        for place in (self._incoming, self._studies, self._results, self._aside):
            place.mkdir(parents=True, exist_ok=True)
        remove_stale_parts(self._incoming)
        self._lock = threading.Lock()
        self._n_bytes = _size(folder)
        now = time.monotonic()  # senders that a restart has cut off get their time again
        self._open = {place.name: now for place in self._incoming.iterdir() if place.is_dir()}

    def study_folder(self, study: str) -> Path:
        """The objects of a complete study."""
        return self._studies / study

    def results_folder(self, study: str) -> Path:
        """The output folder of a study's run."""
        return self._results / study

    def check_room(self, n_bytes: int) -> None:
        """Raises:
        FullError: Another object of this size would exceed a limit.
        """
        if self._n_bytes + n_bytes > self.limits.spool_bytes:
            raise FullError(f"the folder would hold more than {self.limits.spool_gb:g} GB (--spool-gb)")
        if shutil.disk_usage(self.folder).free - n_bytes < self.limits.free_bytes:
            raise FullError(f"less than {self.limits.free_gb:g} GB of the disk would stay free (--free-gb)")

    def store(self, content: bytes, instance: str) -> str:
        """Keep an object. When this returns, it outlives a power failure.

        Reports, segmentations and our own results are not kept: nobody runs them.

        Args:
            content: The bytes of the DICOM file.
            instance: The SOP Instance UID that its sender gives.

        Returns:
            Study Instance UID; empty for an object that is not kept.

        Raises:
            FullError: There is no room.
            BrokenError: It cannot be read, or is another object than its sender says. It is set aside.
        """
        n_bytes = len(content)
        self.check_room(n_bytes)
        handle, name = tempfile.mkstemp(prefix=PART, suffix=".dcm", dir=self._incoming)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                study, is_used = _look_at(part, instance)
            except BrokenError as error:
                self._n_bytes += n_bytes
                self.set_aside(part, str(error))
                raise
            if not is_used:
                return ""
            self._n_bytes += n_bytes
            with self._lock:  # the study must not be closed between the two steps
                place = self._incoming / study
                if not place.is_dir():
                    place.mkdir()
                    _sync(self._incoming)
                part.replace(place / f"{instance}.dcm")
                _sync(place)
                if study not in self._open:
                    _log.info("study %s: receiving", study)
                self._open[study] = time.monotonic()
            return study
        finally:
            part.unlink(missing_ok=True)

    def touch(self, study: str) -> None:
        """Note that more of a study is on its way."""
        with self._lock:
            if study in self._open:
                self._open[study] = time.monotonic()

    def complete_studies(self, timeout: float | None = None) -> list[str]:
        """The studies without a new object for so many seconds, by default those of ``--study-timeout``."""
        until = time.monotonic() - (self.limits.study_timeout if timeout is None else timeout)
        with self._lock:
            return [study for study, last in self._open.items() if last <= until]

    def close(self, study: str) -> int:
        """Move the objects of a study that is complete to its folder; returns how many lie there now.

        The study is opened again at the next start, unless `forget` is called: do so once it is queued.
        """
        with self._lock:
            place = self.study_folder(study)
            place.mkdir(exist_ok=True)
            _sync(self._studies)
            for file in (self._incoming / study).iterdir():
                file.replace(place / file.name)
            _sync(place)
        return sum(1 for _ in place.iterdir())

    def forget(self, study: str) -> None:
        """Note that a closed study is queued, unless it has grown since."""
        with self._lock, suppress(OSError):  # there are new objects
            (self._incoming / study).rmdir()
            del self._open[study]

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a file or folder out of the way, with the reason beside it."""
        reason = one_line(reason)
        place = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=self._aside))
        name = path.name if not path.name.startswith(PART) else "object.dcm"
        with suppress(FileNotFoundError):
            path.replace(place / name)
        write_text(place / "reason.txt", f"{reason}\n")
        _log.warning("set aside in aside/%s: %s", place.name, reason)

    def remove(self, study: str) -> None:
        """Delete the objects of a complete study, and its results."""
        for place in (self.study_folder(study), self.results_folder(study)):
            shutil.rmtree(place, ignore_errors=True)
        self._n_bytes = _size(self.folder)

    def tidy(self, needed: Sequence[str]) -> None:
        """Delete what is older than ``--keep-hours``, but no study that is still `needed`."""
        until = time.time() - 3600 * self.limits.keep_hours
        for root in (self._studies, self._results, self._aside):
            for place in root.iterdir():
                if place.name not in needed and place.stat().st_mtime < until:
                    shutil.rmtree(place, ignore_errors=True)
        self._n_bytes = _size(self.folder)


def _look_at(path: Path, instance: str) -> tuple[str, bool]:
    """The Study Instance UID of a file, and whether it may be part of a scan.

    Raises:
        BrokenError: As `Spool.store`.
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


def _size(folder: Path) -> int:
    n_bytes = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # it has moved on
            n_bytes += file.lstat().st_size
    return n_bytes


def _sync(folder: Path) -> None:
    """Let new names in a folder outlive a power failure; Windows cannot, and needs not."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
