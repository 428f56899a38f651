"""The patient that a file itself names, without saying who it is."""

from __future__ import annotations

import hashlib
import re

from tumorlens.data.dicom.headers import text
from tumorlens.data.scan import Scan


def patient_in_file(scan: Scan) -> str:
    """The patient as a file tells it, or empty.

    A ``cjdata`` file has its set's pseudonym. Of DICOM it is a hash of the Patient ID, or of the Study Instance UID
    where the ID has no number: the identifier itself would end in indexes and tables of predictions.
    """
    if scan.annotation is not None and scan.annotation.patient:
        return scan.annotation.patient
    if scan.dicom is None:
        return ""
    number = text(scan.dicom.datasets[0], "PatientID")
    whose = f"patient {number}" if _tells(number) else f"study {text(scan.dicom.datasets[0], 'StudyInstanceUID')}"
    return "" if whose == "study " else f"dicom-{hashlib.sha256(whose.encode()).hexdigest()[:16]}"


def _tells(patient_id: str) -> bool:
    """Whether a Patient ID can tell patients apart: zeros and words alone (ANONYMOUS, REMOVED, N/A) are what programs
    that take names away write in the place of all."""
    return bool(re.search(r"[1-9]", patient_id))
