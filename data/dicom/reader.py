"""A DICOM series -> `Scan`: classic single-frame files and enhanced multi-frame ones, any common transfer syntax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.dicom.geometry import (
    ImagePlane,
    VolumeGeometry,
    has_geometry,
    missing_elements,
    planes_of,
    stack_planes,
)
from tumorlens.data.dicom.headers import number, read_dataset, read_header, text
from tumorlens.data.dicom.pixels import decode
from tumorlens.data.dicom.sequence import body_part_warning, contrast_of, refusal_of, weighting_of
from tumorlens.data.dicom.series import common_folder
from tumorlens.data.dicom.source import DicomSource, volume_from_frames
from tumorlens.data.errors import InputError, printable
from tumorlens.data.scan import Scan, check_n_voxels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NO_PLACE = "the image has no place in space, so there is no mask in patient coordinates"
_IDENTITY = ("SOPInstanceUID", "ImagePositionPatient", "InstanceNumber", "EchoTime", "AcquisitionTime", "ContentTime")
_IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate", "SeriesDescription", "PatientComments", "ImageComments")


def read_series(files: Sequence[Path], frame: int | None = None) -> Scan:
    """Read the volume that the files of one series make.

    Args:
        files: Image files of one series, in any order.
        frame: The volume of a series that holds several at one place, from 0.

    Returns:
        Voxels ``(i, j, k)`` in the order of `data.dicom.source.volume_from_frames`, with the affine ``(4, 4)`` to RAS
        mm. A single file without geometry gives a picture ``(rows, columns)``.

    Raises:
        InputError: A file is damaged, the pixels cannot be decoded, the series is not MR, or the images do not form a
            volume.
    """
    flaws: list[str] = []
    datasets = _usable(files, flaws)
    planes = _planes(datasets)
    if not planes:
        raise InputError("the series does not hold an image")
    announced = number(datasets[0], "ImagesInAcquisition") or 0
    if announced > len(planes):
        flaws.append(
            f"the header announces {announced:.0f} images and {len(planes)} are here: the series may be cut off"
        )
    part = body_part_warning(datasets[0])
    flaws += [part] if part else []
    if text(datasets[0], "BurnedInAnnotation").upper() == "YES":
        flaws.append("the header says that text is burned into the pixels, perhaps the patient's name")
    if not any(has_geometry(plane) for plane in planes):
        return _picture(files[0], datasets, planes, flaws)
    geometry = stack_planes(planes, frame)
    flaws = [*flaws, *geometry.warnings]
    frames, windows, padding = decode(datasets, geometry.planes)
    return Scan(
        volume_from_frames(frames),
        affine=geometry.affine,
        spacing_mm=_spacing(geometry),
        path=_common_path(files),
        format="dicom",
        volume=True,
        source_shape=frames.shape[::-1] if geometry.thickness_known else frames.shape[:0:-1],
        frame=geometry.frame,
        notes=(*geometry.notes, *padding),
        warnings=tuple(flaws),
        windows=windows,
        dicom=_source(datasets, geometry.planes),
    )


def check_series(files: Sequence[Path], frame: int | None = None) -> None:
    """Check by the headers of a series, without its pixels, that it can be read.

    Raises:
        InputError: As `read_series`.
    """
    datasets = _usable(files, [], read_header)
    planes = _planes(datasets)
    if any(has_geometry(plane) for plane in planes):
        stack_planes(planes, frame)
    elif len(planes) > 1:
        raise InputError(_no_volume(planes))


def _planes(datasets: Sequence[Dataset]) -> list[ImagePlane]:
    """The images of all files.

    Raises:
        InputError: A header contradicts itself. The message names the file.
    """
    planes: list[ImagePlane] = []
    for index, ds in enumerate(datasets):
        try:
            planes += planes_of(ds, index)
        except InputError as error:
            name = Path(str(getattr(ds, "filename", "") or "a file")).name
            raise InputError(f"{name}: {error}; delete or replace this file") from None
    check_n_voxels(sum(math.prod(plane.shape) for plane in planes))
    return planes


def _usable(files: Sequence[Path], flaws: list[str], read: Callable[[Path], Dataset] = read_dataset) -> list[Dataset]:
    """The data sets of a series without copies and without files that are not scans.

    Args:
        files: Image files of one series.
        flaws: Sentences about the files that were left out are appended here.
        read: Reads a file, with or without its pixels.

    Raises:
        InputError: A file is damaged, or none is a scan.
    """
    identities: set[tuple[str, ...]] = set()
    usable: list[Dataset] = []
    refused: list[str] = []
    copies = 0
    for path in files:
        ds = read(path)
        identity, refusal = tuple(text(ds, name) for name in _IDENTITY), refusal_of(ds)
        if refusal:
            refused.append(f"{printable(path.name)}: {refusal}")
            continue
        if identity[0] and identity in identities:
            copies += 1
            continue
        identities.add(identity)
        usable.append(ds)
    if not usable:
        raise InputError(refused[0])
    if copies:
        flaws.append(f"{copies} file{'s are copies' if copies > 1 else ' is a copy'} of others and left out")
    uids = Counter(uid for uid, *_ in identities if uid)
    shared = sum(count for count in uids.values() if count > 1)
    if shared:
        flaws.append(f"{shared} files share a SOP Instance UID though they differ, so mask.dcm cannot tell them apart")
    if refused:
        flaws.append(f"{len(refused)} of {len(files)} files were left out ({refused[0]})")
    return usable


def _picture(path: Path, datasets: list[Dataset], planes: list[ImagePlane], flaws: list[str]) -> Scan:
    """The only image of a file, without a place in space.

    Raises:
        InputError: There are several images.
    """
    if len(planes) > 1:
        raise InputError(_no_volume(planes))
    frames, windows, padding = decode(datasets, planes)
    return Scan(
        frames[0],
        spacing_mm=planes[0].spacing,
        path=path,
        format="dicom",
        source_shape=frames[0].shape,
        notes=padding,
        warnings=(*flaws, _NO_PLACE),
        windows=windows,
        dicom=_source(datasets, planes),
    )


def _no_volume(planes: list[ImagePlane]) -> str:
    missing = ", no ".join(missing_elements(planes[0]))
    return f"none of the {len(planes)} images says where it lies (no {missing}), so they make no volume"


def _spacing(geometry: VolumeGeometry) -> tuple[float, ...]:
    return tuple(float(s) for s in np.linalg.norm(geometry.affine[:3, :3], axis=0))


def _source(datasets: list[Dataset], planes: Sequence[ImagePlane | None]) -> DicomSource:
    """The headers of the files in use, without pixels."""
    new_index: dict[int, int] = {}  # of a file's header among those in use
    for plane in planes:
        if plane is not None:
            new_index.setdefault(plane.place[0], len(new_index))
    places = tuple(None if plane is None else (new_index[plane.place[0]], plane.place[1]) for plane in planes)
    headers = tuple(datasets[index] for index in new_index)
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
    return files[0] if len(files) == 1 else common_folder(files)
