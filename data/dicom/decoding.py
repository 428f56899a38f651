"""Stored pixel values of a DICOM file, from any transfer syntax that a decoder is installed for.

Compressed pixels are decoded in a worker process (see `data.isolation`): the decoders are native, and some damaged
files crash them. Uncompressed, deflated and RLE pixels are read here, by pydicom's own Python and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.headers import number
from tumorlens.data.errors import InputError
from tumorlens.data.isolation import isolated, prepare

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# 12-bit JPEG: gdcm gives wrong values, and pydicom does not use it any more.
_HINTS = {"1.2.840.10008.1.2.4.51": " (pip install pylibjpeg-libjpeg adds a decoder, under the GPL)"}
_COMPRESSED = b"1.2.840.10008.1.2.4."  # how the transfer syntaxes of all native decoders begin
_AT_ONCE = 32 * 2**20  # bytes of decoded frames in one call of a worker


def stored_frames(ds: Dataset, indices: list[int]) -> list[NDArray[Any]]:
    """Stored pixel values ``(rows, columns)`` of some frames: the bits that the header says are stored, no others.

    Raises:
        InputError: The pixels are missing or damaged, or no decoder is installed. The message names the file.
    """
    from pydicom.pixels import iter_pixels, pixel_array
    from pydicom.uid import UID

    if "PixelData" not in ds:
        raise InputError(f"{_name(ds)}: the file has no pixel data")
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    try:
        if not syntax:  # a bare data set of an old archive
            ds.file_meta.TransferSyntaxUID = _bare_syntax(ds)
        if _needs_decoder(syntax):
            return list(_decoded(ds, UID(str(syntax)), indices))
        if int(number(ds, "NumberOfFrames") or 1) == 1:
            return [pixel_array(ds)]
        return list(iter_pixels(ds, indices=indices))
    except InputError as error:
        raise InputError(f"{_name(ds)}: {error}") from None
    except Exception as error:  # every codec raises its own kinds
        uid = UID(str(syntax or ""))
        standard = uid.is_transfer_syntax and not uid.is_private
        if not standard or isinstance(error, (NotImplementedError, RuntimeError)):
            name = uid.name if standard else str(uid)
            hint = _HINTS.get(str(uid), "")
            raise InputError(f"{_name(ds)}: pixels in the transfer syntax {name} cannot be decoded{hint}") from None
        raise InputError(f"{_name(ds)}: the pixel data are damaged or cut off; delete or replace this file") from None


def prepare_decoders(head: bytes) -> None:
    """Start a worker process in the background if a DICOM file looks compressed by its first bytes.

    That is quicker than to read its header, for which pydicom must be loaded, which the worker does meanwhile.
    """
    if _COMPRESSED in head:
        prepare(load_decoders)


def load_decoders() -> None:
    """Import all that `decode` needs."""
    import pydicom.pixels  # noqa: F401


def _needs_decoder(syntax: Any) -> bool:
    """Whether pixels in a transfer syntax are for a native decoder."""
    from pydicom.uid import UID, RLELossless

    uid = UID(str(syntax or ""))
    standard = uid.is_transfer_syntax and not uid.is_private
    return standard and uid.is_encapsulated and uid != RLELossless


def _decoded(ds: Dataset, syntax: str, indices: list[int]) -> Iterator[NDArray[Any]]:
    """Frames from worker processes, which get the pixels and what describes them, and no other part of the header."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels import as_pixel_options

    options = as_pixel_options(ds)
    clip = _is_lossy(syntax) and not _has_overlay_bits(ds)
    n_frames = int(options["number_of_frames"])
    if n_frames == 1:
        yield from isolated(decode, syntax, options, ds.PixelData, clip, size=len(ds.PixelData))
        return
    frames = list(
        generate_frames(ds.PixelData, number_of_frames=n_frames, extended_offsets=options.pop("extended_offsets", None))
    )
    frame_bytes = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.BitsAllocated) // 8
    count = max(1, _AT_ONCE // max(1, frame_bytes))
    for first in range(0, len(indices), count):
        group = [frames[index] for index in indices[first : first + count]]
        pixels = encapsulate(group)
        yield from isolated(decode, syntax, {**options, "number_of_frames": len(group)}, pixels, clip, size=len(pixels))


def decode(syntax: str, options: dict[str, Any], pixels: bytes, clip: bool) -> tuple[NDArray[Any], ...]:
    """Every frame of compressed pixels. This runs in a worker process.

    Args:
        syntax: The transfer syntax.
        options: The elements that describe the pixels, as pydicom's decoders want them.
        pixels: The value of PixelData.
        clip: Whether values that need more bits than are stored become the nearest that does not.
    """
    from pydicom.pixels import get_decoder

    decoder: Any = get_decoder(syntax)
    n_frames = options["number_of_frames"]
    if n_frames == 1:
        frames = [decoder.as_array(pixels, **options)[0]]
    else:
        frames = [frame for frame, _ in decoder.iter_array(pixels, indices=range(n_frames), **options)]
    return tuple(_stored_bits(frame, options["bits_stored"], clip) for frame in frames)


def _stored_bits(frame: NDArray[Any], bits: int, clip: bool) -> NDArray[Any]:
    """The values without the bits above those that are stored, in which old files keep overlays.

    pydicom does this for other syntaxes, but takes JPEG 2000 and JPEG-LS at the precision of their own header.
    """
    unused = 8 * frame.dtype.itemsize - bits
    if not unused or frame.dtype.kind not in "iu":
        return frame
    if clip:  # a lossy codec overshoots: without its highest bit, the brightest value would turn dark
        limits = np.iinfo(frame.dtype)
        return np.clip(frame, limits.min >> unused, limits.max >> unused)
    return frame << unused >> unused


def _is_lossy(syntax: str) -> bool:
    from pydicom.uid import HTJ2K, JPEG2000, JPEGLSNearLossless

    return syntax in (JPEG2000, JPEGLSNearLossless, HTJ2K)


def _has_overlay_bits(ds: Dataset) -> bool:
    """Whether the header says that the bits above the stored ones hold an overlay (OverlayBitPosition, retired)."""
    positions = (ds.get((0x6000 + group, 0x0102)) for group in range(0, 0x20, 2))
    return any(position is not None and position.value for position in positions)


def _bare_syntax(ds: Dataset) -> Any:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _name(ds: Dataset) -> str:
    return Path(str(getattr(ds, "filename", "") or "a file")).name
