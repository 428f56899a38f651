"""Stored pixel values of a DICOM file, from any transfer syntax that a decoder is installed for.

Headers are wrong about their pixels: in how many bits are stored and which, and in how many frames there are. Where the
pixels do not show what is right, the file is refused.

Compressed pixels are decoded in a worker process (see `data.workers.isolation`): the decoders are native, and some
damaged files crash them. Uncompressed, deflated and RLE pixels are read here, by pydicom's own Python and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.headers import number
from tumorlens.data.errors import InputError
from tumorlens.data.workers.isolation import isolated, prepare

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# 12-bit JPEG: gdcm gives wrong values, and pydicom does not use it any more.
_HINTS = {"1.2.840.10008.1.2.4.51": " (pip install pylibjpeg-libjpeg adds a decoder, under the GPL)"}
_COMPRESSED = b"1.2.840.10008.1.2.4."  # how the transfer syntaxes of all native decoders begin
_AT_ONCE = 32 * 2**20  # bytes of decoded frames in one call of a worker
_STREAMS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # how a frame of JPEG or JPEG-LS and one of JPEG 2000 begin
_OVERSHOOT = 0.25  # of the range of the stored bits, by which a lossy codec may leave it
_CARRIED = 0.4  # of the places where bits above the stored ones change; more are carries of the values, not an overlay


def stored_frames(ds: Dataset, indices: list[int]) -> list[NDArray[Any]]:
    """Stored pixel values ``(rows, columns)`` of some frames: the bits that the header says are stored, no others.

    Raises:
        InputError: The pixels are missing or damaged, contradict the header, or no decoder is installed. The message
            names the file.
    """
    from pydicom.uid import UID

    if "PixelData" not in ds:
        raise InputError(f"{_name(ds)}: the file has no pixel data")
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    try:
        if not syntax:  # a bare data set of an old archive
            ds.file_meta.TransferSyntaxUID = _bare_syntax(ds)
        _check_count(ds)
        frames = _decoded(ds, UID(str(syntax)), indices) if _needs_decoder(syntax) else _read(ds, indices)
        stored, high = int(ds.BitsStored), number(ds, "HighBit")
        clip = _is_lossy(str(syntax)) and not _has_overlay_bits(ds)
        return [_stored_bits(frame, stored, stored - 1 if high is None else int(high), clip) for frame in frames]
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


def _read(ds: Dataset, indices: list[int]) -> Iterator[NDArray[Any]]:
    """Frames that need no native decoder, with all of their bits.

    Raises:
        InputError: The bytes of big-endian pixels are swapped, as where their VR is OB, which has no byte order.
    """
    from pydicom.pixels import iter_pixels, pixel_array

    if int(number(ds, "NumberOfFrames") or 1) == 1:
        frames = iter([pixel_array(ds, correct_unused_bits=False)])
    else:
        frames = iter_pixels(ds, indices=indices, correct_unused_bits=False)
    for frame in frames:
        if not ds.file_meta.TransferSyntaxUID.is_little_endian and _is_swapped(frame, ds["PixelData"].VR):
            raise InputError("the bytes of the pixels are in another order than the header says; replace this file")
        yield frame


def _is_swapped(frame: NDArray[Any], vr: str) -> bool:
    """Whether a frame is much smoother with swapped bytes. If all low bytes are 0, only the VR can tell."""
    is_smoother = _roughness(frame.byteswap()) < _roughness(frame) / 2
    return is_smoother and (vr == "OB" or bool((frame & 0xFF).any()))


def _roughness(frame: NDArray[Any]) -> int:
    return int(np.abs(np.diff(frame.astype(np.int64))).sum())


def _decoded(ds: Dataset, syntax: str, indices: list[int]) -> Iterator[NDArray[Any]]:
    """Frames from worker processes, which get the pixels and what describes them, and no other part of the header."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.pixels import as_pixel_options

    options = as_pixel_options(ds)
    n_frames = int(options["number_of_frames"])
    if n_frames == 1:
        yield from isolated(decode, syntax, options, ds.PixelData, size=len(ds.PixelData))
        return
    frames = list(
        generate_frames(ds.PixelData, number_of_frames=n_frames, extended_offsets=options.pop("extended_offsets", None))
    )
    frame_bytes = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.BitsAllocated) // 8
    count = max(1, _AT_ONCE // max(1, frame_bytes))
    for first in range(0, len(indices), count):
        group = [frames[index] for index in indices[first : first + count]]
        pixels = encapsulate(group)
        yield from isolated(decode, syntax, {**options, "number_of_frames": len(group)}, pixels, size=len(pixels))


def decode(syntax: str, options: dict[str, Any], pixels: bytes) -> tuple[NDArray[Any], ...]:
    """Every frame of compressed pixels. This runs in a worker process.

    Args:
        syntax: The transfer syntax.
        options: The elements that describe the pixels, as pydicom's decoders want them.
        pixels: The value of PixelData.
    """
    from pydicom.pixels import get_decoder

    decoder: Any = get_decoder(syntax)
    n_frames = options["number_of_frames"]
    if n_frames == 1:
        return (decoder.as_array(pixels, **options)[0],)
    return tuple(frame for frame, _ in decoder.iter_array(pixels, indices=range(n_frames), **options))


def _check_count(ds: Dataset) -> None:
    """Check that the pixel data hold no more than the header says. Too little is damage, which decoding reports.

    Raises:
        InputError: They hold more.
    """
    n_frames = int(number(ds, "NumberOfFrames") or 1)
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        n_there = _encapsulated(ds.PixelData, is_stream=_needs_decoder(syntax))
        if n_there > n_frames:
            raise InputError(f"the pixel data hold {n_there} frames, the header says {n_frames}; replace this file")
        return
    row_bits = int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.BitsAllocated)
    frame_bits = row_bits * int(ds.Rows)
    rest = len(ds.PixelData) - (frame_bits * n_frames + 7) // 8
    if rest >= frame_bits / 8 or (rest >= max(2, row_bits / 8) and any(ds.PixelData[-rest:])):
        raise InputError(
            f"the pixel data hold {rest} bytes more than {n_frames} frame{'s' if n_frames > 1 else ''} of {ds.Rows} x "
            f"{ds.Columns}, as the header says; replace this file"
        )


