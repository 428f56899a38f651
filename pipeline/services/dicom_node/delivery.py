"""`Delivery`: sends the results of ended jobs, again and again until they have arrived.

How far it is stands in the details of each job, so a restart goes on where it was.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.dicom_node.destinations import Destination, NotSentError
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits
from tumorlens.pipeline.services.jobs import DONE, FAILED, internal_error
from tumorlens.pipeline.services.spool import DICOM, Spool, StoredJob

OPEN, SENT, KEPT, GIVEN_UP, NOTHING = "open", "sent", "kept", "given up", "nothing"
_SENT_FILES = ("mask.dcm", "measurements.dcm", "overlay.dcm")  # a report refers to its mask, so the mask comes first
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 3600.0
_LOOK_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """How far the delivery of a job is: its state, failed attempts so far, and the time of the next one.

    What was given up has the time of that instead.
    """

    state: str = OPEN
    attempts: int = 0
    next: float = 0.0


class Delivery:
    """The thread that sends."""

    def __init__(self, spool: Spool, destination: Destination | None, limits: NodeLimits) -> None:
        self._spool, self._destination, self._limits = spool, destination, limits
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="delivery")

    def start(self) -> None:
        """Begin, with what an earlier process has left."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the file that is on its way."""
        self._closing.set()
        with self._spool.changed:
            self._spool.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                for job in reversed(self._ended()):  # the oldest first
                    if self._closing.is_set():
                        return
                    try:
                        self._look_at(job)
                    except InputError:
                        raise
                    except Exception as error:  # it must not keep the others
                        internal_error(error, "a result")
            except InputError as error:  # the disk is full; it may have room again
                _log.error("%s", error)
            with self._spool.changed:
                if not self._closing.is_set():
                    self._spool.changed.wait(_LOOK_S)

    def _ended(self) -> list[StoredJob]:
        return [job for state in (DONE, FAILED) for job in self._spool.jobs(DICOM, state)]

    def _look_at(self, job: StoredJob) -> None:
        state = state_of(job)
        if state.state == OPEN and state.next <= time.time():
            self._note(job, self._deliver(job, state))
        elif state.state != OPEN and max(job.ended or 0, state.next) < time.time() - 3600 * self._limits.keep_hours:
            self._spool.delete(job.id)

    def _deliver(self, job: StoredJob, state: _State) -> _State:
        """Send the results of a job; returns how far it is then."""
        study = job.details["study"]
        if job.state == FAILED:
            _log.warning("study %s: set aside in jobs/%s: %s", study, job.folder.name, job.error)
            return _State(NOTHING)
        if state.attempts == 0:
            self._say(job)
        files = self._files(job)
        if not files:
            return _State(NOTHING)
        if self._destination is None:
            _log.info("study %s: results lie in jobs/%s/results", study, job.folder.name)
            return _State(KEPT)
        names = ", ".join(file.name for file in files)
        try:
            self._destination.send(files)
        except NotSentError as error:
            reason = str(error)
        except Exception as error:  # of a file that is gone, or of a fault of ours
            reason = f"internal error ({type(error).__name__})"
        else:
            _log.info("study %s: sent %s to %s", study, names, self._destination)
            return _State(SENT)
        if time.time() - (job.ended or 0) > 3600 * self._limits.retry_hours:
            text = "study %s: %s not sent to %s: %s; given up, the results lie in jobs/%s/results"
            _log.error(text, study, names, self._destination, reason, job.folder.name)
            return _State(GIVEN_UP, next=time.time())
        pause = min(_FIRST_PAUSE_S * 2**state.attempts, _LONGEST_PAUSE_S)
        text = "study %s: %s not sent to %s: %s; next attempt in %.0f s"
        _log.warning(text, study, names, self._destination, reason, pause)
        return _State(OPEN, state.attempts + 1, time.time() + pause)

    def _say(self, job: StoredJob) -> None:
        for scan in job.scans:
            if scan["error"]:
                _log.warning("study %s: %s", job.details["study"], scan["error"])  # it names the scan
            else:
                _log.info("study %s: %s: %s", job.details["study"], scan["name"], scan["label"])

    def _files(self, job: StoredJob) -> list[Path]:
        """The files to send; none of a scan whose results an earlier job has."""
        files = []
        for scan in job.scans:
            if scan["error"]:
                continue
            here = [job.results / scan["folder"] / name for name in _SENT_FILES if name in scan["files"]]
            if not here:
                why = _review(job.results / scan["folder"])
                _log.info("study %s: %s: there is nothing to send: %s", job.details["study"], scan["name"], why)
            elif self._is_known(job, scan):
                _log.info("study %s: %s was answered before, nothing is sent", job.details["study"], scan["name"])
            else:
                files += here
        return files

    def _is_known(self, job: StoredJob, scan: dict[str, Any]) -> bool:
        """Whether an earlier job has the result of the very same files."""
        return any(
            other.accepted < job.accepted
            and state_of(other).state in (OPEN, SENT)
            and any(each["source_sha256"] == scan["source_sha256"] and not each["error"] for each in other.scans)
            for other in self._spool.jobs(DICOM, DONE)
        )

    def _note(self, job: StoredJob, state: _State) -> None:
        details = {**job.details, "delivery": vars(state)}
        self._spool.set_details(job.id, details)


def _review(folder: Path) -> str:
    """The remarks in a result: among them, why it has no DICOM files."""
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return "; ".join(str(remark) for remark in content["review"])
    except (OSError, ValueError, KeyError, TypeError):  # no other attempt would find more
        return "its result.json cannot be read"


def is_answered(job: StoredJob) -> bool:
    """Whether the results of a job have been sent, will be, or are none."""
    return state_of(job).state not in (KEPT, GIVEN_UP)


def state_of(job: StoredJob) -> _State:
    """How far the delivery of a job is."""
    return _State(**job.details.get("delivery", {}))
