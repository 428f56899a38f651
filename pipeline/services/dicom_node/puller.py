"""`Puller`: fetches studies from an archive, for those who cannot open a port."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tumorlens.data.errors import InputError
from tumorlens.data.files import flush, whole_file
from tumorlens.pipeline.services.dicom_node.archive import Archive
from tumorlens.pipeline.services.dicom_node.intake import BrokenError, Intake
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits
from tumorlens.pipeline.services.jobs import FAILED
from tumorlens.pipeline.services.spool import DICOM

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 3600.0
_KEEP_S = 7 * 86400  # after the days in which studies are looked for
_log = logging.getLogger(__name__)


@dataclass
class _Memory:
    """What was fetched, and what is to be: on the disk, so that a restart goes on where it was.

    Attributes:
        last: Number of Orthanc's last change that was looked at; -1 before the first look.
        seen: Study Instance UID -> hash of its series as they were fetched, and when.
        to_do: Study Instance UID -> failed attempts, time of the next one, and time of the first.
    """

    last: int = -1
    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    to_do: dict[str, tuple[int, float, float]] = field(default_factory=dict)


class Puller:
    """Looks for new studies whenever `poll` is called."""

    def __init__(self, intake: Intake, archive: Archive, is_orthanc: bool, days: int, limits: NodeLimits) -> None:
        self._intake, self._archive, self._is_orthanc = intake, archive, is_orthanc
        self._days, self._limits = days, limits
        self._file = intake.spool.folder / "fetched.json"
        self._memory = _remembered(self._file, archive.url)
        self._problem = ""
        self._growing: dict[str, tuple[str, float]] = {}  # as they were at the last look, and since when

    def poll(self) -> None:
        """Look for new studies, and fetch them. What fails is logged, and tried again later."""
        try:
            found = self._stable() if self._is_orthanc else self._quiet()
        except Exception as error:
            found, problem = [], str(error) if isinstance(error, InputError) else self._archive.problem(error)
            if problem != self._problem:  # once, not at every look
                _log.warning("%s: no studies can be looked for: %s; tried again and again", self._archive, problem)
            self._problem = problem
        else:
            self._problem = ""
        now = time.time()
        for study in found:
            self._memory.to_do.setdefault(study, (0, 0.0, now))
        self._save()
        for study, (attempts, next_time, first) in list(self._memory.to_do.items()):
            if next_time > time.time():
                continue
            problem = self._fetch(study)
            if not problem:
                del self._memory.to_do[study]
            elif time.time() - first > 3600 * self._limits.retry_hours:
                _log.error("study %s: not fetched: %s; given up", study, problem)
                del self._memory.to_do[study]
            else:
                pause = min(_FIRST_PAUSE_S * 2**attempts, _LONGEST_PAUSE_S)
                _log.warning("study %s: not fetched: %s; next attempt in %.0f s", study, problem, pause)
                self._memory.to_do[study] = (attempts + 1, time.time() + pause, first)
            self._save()

    def _stable(self) -> list[str]:
        """The studies that Orthanc calls stable since the last look; those before the first look are left alone."""
        if self._memory.last < 0:
            self._memory.last = self._archive.last_change()
            return []
        states: dict[str, str] = {}  # of the newest job of each study
        for job in self._intake.spool.jobs(DICOM):
            states.setdefault(job.details["study"], job.state)
        # What failed is fetched again: somebody may have replaced an object, which no number of objects shows.
        self._memory.seen = {study: seen for study, seen in self._memory.seen.items() if states.get(study) != FAILED}
        studies: dict[str, None] = {}
        last, done = self._memory.last, False
        while not done:
            some, last, done = self._archive.stable_studies(last)
            studies |= dict.fromkeys(some)
        self._memory.last = last  # not before all are known: what comes after it is asked for next
        return list(studies)

    def _quiet(self) -> list[str]:
        """The studies of the last days whose series have been the same for ``--study-timeout`` seconds."""
        now = time.time()
        quiet = []
        there = self._archive.studies(self._days)
        for study in there:
            mark = _mark(self._archive.series(study))
            if self._memory.seen.get(study, ("", 0.0))[0] == mark:
                continue
            if self._growing.get(study, ("", 0.0))[0] != mark:
                self._growing[study] = (mark, now)
            elif now - self._growing[study][1] >= self._limits.study_timeout:
                quiet.append(study)
        self._growing = {study: self._growing[study] for study in there if study in self._growing}
        return quiet

    def _fetch(self, study: str) -> str:
        """Make a job of a study, unless its series are those that were fetched before; returns what went wrong."""
        from requests import RequestException

        try:
            series = self._archive.series(study)
            mark = _mark(series)
            if not series or self._memory.seen.get(study, ("", 0.0))[0] == mark:
                return ""
            with self._intake.new_folder() as folder:  # a study that comes in part must not be run
                files = self._download(study, series, Path(folder))
                try:
                    for file, instance in files.items():
                        with suppress(BrokenError):  # it is set aside, and that is logged
                            self._intake.store(file.read_bytes(), instance)
                except BaseException:
                    self._intake.drop(study)
                    raise
                self._intake.close(study)
            self._memory.seen[study] = (mark, time.time())
        except RequestException as error:
            return self._archive.problem(error)
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"it cannot be written ({error.strerror})"
        except Exception as error:  # of the parser; its text may quote a header, and so a patient
            return f"it is damaged ({type(error).__name__})"
        return ""

    def _download(self, study: str, series: Iterable[str], folder: Path) -> dict[Path, str]:
        """The files of some series -> what the archive calls their SOP Instance UIDs. These name no file: they may hold
        anything."""
        files: dict[Path, str] = {}
        n_bytes = 0
        for uid in series:
            for content, instance in self._archive.objects(study, uid):
                if len(content) > self._limits.object_bytes:
                    size = self._limits.object_mb
                    _log.warning("study %s: an object of more than %d MB was left out (--object-mb)", study, size)
                    continue
                n_bytes += len(content)
                self._intake.check_room(n_bytes)
                file = folder / f"{len(files)}.dcm"
                file.write_bytes(content)
                files[file] = instance
        return files

    def _save(self) -> None:
        until = time.time() - _KEEP_S - 86400 * self._days
        self._memory.seen = {study: seen for study, seen in self._memory.seen.items() if seen[1] > until}
        with whole_file(self._file) as part:
            part.write_text(json.dumps({"archive": self._archive.url, **asdict(self._memory)}), encoding="utf-8")
            flush(part)  # else a power failure may leave an empty file


def _mark(series: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(sorted(series.items())).encode()).hexdigest()


def _remembered(file: Path, url: str) -> _Memory:
    """What an earlier process has written; nothing if that was about another archive, or is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("archive") == url:
            return _Memory(**content)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError):
        text = "%s: damaged; studies may be fetched again, but of Orthanc's only those that become stable from now on"
        _log.warning(text, file.name)
    return _Memory()