def _encapsulated(pixels: bytes, is_stream: bool) -> int:
    """How many frames encapsulated pixel data hold at least.

    Args:
        pixels: The value of PixelData.
        is_stream: Whether a frame may lie in several fragments. If not, each is a frame (RLE).
    """
    from pydicom.encaps import generate_fragments, parse_basic_offsets, parse_fragments

    buffer = BytesIO(pixels)
    listed = len(set(parse_basic_offsets(buffer)))
    if not is_stream:
        return max(listed, parse_fragments(buffer)[0])
    return max(listed, sum(fragment[:4].startswith(_STREAMS) for fragment in generate_fragments(buffer)))


def _stored_bits(frame: NDArray[Any], stored: int, high: int, clip: bool) -> NDArray[Any]:
    """The values without the bits above those that are stored, in which old files keep overlays.

    Args:
        frame: Values with all of their bits.
        stored: BitsStored.
        high: HighBit, which the standard wants to be one less. Old files hold the values in the upper bits.
        clip: Whether values that need more bits than are stored become the nearest that does not.

    Raises:
        InputError: The values do not show which bits are theirs.
    """
    if frame.dtype.kind not in "iu":
        return frame
    n_bits = 8 * frame.dtype.itemsize
    stored = min(stored, n_bits)
    shift = high + 1 - stored if high < n_bits else 0
    values = _lowest(frame, stored)
    if shift > 0:
        shifted = _lowest(frame >> shift, stored)
        if np.array_equal(shifted << shift, frame):
            return shifted
    if shift:
        narrow = _lowest(frame, stored if shift > 0 else high + 1)
        if not np.array_equal(narrow, frame) and (shift > 0 or not _are_carried(frame, narrow)):
            raise InputError(
                f"the header contradicts itself (HighBit {high}, BitsStored {stored}), and the pixels do not show "
                "which bits are right; convert this file again or replace it"
            )
    if np.array_equal(values, frame):
        return frame
    if clip:  # a lossy codec overshoots: without its highest bit, the brightest value would turn dark
        limits = np.iinfo(frame.dtype)
        values = np.clip(frame, limits.min >> n_bits - stored, limits.max >> n_bits - stored)
        overshoot = np.abs(frame.astype(np.int64) - values).max() / 2**stored
    if overshoot > _OVERSHOOT if clip else _are_carried(frame, values):
        raise InputError(
            f"the pixels use more bits than the {stored} that the header says (BitsStored); convert this file again or "
            "replace it"
        )
    return values


def _lowest(values: NDArray[Any], bits: int) -> NDArray[Any]:
    unused = 8 * values.dtype.itemsize - bits
    return values << unused >> unused if unused else values


def _are_carried(frame: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether bits that `values` lacks belong to the values: without them, a slow rise falls by the whole range.

    An overlay has nothing to do with the values below it: its borders are steps, and without it they are none.
    """
    whole, cut = (np.abs(np.diff(v.astype(np.int64))) for v in (frame, values))
    changes = np.diff(frame.astype(np.int64) - values) != 0
    return int((whole < cut)[changes].sum()) > _CARRIED * int(changes.sum())


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
