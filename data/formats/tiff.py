"""TIFF: one picture, or a stack of slices where the file says that it is one.

tifffile reads the layout, and Pillow the pixels of most pages. Pixels that Pillow does not know, such as float64, are
tifffile's, which in turn knows no LZW or JPEG without a package of 30 MB.
"""

from __future__ import annotations

import html
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.formats.pictures import UnknownPictureError, gray_if_colorless, read_pages, upright
from tumorlens.data.formats.volumes import MM_PER_UNIT, check_shape, check_size
from tumorlens.data.scan import Scan

_RESOLUTIONS = (283, 282)  # tags: pixels per unit down the rows, and along the columns
_ORIENTATION, _NOT_A_PAGE = 274, 0b101  # a tag; the bits of NewSubfileType for a smaller copy and for a mask
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}
# Not the inch: pictures come with dots per inch of a screen or a printer, and no scanner of heads counts in inches.
_MM_PER_UNIT = {**MM_PER_UNIT, "micron": 0.001, "microns": 0.001, r"\u00b5m": 0.001, "nm": 1e-6}
_MOST_CHANNELS = 7  # that ImageJ shows as one picture: more planes, in a file without other axes, are slices
# Rows run to posterior and columns to the left, so that slices are cut across the third axis and shown as stored.
_AS_STORED = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def is_tiff(head: bytes) -> bool:
    """Whether a file begins as a TIFF or a BigTIFF does."""
    return head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00\x08\x00\x00\x00", b"MM\x00+\x00\x08\x00\x00"))


def read_tiff(path: Path) -> Scan:
    """Read a picture, or a stack of slices.

    A file is a stack if ImageJ, OME or tifffile wrote into it that it holds several slices, or if its pages are deep
    (the tag ImageDepth). Smaller copies of a page and masks do not count as pages.

    Returns:
        A picture as `data.formats.pictures.read_picture` returns it, or a volume ``(rows, columns, slices)``. Its
        orientation is unknown. Its spacing is known if ImageJ or OME give it along all three axes, with a unit of
        length.

    Raises:
        InputError: The file is damaged or cut off, holds several pages that are not known to be slices of a volume,
            channels, points in time or slices in color, is too large, or holds numbers or a compression that neither
            package reads.
    """
    from tifffile import TiffFile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        opened: Any = TiffFile(path)
        with opened as tiff:
            pages = [page for page in tiff.pages if not page.subfiletype & _NOT_A_PAGE] or [tiff.pages[0]]
            for page in pages:
                _check_whole(page)
            n_slices = _n_slices(tiff, pages)
            if n_slices == 1:
                (pixels,) = _decoded(path, pages)
                return Scan(pixels, path=path, format="tiff", source_shape=pixels.shape[:2])
            check_shape((*pages[0].shape[-2:], n_slices), "TIFF")
            voxels = np.moveaxis(_stacked(path, tiff, pages, n_slices), 0, 2)
            spacing = _spacing_mm(tiff, pages[0])
    except InputError:
        raise
    except MemoryError:
        raise InputError("the tiff file is too large for this machine's memory") from None
    except Exception as error:  # on damaged files, tifffile raises errors of many kinds
        raise InputError(f"the tiff file is damaged or cut off ({reason_of(error)})") from None
    return Scan(
        voxels,
        spacing_mm=spacing,
        path=path,
        format="tiff",
        volume=True,
        source_shape=voxels.shape,
        assumed_affine=_AS_STORED,
    )


def _check_whole(page: Any) -> None:
    """Raise an `InputError` for a page that lists fewer strips or tiles than it needs: decoders fill the rest."""
    needed, listed = math.prod(page.chunked), len(page.dataoffsets)
    if listed < needed:
        raise InputError(f"the tiff file is damaged or cut off (a page lists {listed} of its {needed} strips or tiles)")


def _n_slices(tiff: Any, pages: list[Any]) -> int:
    """The number of slices; 1 for a picture."""
    slices, channels, times = _sizes(tiff, pages[0])
    if channels > 1 or times > 1:
        many = ", ".join(
            f"{n} {what}"
            for n, what in ((slices, "slices"), (channels, "channels"), (times, "points in time"))
            if n > 1
        )
        raise InputError(f"the tiff file holds {many}; save one stack of slices as a TIFF or NIfTI volume of its own")
    if slices == 1 and len(pages) == 1:
        return int(pages[0].imagedepth)
    if slices == 1:
        raise InputError(
            f"the tiff file holds {len(pages)} pages; save each page as a picture, or all as a NIfTI volume"
        )
    return slices


