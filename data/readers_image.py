"""Pictures: PNG, JPEG, TIFF, BMP, WebP with 8 or 16 bits, grey, colour, alpha or palette."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.scan import Scan

_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # what undoes each EXIF orientation
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def read_image(path: Path, kind: str) -> Scan:
    """One picture as ``(rows, columns)`` or ``(rows, columns, 3)``, upright as EXIF says, alpha laid on black.

    Raises:
        InputError: Damaged, truncated, several pages, or too large to be a slice.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as picture:
                pages = getattr(picture, "n_frames", 1)
                if pages > 1:
                    raise InputError(f"the {kind} file holds {pages} pages; give one picture a file, or a NIfTI volume")
                picture.load()
                deep = _deep_colour(picture, path)
                if deep is not None:
                    return Scan(deep, path=path, format=kind, source_shape=deep.shape[:2])
                upright = ImageOps.exif_transpose(picture)
                pixels = _pixels(upright, path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError("the picture is too large to be a slice of a scan") from None
    except UnidentifiedImageError:
        raise InputError(f"the {kind} file is damaged") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the {kind} file is damaged or cut off ({error})") from None
    return Scan(pixels, path=path, format=kind, source_shape=pixels.shape[:2])


def _pixels(picture: Any, path: Path) -> NDArray[Any]:
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"))
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        pixels = np.array(picture)
        return pixels.astype(np.uint16) if picture.mode.startswith("I;16") else pixels
    if "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        rgba = np.array(picture.convert("RGBA"))
        opaque = rgba[..., :3] * (rgba[..., 3:] / 255.0)
        return _grey_if_colourless(np.rint(opaque).astype(np.uint8))
    return _grey_if_colourless(np.array(picture.convert("RGB")))


def _deep_colour(picture: Any, path: Path) -> NDArray[np.uint16] | None:
    """A colour picture of 16 bits a channel, of which Pillow would keep 8; none for all others."""
    if picture.mode in ("1", "L", "I", "F", "P") or picture.mode.startswith("I;16") or picture.format == "JPEG":
        return None
    import cv2

    decoded: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return None
    color = decoded[..., 2::-1]
    if decoded.shape[2] == 4:
        color = np.rint(color * (decoded[..., 3:] / 65535.0)).astype(np.uint16)
    return _grey_if_colourless(_UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1), lambda a: a)(color))


def _grey_if_colourless(pixels: NDArray[Any]) -> NDArray[Any]:
    same = (pixels[..., :1] == pixels).all()
    return np.ascontiguousarray(pixels[..., 0]) if same else pixels
