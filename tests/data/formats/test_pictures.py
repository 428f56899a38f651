"""Pictures of every format, depth and color mode, and those that are not read."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import is_scan, open_scan
from tumorlens.data.formats.pictures import _ORIENTATION, _UPRIGHT, write_png

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("png", "png", {}),
        ("bmp", "bmp", {}),
        ("tif", "tiff", {}),
        ("webp", "webp", {"lossless": True}),
        ("jpg", "jpeg", {"quality": 100}),
        ("jpg", "jpeg", {"quality": 100, "progressive": True}),
        ("gif", "gif", {}),
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


@pytest.mark.parametrize("shape", [(1, 1), (30, 40), (7, 5, 3), (300, 1), (1, 300, 3), (640, 511, 3)], ids=str)
def test_what_is_written_comes_back(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", np.asfortranarray(pixels))
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, np.broadcast_to(pixels.reshape(*shape[:2], -1), (*shape[:2], 3)))


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


def save_png(path, samples, bits, color, transparent):
    """A PNG of one row, of samples of any depth, with the value that the chunk tRNS calls transparent."""
    width = len(samples) // (3 if color == 2 else 1)
    packed = "".join(f"{sample:0{bits}b}" for sample in samples)
    row = b"\0" + int(packed, 2).to_bytes((len(packed) + 7) // 8)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0),
        b"tRNS": np.array(transparent).astype(">u2").tobytes(),
        b"IDAT": zlib.compress(row),
        b"IEND": b"",
    }
    written = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        written += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(written)
    return path


@pytest.mark.parametrize(("bits", "transparent"), [(1, 1), (2, 2), (4, 9), (8, 77), (16, 777), (16, 65535)])
def test_the_transparent_gray_of_a_png_is_laid_on_black(tmp_path, bits, transparent):
    samples = np.resize([0, transparent, 2**bits - 1, transparent // 2], 8)
    scale = 255 // (2**bits - 1) if bits < 8 else 1
    voxels = open_scan(save_png(tmp_path / "a.png", samples, bits, 0, transparent), constant=True).voxels
    np.testing.assert_array_equal(voxels[0], np.where(samples == transparent, 0, samples) * scale)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_color_of_a_png_is_laid_on_black(tmp_path, bits):
    colors = np.array([(7, 9, 2), (7, 9, 3), (200, 9, 2), (7, 9, 2)]) * (1 if bits == 8 else 250)
    voxels = open_scan(save_png(tmp_path / "a.png", colors.ravel(), bits, 2, colors[0])).voxels
    expected = colors.copy()
    expected[[0, 3]] = 0
    np.testing.assert_array_equal(voxels[0], expected)


@pytest.mark.parametrize("gray", [0, 130])
def test_the_transparent_entry_of_a_palette_is_laid_on_black(tmp_path, gray):
    picture = Image.fromarray(np.resize(np.uint8([0, 1, 2]), (6, 7)))
    picture.putpalette([gray] * 3 + [10, 20, 30] + [240, 10, 10])
    for suffix in ("png", "gif"):
        picture.save(tmp_path / f"a.{suffix}", transparency=2)
        np.testing.assert_array_equal(
            open_scan(tmp_path / f"a.{suffix}").voxels[0, :3], [[gray] * 3, [10, 20, 30], [0, 0, 0]]
        )


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "gif"), ("png", "png"), ("webp", "webp")])
@pytest.mark.parametrize("n_frames", [2, 7])
def test_an_animation_is_refused_with_its_number_of_pictures(tmp_path, suffix, kind, n_frames):
    first, *others = (Image.fromarray(np.roll(RAMP, 5 * n, axis=1)) for n in range(n_frames))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    with pytest.raises(InputError, match=rf"a\.{suffix}: the {kind} file is an animation of {n_frames} pictures; save"):
        open_scan(tmp_path / f"a.{suffix}")


HEADS = {
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "AVIF ": b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiafMA1B",  # the kind is not the first one named
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC ": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["a", "a.png"])
def test_pictures_that_are_not_read_say_their_kind(tmp_path, kind, name):
    (tmp_path / name).write_bytes(HEADS[kind] + bytes(200))
    assert is_scan(tmp_path / name)  # so that a folder's run reports it
    with pytest.raises(InputError, match=f"{name}: tumorlens does not read {kind.strip()} pictures; save it as PNG"):
        open_scan(tmp_path / name)


def test_a_film_is_not_a_picture(tmp_path):
    (tmp_path / "film").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(200))
    assert not is_scan(tmp_path / "film")


def test_a_jpeg_of_twelve_bits_is_not_only_called_damaged(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    whole = bytearray((tmp_path / "a.jpg").read_bytes())
    whole[whole.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.jpg: the jpeg file is damaged, or of a rare kind; save it as PNG"):
        open_scan(tmp_path / "a.jpg")


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, struct.error, ZeroDivisionError, IndexError])
def test_whatever_pillow_raises_on_a_damaged_file_is_a_users_error(tmp_path, monkeypatch, error):
    def load(self):
        raise error("of the parser")

    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(InputError, match=r"a\.png: the png file is damaged or cut off"):
        open_scan(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.jpg", "a.webp", "a.bmp"])
def test_damage_anywhere_is_an_error_or_a_picture(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(RAMP).convert("RGB").save(path)
    whole, random = path.read_bytes(), np.random.default_rng(len(name))
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(12, min(len(whole), 500), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            open_scan(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")


def test_an_eight_bit_picture_is_decoded_once(tmp_path, monkeypatch):
    import cv2

    monkeypatch.setattr(cv2, "imdecode", None)
    color = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2)
    Image.fromarray(color).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_scan(tmp_path / "a.png").voxels, color)


def test_a_png_that_promises_a_thousand_times_more_than_it_holds(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[20:24] = (900_000).to_bytes(4, "big")  # rows
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="damaged or cut off"):
        open_scan(tmp_path / "a.png")
