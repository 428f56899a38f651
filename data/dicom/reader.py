"""A DICOM series -> `Scan`: classic single-frame files and enhanced multi-frame ones, any common transfer syntax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.geometry import ImagePlane, VolumeGeometry, has_geometry, missing_elements, stack_planes
from tumorlens.data.dicom.headers import frame_items, number, numbers, read_dataset, read_header, text, value
from tumorlens.data.dicom.pixels import decode
from tumorlens.data.dicom.sequence import body_part_warning, contrast_of, refusal_of, weighting_of
from tumorlens.data.dicom.series import common_folder
from tumorlens.data.dicom.source import DicomSource, volume_from_frames
from tumorlens.data.errors import InputError, printable
from tumorlens.data.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_VOXELS = 2_000_000_000
_MAX_FRAMES = 20_000
_NO_PLACE = "the image has no place in space, so there is no mask in patient coordinates"
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
    planes = [plane for index, ds in enumerate(datasets) for plane in _planes(ds, index)]
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
    frames, windows = decode(datasets, geometry.planes)
    return Scan(
        volume_from_frames(frames),
        affine=geometry.affine,
        spacing_mm=_spacing(geometry),
        path=_common_path(files),
        format="dicom",
        volume=True,
        source_shape=frames.shape[::-1] if geometry.thickness_known else frames.shape[:0:-1],
        frame=geometry.frame,
        notes=geometry.notes,
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
    planes = [plane for index, ds in enumerate(datasets) for plane in _planes(ds, index)]
    if any(has_geometry(plane) for plane in planes):
        stack_planes(planes, frame)
    elif len(planes) > 1:
        raise InputError(_no_volume(planes))


def _usable(files: Sequence[Path], flaws: list[str], read: Callable[[Path], Dataset] = read_dataset) -> list[Dataset]:
    """The data sets of a series without copies and without files that are not scans.

    Args:
        files: Image files of one series.
        flaws: Sentences about the files that were left out are appended here.
        read: Reads a file, with or without its pixels.

    Raises:
        InputError: A file is damaged, or none is a scan.
    """
    identities: set[tuple[str, str]] = set()  # SOP Instance UID and place
    usable: list[Dataset] = []
    refused: list[str] = []
    copies = 0
    for path in files:
        ds = read(path)
        uid, place, refusal = text(ds, "SOPInstanceUID"), text(ds, "ImagePositionPatient"), refusal_of(ds)
        if refusal:
            refused.append(f"{printable(path.name)}: {refusal}")
            continue
        if uid and (uid, place) in identities:
            copies += 1
            continue
        identities.add((uid, place))
        usable.append(ds)
    if not usable:
        raise InputError(refused[0])
    if copies:
        flaws.append(f"{copies} file{'s are copies' if copies > 1 else ' is a copy'} of others and left out")
    uids = Counter(uid for uid, _ in identities if uid)
    shared = sum(count for count in uids.values() if count > 1)
    if shared:
        flaws.append(f"{shared} files share a SOP Instance UID though they differ, so mask.dcm cannot tell them apart")
    if refused:
        flaws.append(f"{len(refused)} of {len(files)} files were left out ({refused[0]})")
    return usable


def _planes(ds: Dataset, index: int) -> list[ImagePlane]:
    """The images in one file."""
    shape = (int(number(ds, "Rows") or 0), int(number(ds, "Columns") or 0))
    n_frames = int(number(ds, "NumberOfFrames") or 1)
    if min(shape) < 1 or not 1 <= n_frames <= _MAX_FRAMES or float(shape[0]) * shape[1] * n_frames > _MAX_VOXELS:
        raise InputError(f"the header gives an impossible size of {shape[0]} x {shape[1]} x {n_frames}")
    per_frame = value(ds, "PerFrameFunctionalGroupsSequence")
    if per_frame is None and n_frames == 1:
        return [_plane((index, 0), shape, [ds], ds)]
    if per_frame is None:  # a multi-frame file that does not describe its frames
        return [ImagePlane((index, f), shape, None, None, None, sort_key=(f,)) for f in range(n_frames)]
    if len(per_frame or ()) < n_frames:
        raise InputError(f"the header describes {len(per_frame or ())} of {n_frames} frames")
    return [_plane((index, f), shape, frame_items(ds, f), ds) for f in range(n_frames)]


def _plane(place: tuple[int, int], shape: tuple[int, int], items: list[Dataset], ds: Dataset) -> ImagePlane:
    """An image.

    Args:
        place: Index of its file, and of the frame in the file.
        shape: Rows, columns.
        items: All that describes it, the nearest first (see `data.dicom.headers.frame_items`).
        ds: Its file.
    """

    def element(name: str, count: int) -> NDArray[np.float64] | None:
        for item in items:
            values = numbers(item, name)
            if values is not None and len(values) == count:
                return np.array(values)
        return None

    spacing = element("PixelSpacing", 2)
    echo = element("EffectiveEchoTime", 1)  # an enhanced file's
    times = {
        "echo time": element("EchoTime", 1) if echo is None else echo,
        "time point": element("TemporalPositionIdentifier", 1),
        "time index": element("TemporalPositionIndex", 1),
        "b-value": element("DiffusionBValue", 1),
        "trigger time": element("TriggerTime", 1),
        "acquisition time": element("AcquisitionTime", 1),
    }
    image_type = next(filter(None, (text(item, "FrameType") for item in items)), text(ds, "ImageType"))
    dimensions = next(filter(None, (numbers(item, "DimensionIndexValues") for item in items)), ())
    return ImagePlane(
        place,
        shape,
        orientation=element("ImageOrientationPatient", 6),
        position=element("ImagePositionPatient", 3),
        spacing=None if spacing is None or spacing.min() <= 0 else (float(spacing[0]), float(spacing[1])),
        thickness=_positive(element("SliceThickness", 1)),
        between=_positive(element("SpacingBetweenSlices", 1)),
        volume_key=(
            *((name, _first(values)) for name, values in times.items()),
            ("image type", image_type),
            ("acquisition", _first(element("AcquisitionNumber", 1))),
        ),
        sort_key=(dimensions, _first(element("InstanceNumber", 1)), text(ds, "SOPInstanceUID"), place[1]),
    )


def _first(values: NDArray[np.float64] | None) -> float:
    return 0.0 if values is None else float(values[0])


def _positive(values: NDArray[np.float64] | None) -> float | None:
    return float(values[0]) if values is not None and values[0] > 0 else None


def _picture(path: Path, datasets: list[Dataset], planes: list[ImagePlane], flaws: list[str]) -> Scan:
    """The only image of a file, without a place in space.

    Raises:
        InputError: There are several images.
    """
    if len(planes) > 1:
        raise InputError(_no_volume(planes))
    frames, windows = decode(datasets, planes)
    return Scan(
        frames[0],
        spacing_mm=planes[0].spacing,
        path=path,
        format="dicom",
        source_shape=frames[0].shape,
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
