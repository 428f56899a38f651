"""`Archive`: the DICOMweb services of a PACS, and what Orthanc knows beyond them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tumorlens.data.errors import InputError, needs

AUTH = "TUMORLENS_DICOMWEB_AUTH"  # USER:PASSWORD, or a token; not on the command line, where `ps` shows it
_TIMEOUT_S = 60.0
_AT_ONCE = 100
_ALL_SYNTAXES = (("application/dicom", "*"),)


class Archive:
    """An archive that is asked by HTTP.

    Attributes:
        url: Its address, without user and password.
        client: Speaks DICOMweb with it.
    """

    def __init__(self, url: str, is_orthanc: bool = False) -> None:
        """Args:
        url: Address of the DICOMweb services; of Orthanc, that of its REST interface.
        is_orthanc: Whether it is Orthanc, whose services lie below ``/dicom-web``.

        Raises:
            InputError: The address is not http or https, or holds a password.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{parts.hostname or url}: give an address such as http://localhost:8042")
        if parts.username or parts.password:
            raise InputError(f"{parts.hostname}: others see passwords in addresses; put USER:PASSWORD into {AUTH}")
        with needs("DICOMweb", "dicom-node"):
            from dicomweb_client.api import DICOMwebClient
            from requests import Session
        for name in ("dicomweb_client", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._session = Session()
        sign_in(self._session)
        address = f"{self.url}/dicom-web" if is_orthanc else self.url
        self.client = DICOMwebClient(address, self._session, timeout=_TIMEOUT_S, permissive_uid=True)
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
        return f"it answers with HTTP {response.status_code}"

    def studies(self, days: int) -> list[str]:
        """Study Instance UIDs of the studies with MR series from today and so many days before."""
        today = date.today()
        filters = {"StudyDate": f"{today - timedelta(days):%Y%m%d}-{today:%Y%m%d}", "ModalitiesInStudy": "MR"}
        return list(_all(partial(self.client.search_for_studies, search_filters=filters), "0020000D"))

    def series(self, study: str) -> dict[str, int]:
        """The MR series of a study: Series Instance UID -> number of images."""
        fields, filters = ["NumberOfSeriesRelatedInstances"], {"Modality": "MR"}
        search = partial(self.client.search_for_series, study, fields=fields, search_filters=filters)
        return {uid: int(_first(series, "00201209") or 0) for uid, series in _all(search, "0020000E").items()}

    def objects(self, study: str, series: str) -> Iterator[tuple[bytes, str]]:
        """The DICOM files of a series, each with its SOP Instance UID."""
        import pydicom

        for dataset in self.client.iter_series(study, series, media_types=_ALL_SYNTAXES):
            with BytesIO() as file:
                pydicom.dcmwrite(file, dataset)
                yield file.getvalue(), str(dataset.SOPInstanceUID)

    def last_change(self) -> int:
        """The number of Orthanc's last change."""
        return int(self._get("changes?last")["Last"])

    def stable_studies(self, since: int) -> tuple[list[str], int, bool]:
        """Studies in which nothing changes any more, of Orthanc's changes after one; the last of these changes, and
        whether it was the last of all."""
        content = self._get(f"changes?since={since}&limit={_AT_ONCE}")
        ids = [change["ID"] for change in content["Changes"] if change["ChangeType"] == "StableStudy"]
        studies = [self._get(f"studies/{id}", missing={}).get("MainDicomTags", {}) for id in dict.fromkeys(ids)]
        uids = [str(tags["StudyInstanceUID"]) for tags in studies if "StudyInstanceUID" in tags]
        return uids, int(content["Last"]), bool(content["Done"])

    def _get(self, path: str, missing: Any = None) -> Any:
        response = self._session.get(f"{self.url}/{path}", timeout=_TIMEOUT_S)
        if response.status_code == 404 and missing is not None:  # deleted meanwhile
            return missing
        response.raise_for_status()
        return response.json()


def sign_in(session: Any) -> None:
    """Let a `requests.Session` send what `AUTH` holds, if it is set."""
    user, colon, password = os.environ.get(AUTH, "").partition(":")
    if colon:
        session.auth = (user, password)
    elif user:
        session.headers["Authorization"] = f"Bearer {user}"


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
