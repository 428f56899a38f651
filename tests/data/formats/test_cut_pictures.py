"""Pictures whose data end early in a file that is whole: no row is invented."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_slice

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # of Adam7
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
PICTURE = phantom_slice(2, "glioma", size=96, pixel_mm=2.3).image
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]


def scanlines(shape, color, bits, interlaced):
    """The unfiltered rows of a noisy PNG, those of each pass if it is interlaced."""
    rng = np.random.default_rng(1)
    height, width = shape
    sizes = [(height, width)]
    if interlaced:
        sizes = [(len(range(y, height, dy)), len(range(x, width, dx))) for x, y, dx, dy in PASSES]
    return [
        b"\0" + rng.integers(1, 200, -(-columns * bits * CHANNELS[color] // 8), np.uint8).tobytes()
        for rows, columns in sizes
        if columns
        for _ in range(rows)
    ]


def png(shape, color, bits, interlaced, rows):
    head = struct.pack(">2I5B", shape[1], shape[0], bits, color, 0, 0, interlaced)
    chunks = [
        (b"IHDR", head),
        (b"PLTE", bytes(range(256)) * 3),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if name != b"PLTE" or color == 3
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "bits"), KINDS)
@pytest.mark.parametrize("shape", [(40, 31), (41, 32)])
def test_a_png_with_too_few_rows_is_damaged(tmp_path, shape, color, bits, interlaced):
    rows = scanlines(shape, color, bits, interlaced)
    path = tmp_path / "a.png"
    path.write_bytes(png(shape, color, bits, interlaced, rows))
    assert open_scan(path).voxels.shape[:2] == shape
    for n_missing in (1, len(rows) // 3, len(rows) // 2 + 1):
        path.write_bytes(png(shape, color, bits, interlaced, rows[:-n_missing]))
        with pytest.raises(InputError, match=r"a\.png: the png file is damaged or cut off"):
            open_scan(path)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_whole_png_may_end_in_any_color(tmp_path, mode, value):
    pixels = np.vstack([PICTURE, np.full_like(PICTURE[:9], value)])
    picture = Image.fromarray(pixels * np.uint16(257)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "a.png")
    assert open_scan(tmp_path / "a.png").voxels.shape == (105, 96)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_that_ends_early_is_damaged(tmp_path, mode, options):
    path = tmp_path / "a.jpg"
    whole = BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(whole, "JPEG", quality=95, **options)
    content = whole.getvalue()
    start = content.index(b"\xff\xda")
    # The first scan of a progressive picture shows all of it; without others, it is blurred.
    length = content[start + 2 :].index(b"\xff\xda") if "progressive" in options else len(content) - start
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: start + int(length * share)] + b"\xff\xd9")
        with pytest.raises(InputError, match=r"a\.jpg: the jpeg file is damaged or cut off"):
            open_scan(path)


@pytest.mark.parametrize("value", [0, 127, 128, 129, 255])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_whole_jpeg_may_end_in_any_gray(tmp_path, mode, options, value):
    picture = np.vstack([PICTURE, np.full_like(PICTURE[:35], value)])
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.jpg", quality=100, **options)
    assert open_scan(tmp_path / "a.jpg").voxels.shape[:2] == (131, 96)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "webp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_other_pictures_say_that_they_are_cut_off(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"compression": "tiff_deflate"} if suffix == "tif" else {}
    Image.fromarray(PICTURE).save(path, **options)
    content = path.read_bytes()[: int(path.stat().st_size * share)]
    if suffix == "gif":
        content += b"\0;"  # an end of the blocks, and of the file
    if suffix == "webp":
        size = len(content)
        content = (
            content[:4] + struct.pack("<I", size - 8) + content[8:16] + struct.pack("<I", size - 20) + content[20:]
        )
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        open_scan(path)
