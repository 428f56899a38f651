"""Studies and series on DICOMweb servers: only on those that the operator has allowed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tumorlens.data.errors import InputError, require
from tumorlens.pipeline.options import UploadLimits
from tumorlens.pipeline.services.dicomweb import Server
from tumorlens.pipeline.services.spool import StoredJob

_UID = r"(?=[0-9.]{1,64}(/|$))[0-9]+(?:\.[0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<base>.+)/studies/(?P<study>{_UID})(/series/(?P<series>{_UID}))?/?"
)  # no `..`, which would lead elsewhere
_TIMEOUT_S = (10, 30)  # to connect; between two packets


@dataclass(frozen=True)
class DicomwebServers:
    """The servers from which studies may be fetched.

    Attributes:
        bases: Their addresses, as ``http://host:8042/dicom-web``. A user and password in one are not shown to anybody.
        limits: Of one study.
    """

    bases: tuple[str, ...]
    limits: UploadLimits

    def __post_init__(self) -> None:
        if self.bases:
            require("--dicomweb", "app", ["dicomweb_client"])
        for base in self.bases:
            parts = urlsplit(base)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError(
                    f"--dicomweb {_without_user(base)}: this is not an address such as http://host:8042/dicom-web"
                )

    def check(self, url: str) -> None:
        """Raises:
        InputError: The URL is not that of a study or series on one of the servers.
        """
        self._parts(url)

    def fetch(self, job: StoredJob, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Get the files of a job that refers to a study, into a folder among its files.

        Args:
            job: Its files lie elsewhere.
            is_wanted: Asked before each object is written; once it says no, this ends.

        Raises:
            InputError: The server does not answer, has no such study, or the study is over the limits.
        """
        base, study, series = self._parts(job.details["dicomweb"])
        folder = job.files / "study"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        parts = urlsplit(base)
        # Of several servers, AUTH would not say whose password it is.
        server = Server(_without_user(base), "app", timeout=_TIMEOUT_S, signs_in=len(self.bases) == 1)
        server.session.max_redirects = 0  # a redirect could lead to a server that is not allowed
        if parts.username:
            server.session.auth = (unquote(parts.username), unquote(parts.password or ""))
        n_bytes = 0
        with server.errors("the DICOMweb server does not give the study"):
            for n, (content, _) in enumerate(server.objects(study, series), start=1):
                if not is_wanted():  # the folder may be that of another try
                    raise InputError("the study is not wanted any more")
                n_bytes += (folder / f"{n}.dcm").write_bytes(content)
                if n_bytes > self.limits.n_bytes:
                    raise InputError(f"the study has more than the {self.limits.upload_mb} MB that are allowed")

    def _parts(self, url: str) -> tuple[str, str, str | None]:
        """The allowed server with its password, the study's UID, and the series' or None."""
        found = _REFERENCE.fullmatch(url)
        if found is None:
            raise InputError(
                "this is not the URL of a study or series, as .../studies/UID or .../studies/UID/series/UID"
            )
        allowed = next((base for base in self.bases if _without_user(base) == found["base"]), None)
        if allowed is None:
            raise InputError("this DICOMweb server is not among those that --dicomweb allows")
        return allowed, found["study"], found["series"]


def _without_user(base: str) -> str:
    parts = urlsplit(base)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
