"""Pictures: PNG, JPEG, BMP, WebP, GIF, and the pages of a TIFF; 8 or 16 bits, gray, color, alpha or palette."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.files import whole_file
from tumorlens.data.formats.volumes import DEFLATE_RATIO, check_size
from tumorlens.data.scan import Scan, check_n_voxels

_ORIENTATION = 0x0112
_BMP_HEADERS = tuple(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))  # two letters are not enough
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_STORED = {(1, 32): np.uint32, (2, 16): np.int16}  # what Pillow gives as int32, by format and bits of a sample
_JPEG = ("JPEG", "MPO")  # in an MPO, phones put a second view or a depth map behind the photograph
_JPEG_END, _JPEG_GRAY = b"\xff\xd9", 128
_PNG, _UP = b"\x89PNG\r\n\x1a\n", 2  # a file's first bytes, and the filter that takes the line above away
_DEPTH_OF_PNG = 24  # where the bits of a sample stand in the file

_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # what undoes each EXIF orientation
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def _is_avif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and b"avif" in _brands(head)


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and not _brands(head).isdisjoint((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"))


def _brands(head: bytes) -> set[bytes]:
    """The kinds of content that the first box of a file in MPEG-4's container names (ISO/IEC 14496-12)."""
    return {head[at : at + 4] for at in (8, *range(16, min(int.from_bytes(head[:4]), len(head)), 4))}


# Pictures that are recognized, so that nobody misses them, but not read: title, suffixes, and the look of their heads.
UNREAD_PICTURES: tuple[tuple[str, tuple[str, ...], Callable[[bytes], bool]], ...] = (
    ("AVIF", (".avif", ".avifs"), _is_avif),
    ("HEIC", (".heic", ".heif"), _is_heic),
    ("JPEG XL", (".jxl",), lambda head: head.startswith(b"\x00\x00\x00\x0cJXL \r\n\x87\n")),
    ("JPEG 2000", (".jp2", ".j2k"), lambda head: head.startswith(b"\x00\x00\x00\x0cjP  \r\n\x87\n")),
)


class UnknownPictureError(ValueError):
    """Pillow does not know what a picture is: it is damaged from its beginning, or of a rare kind."""


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
        kind: ``"png"``, ``"jpeg"``, ``"bmp"``, ``"webp"`` or ``"gif"``.

    Returns:
        Voxels ``(rows, columns)``, or ``(rows, columns, 3)`` RGB.

    Raises:
        InputError: The picture is damaged or cut off, is an animation, or is too large to be a slice.
    """
    try:
        (pixels,) = read_pages(path, kind)
    except UnknownPictureError as error:
        raise InputError(f"{error}; save it as PNG") from None
    return Scan(pixels, path=path, format=kind, source_shape=pixels.shape[:2])


def read_pages(path: Path, kind: str, pages: Sequence[int] = ()) -> list[NDArray[Any]]:
    """Read pages of a picture file, each ``(rows, columns)`` or ``(rows, columns, 3)`` RGB, as `read_picture` does.

    Args:
        path: The file.
        kind: The format's name, for messages.
        pages: The pages to read, from 0, in ascending order. By default the only one there is.

    Raises:
        UnknownPictureError: Pillow does not know the kind of picture.
        InputError: As `read_picture`.
    """
    from PIL import Image, UnidentifiedImageError

    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the errors that it raises are enough
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            # Given a path, Pillow maps an uncompressed TIFF into memory, and the rows of one on its side then have
            # the wrong length.
            with path.open("rb") as file, Image.open(file) as picture:
                n_frames = 1 if pages or picture.format in _JPEG else getattr(picture, "n_frames", 1)
                if n_frames > 1:
                    raise InputError(
                        f"the {kind} file is an animation of {n_frames} pictures; save the one that you mean as PNG, "
                        "or all as a NIfTI volume if they are the slices of one"
                    )
                return [_page(picture, page, path) for page in pages or (0,)]
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError):
        raise InputError("the picture is too large to be a slice of a scan") from None
    except UnidentifiedImageError:
        raise UnknownPictureError(f"the {kind} file is damaged, or of a rare kind") from None
    except InputError:
        raise
    except Exception as error:  # on damaged files, Pillow passes on errors of any kind, such as TypeError
        raise InputError(f"the {kind} file is damaged or cut off ({reason_of(error)})") from None


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The pixels, turned and mirrored as EXIF and TIFF number orientations (1 to 8)."""
    return _UPRIGHT.get(orientation, lambda a: a)(pixels)


