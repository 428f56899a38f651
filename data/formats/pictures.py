"""Pictures: PNG, JPEG, TIFF, BMP, WebP with 8 or 16 bits, gray, color, alpha or palette."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.scan import Scan

_ORIENTATION = 0x0112
_BMP_HEADERS = tuple(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))  # two letters are not enough
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339  # tags of TIFF
_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}
_JPEG = ("JPEG", "MPO")  # in an MPO, phones put a second view or a depth map behind the photograph

_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # what undoes each EXIF orientation
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def is_bmp(head: bytes) -> bool:
    """Whether a file begins as a BMP picture does."""
    return head.startswith(b"BM") and head[14:18] in _BMP_HEADERS


def is_webp(head: bytes) -> bool:
    """Whether a file begins as a WebP picture does."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def read_picture(path: Path, kind: str) -> Scan:
    """Read one picture, upright as EXIF says, with transparent parts laid on black.

    Args:
        path: The file.
        kind: ``"png"``, ``"jpeg"``, ``"tiff"``, ``"bmp"`` or ``"webp"``.

    Returns:
        Voxels ``(rows, columns)``, or ``(rows, columns, 3)`` RGB.

    Raises:
        InputError: The picture is damaged or cut off, has several pages, is too large to be a slice, or is a TIFF of
            numbers that Pillow cannot read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            # Given a path, Pillow maps an uncompressed TIFF into memory, and the rows of one on its side then have
            # the wrong length.
            with path.open("rb") as file, Image.open(file) as picture:
                pages = getattr(picture, "n_frames", 1)
                if pages > 1 and picture.format not in _JPEG:
                    raise InputError(
                        f"the {kind} file holds {pages} pages; save each page as a picture, or all as a NIfTI volume"
                    )
                picture.load()
                deep = _deep_color(picture, path)
                if deep is not None:
                    return Scan(deep, path=path, format=kind, source_shape=deep.shape[:2])
                upright = ImageOps.exif_transpose(picture)
                pixels = _pixels(upright, getattr(picture, "tag_v2", {}))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError("the picture is too large to be a slice of a scan") from None
    except UnidentifiedImageError:
        raise InputError(_strange_tiff(path) or f"the {kind} file is damaged") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the {kind} file is damaged or cut off ({error})") from None
    return Scan(pixels, path=path, format=kind, source_shape=pixels.shape[:2])


def _pixels(picture: Any, tags: Any) -> NDArray[Any]:
    """The pixels of a picture of 8 bits a channel, or of a gray picture of any depth; `tags` are those of a TIFF."""
    samples = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if picture.mode in ("1", "L"):
        pixels = np.array(picture.convert("L"))
        return pixels.view(np.int8) if picture.mode == "L" and samples == 2 else pixels
    if picture.mode.startswith("I;16"):
        pixels = np.array(picture).astype(np.uint16)
        return 65535 - pixels if tags.get(_PHOTOMETRIC) == 0 else pixels  # 0 is white; Pillow inverts only 8 bits
    if picture.mode in ("I", "F"):
        pixels = np.array(picture)
        unsigned = samples == 1 and tags.get(_BITS, (0,))[0] == 32
        return pixels.view(np.uint32) if picture.mode == "I" and unsigned else pixels
    if "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        rgba = np.array(picture.convert("RGBA"))
        opaque = rgba[..., :3] * (rgba[..., 3:] / 255.0)
        return _gray_if_colorless(np.rint(opaque).astype(np.uint8))
    return _gray_if_colorless(np.array(picture.convert("RGB")))


def _strange_tiff(path: Path) -> str:
    """A message that names the numbers of an undamaged TIFF that Pillow cannot read; empty for other files."""
    from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error")  # Pillow warns of tags that are cut off
            head = file.read(8)
            tags = ImageFileDirectory_v2(head + file.read(8 if 43 in head[2:4] else 0))  # 43: a BigTIFF
            file.seek(tags.next)
            tags.load(file)
        bits, samples = tags[_BITS], tags.get(_SAMPLE_FORMAT, (1,))[0]
        packed = tags.get(_COMPRESSION, 1)
        if packed not in COMPRESSION_INFO:
            return f"this kind of TIFF cannot be read (compression {packed}); save it as PNG with 8 or 16 bits"
        if samples == 1 and bits[0] in (0, 8, 16):
            return ""  # Pillow reads these numbers, so something else is wrong
        what = f"{bits[0]}-bit {_SAMPLES.get(samples, 'numbers')}, {len(bits)} a pixel"
    except Exception:  # damaged in one of many ways, or not a TIFF
        return ""
    return f"this kind of TIFF cannot be read ({what}); save it as PNG with 8 or 16 bits"


def _deep_color(picture: Any, path: Path) -> NDArray[np.uint16] | None:
    """A color picture of 16 bits a channel, of which Pillow would keep 8; none for all others."""
    if picture.mode in ("1", "L", "I", "F", "P") or picture.mode.startswith("I;16") or picture.format in _JPEG:
        return None
    import cv2

    decoded: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return None
    color = decoded[..., 2::-1]
    if decoded.shape[2] == 4:
        color = np.rint(color * (decoded[..., 3:] / 65535.0)).astype(np.uint16)
    return _gray_if_colorless(_UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1), lambda a: a)(color))


def _gray_if_colorless(pixels: NDArray[Any]) -> NDArray[Any]:
    same = (pixels[..., :1] == pixels).all()
    return np.ascontiguousarray(pixels[..., 0]) if same else pixels


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a gray ``(rows, columns)`` or RGB ``(rows, columns, 3)`` picture, whole or not at all."""
    import cv2

    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    with whole_file(path) as part:
        _, encoded = cv2.imencode(".png", ordered)
        part.write_bytes(encoded.tobytes())
