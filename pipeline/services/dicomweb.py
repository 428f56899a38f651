"""DICOMweb servers, and the studies on one of them as the input of a run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tumorlens.data.dicom.headers import header_file
from tumorlens.data.errors import InputError, needs
from tumorlens.pipeline.batch.job import with_origin

AUTH = "TUMORLENS_DICOMWEB_AUTH"  # USER:PASSWORD, or a token; not on the command line, where `ps` shows it
TIMEOUT_S = 60.0
_ALL_SYNTAXES = (("application/dicom", "*"),)
_UID = r"[\w-][\w.-]{0,63}"  # also of those who break the standard, but never a way out of a folder
_QUERY = re.compile(
    r"dicomweb\+(?P<address>https?://((?!/studies/)[^?#])+?)"
    rf"(/studies(/(?P<study>{_UID})(/series/(?P<series>{_UID}))?)?)?/?(\?(?P<filters>[^#]*))?",
    re.ASCII,
)
# By these every server can search for studies (PS3.18 table 10.6.1-2); it may ignore others, and give all that it has.
_KEYS = (
    "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "PatientName",
    "PatientID", "StudyInstanceUID", "StudyID",
)  # fmt: skip


class Server:
    """A DICOMweb server.

    Attributes:
        url: Its address, without user and password.
        session: Sends the requests.
        client: Speaks DICOMweb with it.
    """

    def __init__(
        self,
        url: str,
        extra: str,
        below: str = "",
        timeout: float | tuple[float, float] = TIMEOUT_S,
        signs_in: bool = True,
    ) -> None:
        """Args:
        url: Address of the DICOMweb services.
        extra: What an installation without dicomweb-client lacks.
        below: The part of the address that `url` does not have.
        timeout: Seconds to connect, and between two packets.
        signs_in: Whether the server gets what `AUTH` holds.

        Raises:
            InputError: The address is not http or https, or holds a password.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # brackets that are no IPv6 address
            raise InputError("this is not an address such as http://localhost:8042") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            named = f"{parts.hostname}: " if parts.hostname else ""  # not the address, which may hold a password
            raise InputError(f"{named}give an address such as http://localhost:8042")
        if parts.username or parts.password:
            raise InputError(f"{parts.hostname}: others see passwords in addresses; put USER:PASSWORD into {AUTH}")
        with needs("DICOMweb", extra):
            from dicomweb_client.api import DICOMwebClient
            from requests import Session
        for name in ("dicomweb_client", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self.session = Session()
        user, colon, password = os.environ.get(AUTH, "").partition(":")
        if signs_in and colon:
            self.session.auth = (user, password)
        elif signs_in and user:
            self.session.headers["Authorization"] = f"Bearer {user}"
        self.client = DICOMwebClient(self.url + below, self.session, timeout=timeout, permissive_uid=True)
        self.client.set_http_retry_params(retry=False)

    def __str__(self) -> str:
        return self.url

    def problem(self, error: Exception) -> str:
        """Why a request failed, in words without the request: addresses may hold more than they should."""
        from requests import ConnectionError, JSONDecodeError, Timeout

        if isinstance(error, ConnectionError | Timeout):
            return "it does not answer" if isinstance(error, Timeout) else "it cannot be reached"
        response = getattr(error, "response", None)
        if response is None or isinstance(error, JSONDecodeError):
            return f"its answer cannot be read ({type(error).__name__})"
        denied = f", it denies access; check {AUTH}" if response.status_code in (401, 403) else ""
        return f"it answers with HTTP {response.status_code}{denied}"

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn what goes wrong between us and the server into an `InputError`, which begins with `action`."""
        from requests import RequestException

        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, RequestException):  # of this machine's disk
                raise
            raise InputError(f"{action}: {self.problem(error)}") from None

    def search(self, query: str) -> list[str]:
        """Study Instance UIDs of the studies that match ``KEY=VALUE&KEY=VALUE``."""

        def search(offset: int) -> Any:
            # Not by the client, which encodes ``*``: Orthanc 1.10 does not decode it.
            response = self.session.get(
                f"{self.client.base_url}/studies",
                params=f"{query}&offset={offset}",
                headers={"Accept": "application/dicom+json, application/json"},
                timeout=TIMEOUT_S,
            )
            response.raise_for_status()
            return response.json() if response.content else []

        return list(_all(search, "0020000D"))

    def series(self, study: str) -> dict[str, int]:
        """The MR series of a study: Series Instance UID -> number of images."""
        fields, filters = ["NumberOfSeriesRelatedInstances"], {"Modality": "MR"}
        search = partial(self.client.search_for_series, study, fields=fields, search_filters=filters)
        return {uid: int(_first(series, "00201209") or 0) for uid, series in _all(search, "0020000E").items()}

    def objects(self, study: str, series: str | None = None) -> Iterator[tuple[bytes, str]]:
        """The DICOM files of a study or series, each with its SOP Instance UID."""
        import pydicom

        if series is None:
            datasets = self.client.iter_study(study, media_types=_ALL_SYNTAXES)
        else:
            datasets = self.client.iter_series(study, series, media_types=_ALL_SYNTAXES)
        for dataset in datasets:
            with BytesIO() as file:
                pydicom.dcmwrite(file, dataset)
                yield file.getvalue(), str(dataset.SOPInstanceUID)


def _all(search: Callable[..., Any], tag: str) -> dict[str, dict[str, Any]]:
    """What a search finds, page by page: UID -> attributes.

    It ends with a page without anything new: some Orthancs give the first page for every offset.

    Raises:
        ValueError: What the server sends is not DICOM JSON (PS3.18 F), or lacks a UID.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        some = search(offset=len(found))
        if not isinstance(some, dict | list):
            raise ValueError("this is not DICOM JSON")
        page = {_uid(each, tag): each for each in ([some] if isinstance(some, dict) else some)}
        if page.keys() <= found.keys():
            return found
        found |= page


def _uid(attributes: dict[str, Any], tag: str) -> str:
    uid = _first(attributes, tag)
    if not isinstance(uid, str):
        raise ValueError(f"{tag} is missing")
    return uid


def _first(attributes: dict[str, Any], tag: str) -> Any:
    try:
        return (attributes.get(tag, {}).get("Value") or [None])[0]
    except (AttributeError, LookupError, TypeError):
        raise ValueError("this is not DICOM JSON") from None


@dataclass(frozen=True)
class Studies:
    """The studies on a DICOMweb server, whose objects are files called ``STUDY/SERIES/OBJECT.dcm`` by their UIDs.

    All methods raise an `InputError` that names the server where it cannot be used.
    """

    address: str

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens its own connections
        return Studies, (self.address,)

    @cached_property
    def _server(self) -> Server:
        return Server(self.address, "cluster")

    @property
    def place(self) -> str:
        """What URLs of studies on this server begin with."""
        return f"dicomweb+{self.address}"

    def shown(self, name: str) -> str:
        """The URL of a series or file."""
        return with_origin(f"{self.place}/{name}", self.place, self.place)

    def find(self, query: Query) -> list[str]:
        """What the server calls the UIDs of the studies that a query names."""
        with self._server.errors(f"{self.place}: no studies can be looked for"):
            studies = [query.study] if query.study else self._server.search(query.filters)
        if not studies:
            raise InputError(f"{self.place}: no study matches the query")
        return studies

    def series(self, study: str) -> list[str]:
        """``STUDY/SERIES`` of all MR series of a study."""
        with self._server.errors(f"{self.shown(_checked(study))}: its series cannot be looked for"):
            return [f"{study}/{_checked(series)}" for series in self._server.series(study)]

    def headers(self, series: str) -> Iterator[tuple[str, bytes, int]]:
        """Name of each file of ``STUDY/SERIES``, a file with its header, and about how large the whole file is."""
        study, uid = series.split("/")
        with self._server.errors(f"{self.shown(series)}: not fetched"):
            metadata = self._server.client.retrieve_series_metadata(study, uid)
            files: Iterable[tuple[str, bytes, int]]
            try:
                files = [(_first(each, "00080018"), *header_file(each)) for each in metadata]
            except Exception:  # it breaks the standard; so the whole files tell, one by one: they may be large
                files = ((instance, content, 0) for content, instance in self._server.objects(study, uid))
            is_empty = True
            for instance, head, n_pixels in files:
                is_empty = False
                yield f"{series}/{_checked(instance)}.dcm", head, len(head) + n_pixels
            if is_empty:
                raise InputError(f"{self.shown(series)}: not fetched: the server lists no object of it")

    def fetch_all(self, names: Sequence[str], folder: Path) -> None:
        """Write files of the server to a local folder: one request for each series."""
        wanted = set(names)
        for series in dict.fromkeys(name.rpartition("/")[0] for name in names):
            (folder / series).mkdir(parents=True, exist_ok=True)
            with self._server.errors(f"{self.shown(series)}: not fetched"):
                for content, instance in self._server.objects(*series.split("/")):
                    if (name := f"{series}/{instance}.dcm") in wanted:
                        (folder / name).write_bytes(content)
                        wanted.remove(name)
        if wanted:
            n = f"{len(wanted)} of {len(names)} images of the scan"
            raise InputError(f"{self.shown(min(wanted))}: the server does not have it any more ({n})")


def _checked(uid: str) -> str:
    if not re.fullmatch(_UID, uid, re.ASCII):
        raise InputError("an answer of the DICOMweb server holds something else than a UID")
    return uid


@dataclass(frozen=True)
class Query:
    """What a URL selects on a server: the studies that match filters, one study, or one series."""

    study: str | None
    series: str | None
    filters: str


def read_query(url: str) -> tuple[Studies, Query]:
    """The server that a URL names, and what it selects there.

    Raises:
        InputError: The URL cannot be used. The message has nothing of the query, which may name a patient.
    """
    found = _QUERY.fullmatch(url)
    if found is None:
        raise InputError(
            "this is not the URL of a DICOMweb query such as dicomweb+https://HOST/dicom-web?StudyDate=20250101-, "
            "of a study (.../studies/UID) or of a series (.../studies/UID/series/UID)"
        )
    studies = Studies(Server(found["address"], "cluster").url)
    filters = [pair for pair in (found["filters"] or "").split("&") if pair]
    if filters and found["study"]:
        raise InputError(f"{studies.place}: give a query, or the path of a study, not both")
    keys = [_key_of(pair, studies.place) for pair in filters]
    if "ModalitiesInStudy" not in keys:
        filters.append("ModalitiesInStudy=MR")
    return studies, Query(found["study"], found["series"], "&".join(filters))


def _key_of(pair: str, place: str) -> str:
    """The key of ``KEY=VALUE``."""
    key, _, text = pair.partition("=")
    if key not in _KEYS:
        raise InputError(f"{place}: studies are looked for by KEY=VALUE&KEY=VALUE, with the keys {', '.join(_KEYS)}")
    if not text:
        raise InputError(f"{place}: {key} has no value")
    if key == "StudyDate" and not _is_range(text):
        raise InputError(f"{place}: StudyDate is not a date or range such as 20250101, 20250101-20251231 or 20250101-")
    return key


def _is_range(text: str) -> bool:
    """Whether a text is YYYYMMDD or a range of days, one end of which may be open (PS3.4 C.2.2.2.5)."""
    days = text.split("-")
    try:
        moments = [datetime.strptime(day, "%Y%m%d") for day in days if day]
    except ValueError:
        return False
    return len(days) <= 2 and len(moments) > 0 and moments == sorted(moments) and all(len(d) in (0, 8) for d in days)