def _page(picture: Any, page: int, path: Path) -> NDArray[Any]:
    from PIL import ImageOps

    if page:
        picture.seek(page)
    check_n_voxels(picture.width * picture.height)
    if picture.format == "PNG":
        check_size(picture.width * picture.height // 8, [path], DEFLATE_RATIO, "PNG")
    _load(picture, path)
    tags, bits = getattr(picture, "tag_v2", {}), _bits(picture, path)
    deep = _deep_color(picture, path) if bits == 16 and page == 0 else None
    return _pixels(ImageOps.exif_transpose(picture), tags, bits) if deep is None else deep


def _load(picture: Any, path: Path) -> None:
    """Read the pixels.

    Pillow passes over the end of some data that come too early. It leaves the rows of a PNG as they were, and fills
    those of a JPEG with gray. A picture that ends so is read once more in another way, which makes no difference to a
    whole one.

    Raises:
        InputError: Rows are missing.
    """
    from PIL import Image

    is_short = False
    if picture.format == "PNG" and _stays(picture, 255):
        with Image.open(path) as again:
            is_short = _stays(again, 0)
    picture.load()
    if picture.format == "JPEG" and _ends_in(picture, picture.height - 1, _JPEG_GRAY):
        data = path.read_bytes()
        end = data.rfind(_JPEG_END)
        with Image.open(BytesIO(data[:end] + bytes(range(1, 255)) + data[end:])) as again:
            is_short = again.tobytes() != picture.tobytes()
    if is_short:
        raise InputError(f"the {picture.format.lower()} file is damaged or cut off (rows are missing)")


def _stays(picture: Any, value: int) -> bool:
    """Whether the last row of a PNG that is decoded into an image of one value keeps it."""
    from PIL import Image

    bands = len(picture.getbands())
    picture.im = Image.new(picture.mode, picture.size, value if bands == 1 else (value,) * bands).im
    picture.load()
    odd_last = picture.height > 1 and picture.info.get("interlace")  # the last pass is of the odd rows
    return _ends_in(picture, picture.height // 2 * 2 - 1 if odd_last else picture.height - 1, value)


def _ends_in(picture: Any, row: int, value: int) -> bool:
    """Whether all of the last eight pixels of a row have one value."""
    end = picture.crop((max(0, picture.width - 8), row, picture.width, row + 1))
    return bool((np.array(end.getextrema()) == value).all())


def _pixels(picture: Any, tags: Any, bits: int) -> NDArray[Any]:
    """The pixels of a picture of 8 bits a channel, or of a gray picture of any depth.

    Args:
        picture: Upright.
        tags: Those of a TIFF.
        bits: The bits of a sample in the file.
    """
    samples = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if picture.mode in ("1", "L"):
        pixels = np.array(picture.convert("L"))
        return pixels.view(np.int8) if picture.mode == "L" and samples == 2 else _on_black(pixels, picture, bits)
    if picture.mode.startswith("I;16"):
        pixels = _on_black(np.array(picture).astype(np.uint16), picture, bits)
        return 65535 - pixels if tags.get(_PHOTOMETRIC) == 0 else pixels  # 0 is white; Pillow inverts only 8 bits
    if picture.mode in ("I", "F"):
        pixels = _on_black(np.array(picture), picture, bits)
        stored = _STORED.get((samples, bits)) if picture.mode == "I" else None
        return pixels if stored is None else pixels.astype(stored)
    if "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        rgba = np.array(picture.convert("RGBA"))
        opaque = rgba[..., :3] * (rgba[..., 3:] / 255.0)
        return gray_if_colorless(np.rint(opaque).astype(np.uint8))
    return gray_if_colorless(np.array(picture.convert("RGB")))


def _on_black(pixels: NDArray[Any], picture: Any, bits: int) -> NDArray[Any]:
    """Gray pixels with the one value that a PNG or GIF calls transparent turned to black."""
    transparent = picture.info.get("transparency")
    if not isinstance(transparent, int):
        return pixels
    if transparent < 2**bits < 256:  # Pillow stretches these pixels to 8 bits, but not the value
        transparent = transparent * 255 // (2**bits - 1)
    return np.where(pixels == transparent, 0, pixels).astype(pixels.dtype)


def _bits(picture: Any, path: Path) -> int:
    """The bits of a sample in a PNG or TIFF; 8 for all others."""
    if picture.format != "PNG":
        return int(getattr(picture, "tag_v2", {}).get(_BITS, (8,))[0])
    with path.open("rb") as file:
        return file.read(_DEPTH_OF_PNG + 1)[-1]


def _deep_color(picture: Any, path: Path) -> NDArray[np.uint16] | None:
    """A picture of 16 bits a channel, of which Pillow would keep 8; none if it is gray, or OpenCV does not read it."""
    if picture.mode in ("L", "I", "F", "P") or picture.mode.startswith("I;16"):
        return None
    import cv2

    decoded: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return None
    color = decoded[..., 2::-1]
    if decoded.shape[2] == 4:
        color = np.rint(color * (decoded[..., 3:] / 65535.0)).astype(np.uint16)
    return gray_if_colorless(upright(color, picture.getexif().get(_ORIENTATION, 1)))


def gray_if_colorless(pixels: NDArray[Any]) -> NDArray[Any]:
    """``(rows, columns)`` of a color picture whose channels are all the same; otherwise the picture itself."""
    same = (pixels[..., :1] == pixels).all()
    return np.ascontiguousarray(pixels[..., 0]) if same else pixels


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a gray ``(rows, columns)`` or RGB ``(rows, columns, 3)`` picture, whole or not at all.

    Lines are stored as differences to the line above and packed by ISA-L, which takes a quarter of the time that libpng
    takes for a file of the same size (ISO/IEC 15948, Portable Network Graphics).
    """
    from isal import isal_zlib

    lines = pixels.reshape(len(pixels), -1)
    filtered = np.empty((lines.shape[0], 1 + lines.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    color = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, color, 0, 0, 0)
    with whole_file(path) as part:
        part.write_bytes(
            _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", isal_zlib.compress(filtered, 1)) + _chunk(b"IEND", b"")
        )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
