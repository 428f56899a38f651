"""Pixels of a DICOM series: decoded, rescaled, with dark air in every photometric interpretation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.decoding import stored_frames
from tumorlens.data.dicom.geometry import ImagePlane
from tumorlens.data.dicom.headers import frame_items, number, text
from tumorlens.data.errors import InputError
from tumorlens.data.padding import solid_patches

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Window = tuple[float, float] | None  # low and high


def decode(
    datasets: list[Dataset], planes: Sequence[ImagePlane | None]
) -> tuple[NDArray[Any], tuple[Window, ...], tuple[str, ...]]:
    """Decode the pixels of a series, and remove them from the data sets.

    Args:
        datasets: The files.
        planes: The image of each slice; none for a slice that is missing.

    Returns:
        Frames ``(slices, rows, columns)`` with rescaling applied and MONOCHROME1 inverted, in which missing slices and
        padding hold the lowest value; the display window ``(low, high)`` of each slice, in the unit of the frames; and
        a note on the padding if there is any.

    Raises:
        InputError: The pixels are missing or damaged, or no decoder knows their transfer syntax.
    """
    shape = next(plane.shape for plane in planes if plane is not None)
    windows: list[Window] = [None] * len(planes)
    frames: NDArray[Any] | None = None
    padding = np.zeros((len(planes), *shape), bool) if any(_pads(ds) for ds in datasets) else None
    empty = [k for k, plane in enumerate(planes) if plane is None]
    by_file: dict[int, list[tuple[int, int]]] = {}
    for k, plane in enumerate(planes):
        if plane is not None:
            by_file.setdefault(plane.place[0], []).append((plane.place[1], k))
    inverted: list[int] = []
    for index, slices in by_file.items():
        ds = datasets[index]
        if text(ds, "PhotometricInterpretation") == "MONOCHROME1":
            inverted += [k for _, k in slices]
        stored_values = stored_frames(ds, [frame for frame, _ in slices])
        for (frame, k), stored in zip(slices, stored_values, strict=True):
            if stored.shape != shape:
                raise InputError(f"the pixel data are {stored.shape}, the header says {shape}")
            if padding is not None:
                padding[k] = _padded(ds, stored)
            slope, intercept, windows[k] = _values(ds, frame)
            if (slope, intercept) != (1.0, 0.0):
                stored = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
            if frames is None:
                frames = np.zeros((len(planes), *shape), stored.dtype)
            elif frames.dtype != stored.dtype:
                frames = frames.astype(np.result_type(frames, stored))
            frames[k] = stored
        if "PixelData" in ds:
            del ds.PixelData
    assert frames is not None
    for k in inverted:  # a window does not fit inverted values
        windows[k] = None
    notes: tuple[str, ...] = ()
    if padding is not None and padding.any():
        share = f"{padding.mean():.0%} of the scan"
        notes = (f"the header's PixelPaddingValue ({share}) was set to the lowest value of the rest",)
    return _finished(frames, padding, empty, inverted), tuple(windows), notes


def _values(ds: Dataset, frame: int) -> tuple[float, float, Window]:
    """Slope, intercept and display window of a frame."""
    slope = intercept = center = width = None
    for item in frame_items(ds, frame):
        slope = number(item, "RescaleSlope") if slope is None else slope
        intercept = number(item, "RescaleIntercept") if intercept is None else intercept
        center = number(item, "WindowCenter") if center is None else center
        width = number(item, "WindowWidth") if width is None else width
    window = None
    if center is not None and width is not None and width > 1:
        window = (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)  # PS3.3 C.11.2.1.2.1
    return slope or 1.0, (intercept or 0.0), window


def _pads(ds: Dataset) -> bool:
    return number(ds, "PixelPaddingValue") is not None


def _padded(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | bool:
    """Marks the stored values that stand for "outside the image" (PS3.3 C.7.5.1.1.2).

    Amid the other values, where the standard does not allow padding, only patches are: tissue may hold the same value.
    """
    low, limit = number(ds, "PixelPaddingValue"), number(ds, "PixelPaddingRangeLimit")
    if low is None:
        return False
    low = _as_stored(int(low), ds, "BitsAllocated")
    if limit is None:
        low = high = _as_stored(low, ds, "BitsStored")  # the bits above are not decoded
    else:
        low, high = sorted((low, _as_stored(int(limit), ds, "BitsAllocated")))
    padding = (stored >= low) & (stored <= high)
    amid = padding.any() and (stored < low).any() and (stored > high).any()
    return solid_patches(padding) if amid else padding


def _as_stored(value: int, ds: Dataset, bits: str) -> int:
    """The value that the lowest bits of a value stand for: some writers store -2000 as unsigned, 63536."""
    count = int(number(ds, bits) or 16)
    signed = number(ds, "PixelRepresentation") == 1
    value %= 2**count
    return value - 2**count if signed and value >= 2 ** (count - 1) else value


def _finished(
    frames: NDArray[Any], padding: NDArray[np.bool_] | None, empty: list[int], inverted: list[int]
) -> NDArray[Any]:
    """The frames with dark air: MONOCHROME1 inverted, padding and missing slices set to the lowest value."""
    if padding is None and not empty and not inverted:
        return frames
    outside = np.zeros(frames.shape, bool) if padding is None else padding
    outside[empty] = True
    if outside.all():
        return frames
    low, high = frames.min(where=~outside, initial=_top(frames)), frames.max(where=~outside, initial=_bottom(frames))
    if inverted:  # in place: results lie between low and high again, so integers that overflow on the way come back
        with np.errstate(over="ignore"):
            for k in inverted:
                np.subtract(frames.dtype.type(high), frames[k], out=frames[k])
                frames[k] += frames.dtype.type(low)
    frames[outside] = low
    return frames


def _top(frames: NDArray[Any]) -> Any:
    return np.iinfo(frames.dtype).max if frames.dtype.kind in "iu" else np.inf


def _bottom(frames: NDArray[Any]) -> Any:
    return np.iinfo(frames.dtype).min if frames.dtype.kind in "iu" else -np.inf
