"""Pictures of every format, depth and color mode, and TIFF as microscopes, scanners and scripts write it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.formats.pictures import _ORIENTATION, _UPRIGHT

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)


def save_tiff(path, pixels, photometric=1, orientation=1):
    """An uncompressed TIFF of any numbers, ``(rows, columns)`` or ``(rows, columns, channels)``, in one strip."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = np.ascontiguousarray(pixels).tobytes()
    pointer = 8 + len(data)
    bits, kind = 8 * pixels.itemsize, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = [(256, pixels.shape[1]), (257, pixels.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(274, orientation), (277, channels), (278, pixels.shape[0]), (279, len(data)), (339, kind)]
    entries, behind = b"", b""
    for tag, value in tags:
        if tag in (258, 339) and channels > 1:  # a value each channel, too long for the entry itself
            place = pointer + 2 + 12 * len(tags) + 4 + len(behind)
            entries += struct.pack("<HHII", tag, 3, channels, place)
            behind += struct.pack(f"<{channels}H", *[value] * channels)
        else:
            entries += struct.pack("<HHII", tag, 4 if value > 65535 else 3, 1, value)
    head = struct.pack("<2sHI", b"II", 42, pointer)
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4) + behind)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_that_lies_on_its_side(tmp_path, kind, orientation):
    path = save_tiff(tmp_path / "a.tif", RAMP.astype(kind), orientation=orientation)
    np.testing.assert_array_equal(open_scan(path).voxels, _UPRIGHT.get(orientation, lambda a: a)(RAMP))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_color_that_lies_on_its_side(tmp_path, orientation):
    pixels = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2) * np.uint16(257)
    path = save_tiff(tmp_path / "a.tif", pixels, 2, orientation)
    np.testing.assert_array_equal(open_scan(path).voxels, _UPRIGHT.get(orientation, lambda a: a)(pixels))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_is_zero(tmp_path, kind):
    pixels = RAMP.astype(kind)
    path = save_tiff(tmp_path / "a.tif", pixels, photometric=0)
    np.testing.assert_array_equal(open_scan(path).voxels, np.iinfo(kind).max - pixels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.int32, np.float32])
def test_numbers_keep_their_type(tmp_path, kind):
    pixels = RAMP.astype(np.float64)
    low, high = (-1.5, 3e9) if kind == np.float32 else (np.iinfo(kind).min, np.iinfo(kind).max)
    pixels = (low + pixels / pixels.max() * (high - low)).astype(kind)
    np.testing.assert_array_equal(open_scan(save_tiff(tmp_path / "a.tif", pixels)).voxels, pixels)


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (RAMP.astype(np.float64), "64-bit floating-point numbers, 1 a pixel"),
        (RAMP.astype(np.float16), "16-bit floating-point numbers, 1 a pixel"),
        (np.stack([RAMP] * 3, axis=2).astype(np.float32), "32-bit floating-point numbers, 3 a pixel"),
    ],
)
def test_numbers_that_cannot_be_read_are_not_called_damage(tmp_path, pixels, what):
    path = save_tiff(tmp_path / "a.tif", pixels)
    with pytest.raises(InputError, match=rf"a\.tif: this kind of TIFF cannot be read \({what}\); save it as PNG"):
        open_scan(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match="damaged"):
        open_scan(path)


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (257, 0, "a.tif: the tiff file is damaged"),  # no rows
        (262, 77, "a.tif: the tiff file is damaged"),  # an unknown color space
        (259, 34712, r"a.tif: this kind of TIFF cannot be read \(compression 34712\)"),
    ],
)
def test_damaged_files_of_readable_numbers_say_the_reason(tmp_path, tag, value, reason):
    path = save_tiff(tmp_path / "a.tif", RAMP)
    whole = bytearray(path.read_bytes())
    struct.pack_into("<H", whole, whole.index(struct.pack("<HH", tag, 3)) + 8, value)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=reason):
        open_scan(path)


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("png", "png", {}),
        ("bmp", "bmp", {}),
        ("tif", "tiff", {}),
        ("webp", "webp", {"lossless": True}),
        ("jpg", "jpeg", {"quality": 100}),
    ],
)
def test_pictures(tmp_path, suffix, kind, options):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path, **options)
    scan = open_scan(path)
    assert scan.format == kind
    assert not scan.volume
    assert scan.spacing_mm is None
    assert scan.voxels.shape == (30, 40)  # a gray WebP stays gray
    np.testing.assert_allclose(scan.voxels, RAMP, atol=3 if kind == "jpeg" else 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_color_modes(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode).save(path)
    scan = open_scan(path)
    assert scan.voxels.shape[:2] == (30, 40)
    assert scan.voxels.ndim == 2 or scan.voxels.shape[2] == 3


def test_alpha_is_laid_on_black(tmp_path):
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    voxels = open_scan(tmp_path / "a.png").voxels
    assert (voxels[:, :4] == 0).all()
    assert (voxels[:, 4:] == round(200 * 200 / 255)).all()


def test_sixteen_bits_are_kept(tmp_path):
    deep = (RAMP.astype(np.uint16) * 257) + 3
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(open_scan(tmp_path / name).voxels, deep)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_color_keeps_its_depth(tmp_path, suffix):
    import cv2

    twelve_bit = (np.arange(RAMP.size, dtype=np.uint16) % 4096).reshape(RAMP.shape)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.repeat(twelve_bit[..., None], 3, axis=2))
    np.testing.assert_array_equal(open_scan(tmp_path / f"a.{suffix}").voxels, twelve_bit)
    blue, red = np.zeros_like(twelve_bit), twelve_bit
    cv2.imwrite(str(tmp_path / f"b.{suffix}"), np.stack([blue, blue, red], axis=2))
    np.testing.assert_array_equal(open_scan(tmp_path / f"b.{suffix}").voxels[..., 0], red)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(open_scan(tmp_path / "a.jpg").voxels, np.rot90(RAMP, -1), atol=3)


def test_a_photograph_with_a_second_view_is_a_photograph(tmp_path):
    picture, view = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1, ::-1])
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[view], quality=100)
    scan = open_scan(tmp_path / "a.jpg")
    assert scan.format == "jpeg"
    np.testing.assert_allclose(scan.voxels, RAMP, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_color_is_turned_as_pillow_turns_eight_bits(orientation):
    picture = Image.fromarray(RAMP)
    picture.getexif()[_ORIENTATION] = orientation
    turned = _UPRIGHT.get(orientation, lambda a: a)(RAMP)
    np.testing.assert_array_equal(turned, np.array(ImageOps.exif_transpose(picture)))
