"""A DICOM series -> `Scan`: classic single-frame files and enhanced multi-frame ones, any common transfer syntax."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.dicom_geometry import Plane, Stack, has_geometry, stack_planes
from data.dicom_headers import functional_groups, number, numbers, read_dataset, text, value
from data.dicom_kind import body_part_warning, contrast_of, refusal_of, weighting_of
from data.dicom_pixels import decode
from data.dicom_source import DicomSource, volume_from_frames
from data.errors import InputError
from data.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_VOXELS = 2_000_000_000
_NO_PLACE = "the image says nothing of its place in space, so there is no mask in patient coordinates"
_IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate", "SeriesDescription", "PatientComments", "ImageComments")


def read_series(files: Sequence[Path], frame: int | None = None) -> Scan:
    """The volume that the files of one series make; a single file without geometry gives a picture.

    Args:
        files: Image files of one series, in any order.
        frame: Which volume of a series that holds several at one place, from 0.

    Raises:
        InputError: A file is damaged, the pixels cannot be decoded, it is no MR, or the images form no volume.
    """
    datasets, repeated = _without_copies([read_dataset(path) for path in files])
    for path, ds in zip(files, datasets, strict=False):
        refusal = refusal_of(ds)
        if refusal:
            raise InputError(f"{path.name}: {refusal}")
    planes = [plane for index, ds in enumerate(datasets) for plane in _planes(ds, index)]
    if not planes:
        raise InputError("the series holds no image")
    flaws = [f"{repeated} files are copies of others and were left out"] if repeated else []
    part = body_part_warning(datasets[0])
    flaws += [part] if part else []
    if text(datasets[0], "BurnedInAnnotation").upper() == "YES":
        flaws.append("the header says that text is burned into the pixels, perhaps the patient's name")
    if not any(has_geometry(plane) for plane in planes):
        return _picture(datasets, planes, flaws)
    stack = stack_planes(planes, frame)
    flaws = [*flaws, *stack.warnings]
    frames, windows = decode(datasets, stack.planes)
    return Scan(
        volume_from_frames(frames),
        affine=stack.affine,
        spacing_mm=_spacing(stack),
        path=_common_path(files),
        format="dicom",
        volume=True,
        source_shape=frames.shape[::-1],
        frame=stack.frame,
        notes=stack.notes,
        warnings=(*flaws, *_sequence_warnings(datasets[0])),
        windows=windows,
        dicom=_source(datasets, stack.planes),
    )


def _without_copies(datasets: list[Dataset]) -> tuple[list[Dataset], int]:
    """Data sets without those whose SOP Instance UID has come already."""
    seen: set[str] = set()
    kept = []
    for ds in datasets:
        uid = text(ds, "SOPInstanceUID")
        if uid and uid in seen:
            continue
        seen.add(uid)
        kept.append(ds)
    return kept, len(datasets) - len(kept)


def _planes(ds: Dataset, index: int) -> list[Plane]:
    """The images in one file."""
    shape = (int(number(ds, "Rows") or 0), int(number(ds, "Columns") or 0))
    n_frames = int(number(ds, "NumberOfFrames") or 1)
    if min(shape) < 1 or n_frames < 1 or float(shape[0]) * shape[1] * n_frames > _MAX_VOXELS:
        raise InputError(f"the header gives an impossible size of {shape[0]} x {shape[1]} x {n_frames}")
    per_frame = value(ds, "PerFrameFunctionalGroupsSequence")
    if per_frame is None and n_frames == 1:
        return [_plane((index, 0), shape, [ds], ds)]
    if per_frame is None:  # a multi-frame file that says nothing of its frames
        return [Plane((index, f), shape, None, None, None, order=(f,)) for f in range(n_frames)]
    shared = list(value(ds, "SharedFunctionalGroupsSequence") or [])[:1]
    if len(per_frame) < n_frames:
        raise InputError(f"the header describes {len(per_frame)} of {n_frames} frames")
    return [_plane((index, f), shape, functional_groups(per_frame[f], *shared), ds) for f in range(n_frames)]


def _plane(place: tuple[int, int], shape: tuple[int, int], items: list[Dataset], ds: Dataset) -> Plane:
    def ask(name: str, count: int) -> NDArray[np.float64] | None:
        for item in items:
            found = numbers(item, name)
            if found is not None and len(found) == count:
                return np.array(found)
        return None

    spacing = ask("PixelSpacing", 2)
    thickness = ask("SpacingBetweenSlices", 1)
    thickness = ask("SliceThickness", 1) if thickness is None or thickness[0] <= 0 else thickness
    order = [ask(name, 1) for name in ("EchoTime", "TemporalPositionIdentifier", "TemporalPositionIndex")]
    order += [ask("DiffusionBValue", 1), ask("AcquisitionNumber", 1), ask("InstanceNumber", 1)]
    return Plane(
        place,
        shape,
        orientation=ask("ImageOrientationPatient", 6),
        position=ask("ImagePositionPatient", 3),
        spacing=None if spacing is None or spacing.min() <= 0 else (float(spacing[0]), float(spacing[1])),
        thickness=None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        order=(*(0.0 if o is None else float(o[0]) for o in order), text(ds, "SOPInstanceUID"), place[1]),
    )


def _picture(datasets: list[Dataset], planes: list[Plane], flaws: list[str]) -> Scan:
    """The one image of a file that says nothing of space."""
    if len(planes) > 1:
        raise InputError(
            f"none of the {len(planes)} images says where it lies (no Image Position, Image Orientation or Pixel "
            "Spacing), so they make no volume"
        )
    frames, windows = decode(datasets, planes)
    spacing = planes[0].spacing
    return Scan(
        frames[0],
        spacing_mm=spacing,
        format="dicom",
        source_shape=frames[0].shape,
        warnings=(*flaws, _NO_PLACE, *_sequence_warnings(datasets[0])),
        windows=windows,
        dicom=_source(datasets, planes),
    )


def _spacing(stack: Stack) -> tuple[float, ...]:
    return tuple(float(s) for s in np.linalg.norm(stack.affine[:3, :3], axis=0))


def _sequence_warnings(ds: Dataset) -> list[str]:
    """What the models do not know: other weightings, no contrast agent."""
    weighting, contrast = weighting_of(ds), contrast_of(ds)
    if weighting not in (None, "T1"):
        return [f"the header's weighting is {weighting}; the models know T1 after contrast agent"]
    if contrast is None:  # the standard wants the agent in the header whenever one was given
        return ["the header names no contrast agent; the models know tumors in T1 after contrast agent"]
    if not contrast:
        return ["the header says that no contrast agent was given; the models know tumors in T1 after contrast agent"]
    return []


def _source(datasets: list[Dataset], planes: Sequence[Plane | None]) -> DicomSource:
    """The headers of the files in use; pixels are let go."""
    used: dict[int, int] = {}
    for plane in planes:
        if plane is not None:
            used.setdefault(plane.place[0], len(used))
    places = tuple(None if plane is None else (used[plane.place[0]], plane.place[1]) for plane in planes)
    headers = tuple(datasets[index] for index in used)
    ds = headers[0]
    series_number, contrast = number(ds, "SeriesNumber"), contrast_of(ds)
    facts = {
        "series_instance_uid": text(ds, "SeriesInstanceUID"),
        "series_number": None if series_number is None else int(series_number),
        "modality": text(ds, "Modality"),
        "weighting": weighting_of(ds),
        "contrast_agent": contrast,
        "n_files": len(headers),
    }
    identifiers = {name: text(ds, name) for name in _IDENTIFIERS if text(ds, name)}
    return DicomSource(headers, places, facts, identifiers)


def _common_path(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))
