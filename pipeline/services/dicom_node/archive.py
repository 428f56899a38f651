"""`Archive`: the DICOMweb services of a PACS, and what Orthanc knows beyond them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from tumorlens.pipeline.services.dicomweb import TIMEOUT_S, Server

_AT_ONCE = 100


class Archive(Server):
    """An archive that is asked by HTTP."""

    def __init__(self, url: str, is_orthanc: bool = False) -> None:
        """Args:
        url: Address of the DICOMweb services; of Orthanc, that of its REST interface.
        is_orthanc: Whether it is Orthanc, whose services lie below ``/dicom-web``.

        Raises:
            InputError: The address is not http or https, or holds a password.
        """
        super().__init__(url, "dicom-node", "/dicom-web" if is_orthanc else "")

    def studies(self, days: int) -> list[str]:
        """Study Instance UIDs of the studies with MR series from today and so many days before."""
        today = date.today()
        return self.search(f"StudyDate={today - timedelta(days):%Y%m%d}-{today:%Y%m%d}&ModalitiesInStudy=MR")

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
        response = self.session.get(f"{self.url}/{path}", timeout=TIMEOUT_S)
        if response.status_code == 404 and missing is not None:  # deleted meanwhile
            return missing
        response.raise_for_status()
        return response.json()