def _sizes(tiff: Any, page: Any) -> tuple[int, int, int]:
    """How many slices, channels and points in time the file says that it holds."""
    if tiff.is_imagej:
        slices, channels, times = (int(tiff.imagej_metadata.get(n, 1)) for n in ("slices", "channels", "frames"))
        if channels == page.samplesperpixel:  # some writers count red, green and blue
            channels = 1
        if channels > _MOST_CHANNELS and slices == times == 1:  # tifffile's guess for an array without named axes
            slices, channels = channels, 1
        images = int(tiff.imagej_metadata.get("images", 1))
        # As in ImageJ, a count without dimensions, or with others, is a plain stack.
        return (slices, channels, times) if images in (1, slices * channels * times) else (images, 1, 1)
    if tiff.is_ome:
        slices, channels, times = (int(_of_ome(tiff, f"Size{axis}") or 1) for axis in "ZCT")
        return slices, max(1, channels // page.samplesperpixel), times
    if tiff.is_shaped:
        said = tiff.shaped_metadata[0]
        outer = [n for n in said["shape"][: -len(page.shape)] if n > 1]
        if len(outer) == 1 and outer[0] > _MOST_CHANNELS and said.get("axes", "Z")[0] in "ZQI":
            return outer[0], 1, 1
    return 1, 1, 1


def _stacked(path: Path, tiff: Any, pages: list[Any], n_slices: int) -> NDArray[Any]:
    """The slices, ``(n, rows, columns)``."""
    first = pages[0]
    if first.imagedepth > 1:
        return _by_tifffile(first)
    if len(pages) == n_slices:
        slices = _decoded(path, pages)
        if len({(pixels.shape, pixels.dtype) for pixels in slices}) > 1:
            raise InputError("the slices in the tiff file differ in size or type; save those of one volume")
        if slices[0].ndim == 3:
            raise InputError("the slices in the tiff file are in color; save them in gray")
        return np.stack(slices)
    if len(pages) > 1 or not first.is_final:
        there = "1 page" if len(pages) == 1 else f"{len(pages)} pages"
        raise InputError(
            f"the tiff file says that it holds {n_slices} slices, but {there} can be found; save all as a NIfTI volume"
        )
    if first.ndim != 2 or first.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        raise InputError("the slices in the tiff file are in color; save them in gray")
    # ImageJ writes the other slices behind the only page that it describes.
    stored = np.dtype(tiff.byteorder + first.dtype.char)
    count = n_slices * math.prod(first.shape)
    check_size(count * stored.itemsize, [path], 1, "TIFF")
    voxels = np.fromfile(path, stored, count, offset=first.dataoffsets[0])
    return _black_is_zero(voxels.reshape(n_slices, *first.shape).astype(stored.newbyteorder("="), copy=False), first)


def _decoded(path: Path, pages: list[Any]) -> list[NDArray[Any]]:
    try:
        return read_pages(path, "tiff", [page.index for page in pages])
    except UnknownPictureError:
        return [upright(_by_tifffile(page), page.tags.valueof(_ORIENTATION, 1)) for page in pages]


def _by_tifffile(page: Any) -> NDArray[Any]:
    """The numbers of a page.

    Raises:
        InputError: The page is neither gray nor RGB, or tifffile cannot decode it.
    """
    kind = "" if page.dtype is None or not page.size else page.dtype.str[1:]
    gray = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and page.samplesperpixel == 1 and kind[:1] in "iuf"
    color = page.photometric == _RGB and page.axes == "YXS" and page.samplesperpixel == 3 and kind in ("u1", "u2")
    if not kind or not (gray or color):
        raise _unreadable(page)
    try:
        pixels = page.asarray()
    except Exception as error:
        raise (_unreadable(page) if "imagecodecs" in str(error) else error) from None
    return gray_if_colorless(pixels) if color else _black_is_zero(pixels, page)


def _unreadable(page: Any) -> InputError:
    """The error of a page that neither package reads. It names the numbers, unless they are common ones."""
    from PIL.TiffImagePlugin import COMPRESSION_INFO

    what = f"{page.bitspersample}-bit {_SAMPLES.get(page.sampleformat, 'numbers')}, {page.samplesperpixel} a pixel"
    if int(page.compression) not in COMPRESSION_INFO:
        what = f"compression {int(page.compression)}"
    elif page.sampleformat == 1 and page.bitspersample in (1, 2, 4, 8, 16):
        return InputError("the tiff file is damaged, or of a rare kind; save it as PNG")
    return InputError(f"this kind of TIFF cannot be read ({what}); save it as PNG with 8 or 16 bits")


def _black_is_zero(pixels: NDArray[Any], page: Any) -> NDArray[Any]:
    if page.photometric != _WHITE_IS_ZERO or pixels.dtype.kind != "u":
        return pixels
    return np.iinfo(pixels.dtype).max - pixels


def _spacing_mm(tiff: Any, page: Any) -> tuple[float, ...] | None:
    """Voxel size in mm along rows, columns and slices, or none if the file does not give all of them with a unit."""
    if tiff.is_imagej:
        said = tiff.imagej_metadata
        per_unit = [page.tags.valueof(tag, (0, 1)) for tag in _RESOLUTIONS]
        lengths = [d / n if n else 0.0 for n, d in per_unit] + [float(said.get("spacing", 0))]
        units = [said.get("unit")] * 3
    elif tiff.is_ome:
        lengths = [float(_of_ome(tiff, f"PhysicalSize{axis}") or 0) for axis in "YXZ"]
        units = [_of_ome(tiff, f"PhysicalSize{axis}Unit") or "µm" for axis in "YXZ"]  # the default of OME
    else:
        return None
    spacing = tuple(abs(n) * _MM_PER_UNIT.get(str(u).lower(), 0.0) for n, u in zip(lengths, units, strict=True))
    return spacing if all(0 < n < math.inf for n in spacing) else None


def _of_ome(tiff: Any, name: str) -> str:
    """An attribute of the first picture in the XML of OME; empty if it is not there."""
    found = re.search(rf'<(?:\w+:)?Pixels\b[^>]*?\b{name}\s*=\s*"([^"]*)"', tiff.ome_metadata)
    return html.unescape(found[1]) if found else ""
