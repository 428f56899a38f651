"""The common parts of all DICOM results of a scan: patient and study, references to the source, the algorithm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.dicom.headers import number
from tumorlens.data.dicom.headers import text as text_of
from tumorlens.data.dicom.source import DicomSource
from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "tumorlens"
RESEARCH_ONLY = "for research only"

# Added to the source's series number times 100, so that viewers list the results next to their source.
SEGMENTATION_SERIES, REPORT_SERIES, OVERLAY_SERIES, REGIONS_SERIES = 1, 2, 3, 4

# Archives file by these names. They are passed on unchanged, even if they are longer than the standard allows.
_FILED_UNDER = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
_FILED_UNDER_IF_GIVEN = ("IssuerOfPatientID",)
_DATES = ("PatientBirthDate", "StudyDate", "StudyTime")
_TEXTS_IF_GIVEN = ("StudyDescription", "DeidentificationMethod")
_CODES = {"PatientSex": ("M", "F", "O"), "PatientIdentityRemoved": ("YES",)}
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_LARGEST_IS = 2**31 - 1


@dataclass(frozen=True)
class Algorithm:
    """A model as DICOM names one (PS3.3 table 10-19, Algorithm Identification Macro).

    Attributes:
        name: Such as ``"tumorlens Res-U-Net (resnet50)"``.
        package_version: Version of the program.
        weights_sha256: SHA-256 of the weights, or empty.
        parameters: Its settings, by name.
    """

    name: str
    package_version: str
    weights_sha256: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Package version and the first 12 digits of the weights' hash."""
        weights = f", weights {self.weights_sha256[:12]}" if self.weights_sha256 else ""
        return self.package_version + weights

    @property
    def serial_number(self) -> str:
        """The Device Serial Number, which the standard requires of equipment: the weights' hash."""
        return self.weights_sha256[:64] or self.package_version


def source_of(scan: Scan) -> DicomSource:
    """The scan's source instances, each with the UIDs that a reference to it needs.

    Raises:
        InputError: The scan was not read from DICOM, or an instance lacks such a UID.
    """
    source = scan.dicom
    if not isinstance(source, DicomSource) or not source.datasets:
        raise InputError("DICOM results can be written for scans from DICOM files only")
    for dataset in source.datasets:
        for name in _REQUIRED:
            if not uid(dataset, name):
                raise InputError(f"the DICOM source has no {name}, so no DICOM result can refer to it")
    return source


def uid(dataset: Dataset, name: str) -> str:
    """A UID without the padding that some writers leave; empty if there is none."""
    return text_of(dataset, name)


def frame_of_reference(source: DicomSource) -> str:
    """Frame of Reference UID of the source.

    The slices of one series share their coordinates, whether or not the header names a frame of reference. If it names
    none, the UID is made from the Series Instance UID, so that all results of a series have the same.

    Raises:
        InputError: The instances lie in different frames of reference.
    """
    from pydicom.uid import generate_uid

    uids = {uid(dataset, "FrameOfReferenceUID") for dataset in source.datasets} - {""}
    if len(uids) > 1:
        raise InputError("the slices of the DICOM source lie in different frames of reference")
    return uids.pop() if uids else str(generate_uid(entropy_srcs=[uid(source.datasets[0], "SeriesInstanceUID")]))


def reference_to(dataset: Dataset) -> Dataset:
    """A header with the UIDs of an instance, without the patient, as a source for highdicom.

    highdicom copies the patient from an object's source, and raises on values that break the standard. It gets none of
    them here; `inherit` writes them afterwards.
    """
    from pydicom.dataset import Dataset

    header = Dataset()
    for name in _REQUIRED:
        setattr(header, name, uid(dataset, name))
    for name in (*_FILED_UNDER, *_DATES, "PatientSex"):
        setattr(header, name, "")
    header.Modality = "MR"
    return header


def reference_item(dataset: Dataset, frame: int | None = None) -> Dataset:
    """An item that refers to an instance, or to one frame of a multi-frame one (PS3.3 table 10-3).

    Args:
        dataset: A source instance.
        frame: From 0; none for all frames.
    """
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
        uid(dataset, "SOPClassUID"),
        uid(dataset, "SOPInstanceUID"),
    )
    if frame is not None and "NumberOfFrames" in dataset:
        item.ReferencedFrameNumber = frame + 1
    return item


def inherit(dataset: Dataset, source: DicomSource) -> None:
    """Write patient and study of the source into an object (Patient and General Study Module, PS3.3 C.7.1.1, C.7.2.1).

    All text becomes UTF-8. Dates and codes that break the standard are left empty. Names and numbers by which archives
    file are passed on unchanged. Free text about the patient is not passed on.
    """
    header = source.datasets[0]
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in _FILED_UNDER:
        _put(dataset, name, text_of(header, name))
    for name in _FILED_UNDER_IF_GIVEN:
        if text_of(header, name):
            _put(dataset, name, text_of(header, name))
    for name in _DATES:
        _put(dataset, name, text_of(header, name) if _is_valid(name, text_of(header, name)) else "")
    for name in _TEXTS_IF_GIVEN:
        if text_of(header, name) and _is_valid(name, text_of(header, name)):
            _put(dataset, name, text_of(header, name))
    for name, allowed in _CODES.items():
        code = text_of(header, name).upper()
        if code in allowed or name == "PatientSex":
            _put(dataset, name, code if code in allowed else "")
    if "PatientIdentityRemoved" in dataset and "DeidentificationMethod" not in dataset:
        _put(dataset, "DeidentificationMethod", "as the source images say")  # which the standard requires then


def series_number(source: DicomSource, offset: int) -> int:
    """The source's Series Number times 100 plus an offset; the offset alone if that is not a valid IS."""
    of_source = number(source.datasets[0], "SeriesNumber")
    result = 100 * int(of_source) + offset if of_source is not None and of_source >= 0 else offset
    return result if result <= _LARGEST_IS else offset


def new_series(source: DicomSource, offset: int) -> dict[str, Any]:
    """Arguments of highdicom's constructors that put an object into a series of its own."""
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": str(generate_uid()),
        "series_number": series_number(source, offset),
        "sop_instance_uid": str(generate_uid()),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "specific_character_set": "ISO_IR 192",
    }


@contextmanager
def highdicom_errors(what: str) -> Iterator[None]:
    """Turn the errors that highdicom and pydicom raise on a strange source into an `InputError`.

    Args:
        what: The object in the making, such as ``"DICOM segmentation"``.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or type(error).__name__
        raise InputError(f"no {what} can be made of this series: {reason}") from error


def save_dicom(path: Path, dataset: Dataset) -> None:
    """Write a DICOM file (PS3.10), whole or not at all."""
    with whole_file(path) as part:
        dataset.save_as(part, enforce_file_format=True)


def _is_valid(name: str, text: str) -> bool:
    from pydicom import config
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import validate_value

    try:
        validate_value(dictionary_VR(name), text, config.RAISE)
    except ValueError:
        return False
    return "\\" not in text


def _put(dataset: Dataset, name: str, text: str) -> None:
    from pydicom import config
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement

    tag = tag_for_keyword(name)
    assert tag is not None
    # Unchecked, because pydicom's warnings quote values that break the standard: no patient's name on the terminal.
    dataset[tag] = DataElement(tag, dictionary_VR(tag), text, validation_mode=config.IGNORE)
