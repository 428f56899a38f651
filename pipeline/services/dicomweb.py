"""DICOMweb servers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tumorlens.data.errors import InputError

AUTH = "TUMORLENS_DICOMWEB_AUTH"  # USER:PASSWORD, or a token; not on the command line, where `ps` shows it
TIMEOUT_S = 60.0
_ALL_SYNTAXES = (("application/dicom", "*"),)


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
            raise InputError(f"{parts.hostname or url}: give an address such as http://localhost:8042")
        if parts.username or parts.password:
            raise InputError(f"{parts.hostname}: others see passwords in addresses; put USER:PASSWORD into {AUTH}")
        try:
            from dicomweb_client.api import DICOMwebClient
            from requests import Session
        except ModuleNotFoundError:
            raise InputError(
                f"DICOMweb needs dicomweb-client; install it with: pip install 'tumorlens[{extra}]'"
            ) from None
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

    def search(self, query: str) -> list[str]:
        """Study Instance UIDs of the studies that match ``KEY=VALUE&KEY=VALUE``."""

        def search(offset: int) -> list[dict[str, Any]]:
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


def _all(search: Callable[..., list[dict[str, Any]]], tag: str) -> dict[str, dict[str, Any]]:
    """What a search finds, page by page: UID -> attributes.

    It ends with a page without anything new: some Orthancs give the first page for every offset.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = {str(_first(each, tag)): each for each in search(offset=len(found))}
        if page.keys() <= found.keys():
            return found
        found |= page


def _first(attributes: dict[str, Any], tag: str) -> Any:
    return (attributes.get(tag, {}).get("Value") or [None])[0]
