"""The patient that a file itself names, as a pseudonym."""

from __future__ import annotations

import hashlib
import re

from tumorlens.data.dicom.headers import text
from tumorlens.data.scan import Scan


def patient_in_file(scan: Scan) -> str:
    """The patient as the file names it, or an empty string.

    A ``cjdata`` file has its set's pseudonym. For DICOM it is a hash of the Patient ID, or of the Study Instance UID
    where the ID has no number. The identifier itself would end up in indexes and in tables of predictions.
    """
    if scan.annotation is not None and scan.annotation.patient:
        return scan.annotation.patient
    if scan.dicom is None:
        return ""
    patient_id = text(scan.dicom.datasets[0], "PatientID")
    study = text(scan.dicom.datasets[0], "StudyInstanceUID")
    key = f"patient {patient_id}" if _tells_patients_apart(patient_id) else f"study {study}"
    return "" if key == "study " else f"dicom-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _tells_patients_apart(patient_id: str) -> bool:
    """Whether a Patient ID can tell patients apart. Programs that remove names write zeros or words (ANONYMOUS,
    REMOVED, N/A) in the place of every ID."""
    return bool(re.search(r"[1-9]", patient_id))
