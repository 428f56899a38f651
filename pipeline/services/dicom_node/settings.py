"""Settings of the DICOM node. Needs neither pynetdicom nor NumPy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tumorlens.data.config import setting
from tumorlens.data.errors import InputError

_MB = 1_000_000
_TITLE = re.compile(r"[ -\[\]-~]{1,16}").fullmatch  # PS3.5 6.2, AE: no backslash, no control character


@dataclass(frozen=True)
class NodeLimits:
    """How much senders may take up, and for how long it is kept."""

    study_timeout: float = setting(60.0, "Seconds without a new object after which a study is complete.", least=0.1)
    incomplete_timeout: float = setting(
        1800.0, "Seconds without a new object after which a study that was cut off is run as it is.", least=0.1
    )
    associations: int = setting(8, "Associations at the same time.", least=1)
    idle_timeout: float = setting(60.0, "Seconds of silence after which an association is ended.", least=1)
    object_mb: int = setting(512, "Megabytes of an object.", least=1)
    spool_gb: float = setting(50.0, "Gigabytes that the folder may hold.", least=0.001)
    free_gb: float = setting(2.0, "Gigabytes of the disk that stay free.", least=0)
    keep_hours: float = setting(
        24.0, "Hours for which received objects, results, and what was set aside are kept.", least=0
    )
    retry_hours: float = setting(72.0, "Hours after which a result that cannot be sent is set aside.", least=0)

    @property
    def object_bytes(self) -> int:
        """The size of the largest object."""
        return self.object_mb * _MB


@dataclass(frozen=True)
class Peer:
    """A DICOM application that receives results."""

    title: str
    host: str
    port: int

    @classmethod
    def from_text(cls, text: str) -> Peer:
        """The peer that ``TITLE@HOST:PORT`` names.

        Raises:
            InputError: The text does not have this form.
        """
        title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")  # IPv6
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"{text!r} is not TITLE@HOST:PORT, such as PACS@192.168.1.5:4242")
        return cls(check_title(title), host, int(port))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def check_title(title: str) -> str:
    """An AE title without the spaces around it.

    Raises:
        InputError: It is not one.
    """
    if not title.strip() or not _TITLE(title.strip()):
        raise InputError(f"{title!r} is not an AE title: 1 to 16 ASCII characters without backslash")
    return title.strip()
