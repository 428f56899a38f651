"""Series that may be one volume in pieces: some anonymizers give each slice a Series Instance UID of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.dicom.geometry import (
    ImagePlane,
    are_alike,
    by_position,
    depth_of,
    has_geometry,
    planes_of,
    same_place,
)
from tumorlens.data.dicom.grouping.stacks import volumes_of
from tumorlens.data.dicom.headers import number, read_header, text
from tumorlens.data.dicom.sequence import refusal_of
from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "AcquisitionContrast", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "ContrastBolusUsageSequence", "ScanningSequence", "RepetitionTime", "EchoTime",
    "InversionTime", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "ImageOrientationPatient", "ImagePositionPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "BodyPartExamined", "PatientName", "PatientID", "PatientBirthDate",
    "SpecificCharacterSet",
)  # fmt: skip

# Pieces of one volume agree in these, and in those of the acquisition, which are read only where there may be pieces.
ONE_SERIES = ("Modality", "SeriesNumber", "SeriesDescription")
_ONE_ACQUISITION = (
    "Rows", "Columns", "ImageType", "EchoTime", "EchoNumbers", "RepetitionTime", "InversionTime", "FlipAngle",
    "ContrastBolusAgent", "ScanningSequence", "SequenceName", "ProtocolName",
)  # fmt: skip
_PIECE_TAGS = (
    *TAGS, *_ONE_ACQUISITION, "FrameOfReferenceUID", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SeriesTime", "MRAcquisitionType",
)  # fmt: skip
FEWEST_PIECES = 3  # two slices at any distance are evenly spaced
_EVEN = 0.1  # of the slice distance, which slices of one volume may lie off their place
_ADJOINING = 2.0  # slice distance by thickness; more is hardly ever acquired
AT_ONE_PLACE, OVERLAP = "several lie at one place", "their slices would overlap"
_LARGEST_STEP = 3  # slice distances: up to two slices may be missing in a row
_OVERLAPPING = 0.9  # slice distance by what the header says; less is that of two stacks, one shifted into the other

Key = tuple[str, ...]
Members = list[tuple[Path, "Dataset"]]
Piece = tuple[Key, Members, list[ImagePlane]]


def piece_of(key: Key, members: Members) -> Piece:
    """The files of a series, with all of their headers that may tell pieces of a volume, and the image in each.

    The list of images is empty if a file holds several of them, or cannot be run.
    """
    if any(refusal_of(header) or (number(header, "NumberOfFrames") or 1) > 1 for _, header in members):
        return key, members, []
    try:
        members = [(path, read_header(path, _PIECE_TAGS)) for path, _ in members]
        planes = [plane for index, (_, header) in enumerate(members) for plane in planes_of(header, index)]
    except InputError:  # reading the series says so
        return key, members, []
    return key, members, planes


def acquired_alike(pieces: list[Piece]) -> list[list[Piece]]:
    """Groups of pieces that were acquired in the same way, at one orientation."""
    groups: list[tuple[Key, list[Piece]]] = []
    for piece in pieces:
        acquisition = tuple(text(piece[1][0][1], name) for name in _ONE_ACQUISITION)
        for other, group in groups:
            if acquisition == other and _is_like(piece[2], group[0][2]):
                group.append(piece)
                break
        else:
            groups.append((acquisition, [piece]))
    return [group for _, group in groups]


def _is_like(a: list[ImagePlane], b: list[ImagePlane]) -> bool:
    if not a or not b or has_geometry(a[0]) != has_geometry(b[0]):
        return False
    return not has_geometry(a[0]) or are_alike(a[0], b[0])


def why_not_one(n_pieces: int, headers: list[Dataset], planes: list[ImagePlane]) -> str:
    """Why series are not clearly one volume in pieces; empty if they are."""
    if not all(has_geometry(plane) for plane in planes):
        return "they do not say where they lie"
    if not all(are_alike(plane, planes[0]) for plane in planes):
        return "their orientations differ"
    if len({text(header, "FrameOfReferenceUID") for header in headers}) > 1:
        return "their Frame of Reference UIDs differ"
    normal = planes[0].normal
    ordered = sorted(planes, key=lambda plane: depth_of(plane, normal))
    gaps = np.diff([depth_of(plane, normal) for plane in ordered])
    if gaps.min() < same_place(planes[0]):
        return AT_ONE_PLACE
    distance = float(np.median(gaps[gaps <= 1.5 * gaps.min()]))
    steps = np.rint(gaps / distance)
    positions = np.array([plane.position for plane in ordered])
    indices = np.concatenate([[0], np.cumsum(steps)])
    even = positions[0] + np.outer(indices / indices[-1], positions[-1] - positions[0])
    if max(np.abs(gaps - steps * distance).max(), np.abs(positions - even).max()) > _EVEN * distance:
        return "they are not evenly spaced"
    if steps.max() > _LARGEST_STEP or steps.sum() - len(steps) > len(planes) // 2:
        return "they leave gaps and do not adjoin"
    between, thickness = planes[0].between, planes[0].thickness
    if distance > (between * (1 + _EVEN) if between else _ADJOINING * (thickness or distance)):
        return f"they are {distance:.4g} mm apart and do not adjoin"
    stated = between or thickness or np.inf
    if len(headers) == n_pieces:
        if not (between or thickness or n_pieces >= FEWEST_PIECES):
            return "their thickness is not known"
        is_3d = text(headers[0], "MRAcquisitionType") == "3D"  # whose interpolated slices overlap
        stated = between or (0.0 if is_3d else thickness or 0.0)
    elif len({text(header, "SeriesTime") for header in headers}) > 1:
        return "their times differ"
    return "" if distance >= _OVERLAPPING * stated else OVERLAP


def volumes_of_slices(members: Members) -> list[list[int]]:
    """The slices of each of several volumes that single slices make, as indices; none if nothing tells them apart."""
    try:
        headers = [read_header(path) for path, _ in members]
        volumes, _, _ = volumes_of(by_position([p for i, header in enumerate(headers) for p in planes_of(header, i)]))
    except InputError:
        return []
    return [[image.place[0] for group in volume.places for image in group] for volume in volumes]
