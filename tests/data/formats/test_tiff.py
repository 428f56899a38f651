"""TIFF as microscopes, scanners and scripts write it: pictures of any numbers, and stacks of slices."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.formats.pictures import _UPRIGHT

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)
STACK = np.random.default_rng(3).integers(0, 4000, (12, 30, 40)).astype(np.uint16)  # slices, rows, columns
FLOATS = (np.float16, np.float32, np.float64)
NUMBERS = [*(np.dtype(kind).type for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")), *FLOATS]
GRAY = {"photometric": "minisblack"}


def save_tiff(path, pixels, photometric=1, orientation=1, description="", behind=b""):
    """An uncompressed TIFF of any numbers, ``(rows, columns)`` or ``(rows, columns, channels)``, in one strip.

    The bytes `behind` follow the pixels, as in ImageJ's stacks those of all other slices do.
    """
    rows, columns, channels = (*pixels.shape, 1)[:3]
    data = np.ascontiguousarray(pixels).tobytes()
    bits, kind = 8 * pixels.itemsize, {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    text = description.encode() + b"\0"
    tags = {256: columns, 257: rows, 258: [bits] * channels, 259: 1, 262: photometric, 270: text, 273: 8}
    tags |= {274: orientation, 277: channels, 278: rows, 279: len(data), 339: [kind] * channels}
    pointer = 8 + len(data) + len(behind)
    entries, values = b"", b""
    for tag, value in tags.items():
        place = pointer + 2 + 12 * len(tags) + 4 + len(values)  # of values that are too long for the entry itself
        if isinstance(value, bytes):
            entries += struct.pack("<HHII", tag, 2, len(value), place)
            values += value + bytes(4)
        elif isinstance(value, list) and len(value) > 1:
            entries += struct.pack("<HHII", tag, 3, len(value), place)
            values += struct.pack(f"<{len(value)}H", *value)
        else:
            number = value[0] if isinstance(value, list) else value
            entries += struct.pack("<HHII", tag, 4 if number > 65535 else 3, 1, number)
    head = struct.pack("<2sHI", b"II", 42, pointer)
    path.write_bytes(head + data + behind + struct.pack("<H", len(tags)) + entries + bytes(4) + values)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_that_lies_on_its_side(tmp_path, kind, orientation):
    path = save_tiff(tmp_path / "a.tif", RAMP.astype(kind), orientation=orientation)
    np.testing.assert_array_equal(open_scan(path).voxels, _UPRIGHT.get(orientation, lambda a: a)(RAMP))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_color_that_lies_on_its_side(tmp_path, orientation):
    pixels = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2) * np.uint16(257)
    path = save_tiff(tmp_path / "a.tif", pixels, 2, orientation)
    np.testing.assert_array_equal(open_scan(path).voxels, _UPRIGHT.get(orientation, lambda a: a)(pixels))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint64])
def test_white_is_zero(tmp_path, kind):
    pixels = RAMP.astype(kind)
    path = save_tiff(tmp_path / "a.tif", pixels, photometric=0)
    np.testing.assert_array_equal(open_scan(path).voxels, np.iinfo(kind).max - pixels)


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_keep_their_type(tmp_path, kind):
    pixels = RAMP.astype(np.float64)
    low, high = (-1.5, 6e4) if kind in FLOATS else (max(np.iinfo(kind).min, -(2**53)), min(np.iinfo(kind).max, 2**53))
    pixels = (low + pixels / pixels.max() * (high - low)).astype(kind)
    voxels = open_scan(save_tiff(tmp_path / "a.tif", pixels)).voxels
    np.testing.assert_array_equal(voxels, pixels)
    assert voxels.dtype == kind


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (RAMP.astype(np.complex128), "128-bit numbers, 1 a pixel"),
        (np.stack([RAMP] * 3, axis=2).astype(np.float64), "64-bit floating-point numbers, 3 a pixel"),
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


def check_stack(path, stack, spacing_mm=None):
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.voxels, np.moveaxis(stack, 0, 2))
    assert scan.voxels.dtype == stack.dtype
    assert (scan.volume, scan.format, scan.affine, scan.plane) == (True, "tiff", None, None)
    assert scan.slice_axis == 2
    np.testing.assert_array_equal(scan.slice(1), stack[1])  # as it is stored: nobody knows which side is left
    assert scan.source_shape == scan.voxels.shape
    assert scan.spacing_mm == (None if spacing_mm is None else pytest.approx(spacing_mm))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_stack_of_imagej(tmp_path, kind, byteorder):
    stack = STACK.astype(kind)
    said = {"axes": "ZYX", "spacing": 5.5, "unit": "mm"}
    resolution = (2, 1 / 0.75)  # pixels per mm along the columns, and down the rows
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata=said, resolution=resolution, byteorder=byteorder)
    check_stack(tmp_path / "a.tif", stack, (0.75, 0.5, 5.5))


@pytest.mark.parametrize(
    ("unit", "spacing_mm"),
    [
        ("cm", (7.5, 5, 55)),
        ("micron", (0.00075, 0.0005, 0.0055)),
        (r"\u00B5m", (0.00075, 0.0005, 0.0055)),
        ("inch", None),  # dots per inch belong to printers
        ("pixel", None),
        (None, None),
    ],
)
def test_a_spacing_needs_a_unit_of_length(tmp_path, unit, spacing_mm):
    said = {"axes": "ZYX", "spacing": 5.5, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata=said, resolution=(2, 1 / 0.75))
    check_stack(tmp_path / "a.tif", STACK, spacing_mm)


def test_a_stack_of_imagej_whose_axes_were_not_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.imagej_metadata["channels"] == 12
    check_stack(tmp_path / "a.tif", STACK)


@pytest.mark.parametrize("missing", ["spacing", "resolution"])
def test_a_spacing_needs_all_three_lengths(tmp_path, missing):
    said = {"axes": "ZYX", "unit": "mm"} | ({} if missing == "spacing" else {"spacing": 3.0})
    resolution = (0, 0) if missing == "resolution" else (2, 2)
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata=said, resolution=resolution)
    check_stack(tmp_path / "a.tif", STACK)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("said", ["images=12\nslices=12\nloop=false", "images=12", "slices=12"])
def test_a_stack_that_imagej_describes_in_one_page(tmp_path, kind, said):
    """ImageJ writes so what is too large for its own pages: one directory, and all slices behind each other."""
    stack = STACK.astype(kind)
    description = f"ImageJ=1.54f\n{said}\nmin=0.0\n"
    path = save_tiff(tmp_path / "a.tif", stack[0], description=description, behind=stack[1:].tobytes())
    check_stack(path, stack)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_stack_in_one_page_whose_white_is_zero(tmp_path, kind):
    stack = STACK.astype(kind)
    path = save_tiff(tmp_path / "a.tif", stack[0], 0, 1, "ImageJ=1.52p\nslices=12\n", stack[1:].tobytes())
    check_stack(path, np.iinfo(kind).max - stack)


def test_a_stack_in_one_page_that_is_cut_off(tmp_path):
    description = "ImageJ=1.54f\nimages=12\nslices=12\n"
    path = save_tiff(tmp_path / "a.tif", STACK[0], description=description, behind=STACK[1:9].tobytes())
    with pytest.raises(InputError, match=r"a\.tif: the TIFF data are damaged or cut off"):
        open_scan(path)


def test_slices_that_are_not_there(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP).save(path, compression="tiff_lzw", description="ImageJ=1.54f\nimages=9\nslices=9\n")
    with pytest.raises(InputError, match="says that it holds 9 slices, but 1 page can be found; save all as a NIfTI"):
        open_scan(path)


@pytest.mark.parametrize("count", [10**10, 3 * 10**6])
def test_more_slices_than_memory_holds_set_none_aside(tmp_path, count):
    path = save_tiff(tmp_path / "a.tif", STACK[0], description=f"ImageJ=1.54f\nimages={count}\nslices={count}\n")
    with pytest.raises(InputError, match=r"impossible shape|damaged or cut off"):
        open_scan(path)


@pytest.mark.parametrize(
    ("axes", "shape", "what"),
    [
        ("TYX", (12,), "12 points in time"),
        ("TYX", (5,), "5 points in time"),
        ("CYX", (7,), "7 channels"),
        ("TZYX", (3, 4), "4 slices, 3 points in time"),
        ("ZCYX", (6, 2), "6 slices, 2 channels"),
        ("TZCYX", (2, 3, 2), "3 slices, 2 channels, 2 points in time"),
    ],
)
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_and_points_in_time_are_named(tmp_path, axes, shape, what, kind):
    pixels = STACK[: np.prod(shape)].reshape(*shape, 30, 40)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, imagej=kind == "imagej", ome=kind == "ome", metadata={"axes": axes}, **GRAY
    )
    with pytest.raises(InputError, match=f"a.tif: the tiff file holds {what}; save one stack of slices"):
        open_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("unit", ["mm", "µm", None])
def test_a_stack_of_ome(tmp_path, compression, unit):
    said = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.75, "PhysicalSizeZ": 4.0}
    if unit is not None:
        said |= {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    tifffile.imwrite(tmp_path / "a.tif", STACK, ome=True, metadata=said, compression=compression, **GRAY)
    factor = 1 if unit == "mm" else 1e-3  # OME means micrometers where it names no unit
    check_stack(tmp_path / "a.tif", STACK, (0.75 * factor, 0.5 * factor, 4 * factor))


def test_a_stack_of_ome_names_no_other_file(tmp_path):
    """OME may keep the slices in several files: those of other folders are nobody's business."""
    tifffile.imwrite(tmp_path / "b.tif", STACK, ome=True, metadata={"axes": "ZYX"}, **GRAY)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        xml = tiff.ome_metadata.replace("<TiffData ", '<TiffData FirstZ="1" ')
    path = save_tiff(tmp_path / "a.tif", STACK[0], description=xml)
    with pytest.raises(InputError, match=r"says that it holds 12 slices, but 1 page can be found|damaged or cut off"):
        open_scan(path)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"compression": "zlib"}, {"bigtiff": True, "byteorder": ">"}]
)
def test_an_array_of_three_axes_that_python_wrote(tmp_path, kind, options):
    stack = STACK.astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", stack, **GRAY, **options)
    check_stack(tmp_path / "a.tif", stack)


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_an_array_whose_first_axis_is_not_space_is_pages(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.tif", STACK, metadata={"axes": axes}, **GRAY)
    with pytest.raises(InputError, match="12 pages; save each page as a picture, or all as a NIfTI volume"):
        open_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("said", [{"metadata": None}, {}])
@pytest.mark.parametrize("n_pages", [3, 7])
def test_few_pages_of_one_array_may_be_channels(tmp_path, said, n_pages):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:n_pages], **GRAY, **said)
    with pytest.raises(InputError, match=f"{n_pages} pages"):
        open_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("depth", [2, 3, 12])
@pytest.mark.parametrize("tile", [None, (16, 16, 16)])
def test_pages_that_are_deep(tmp_path, depth, tile):
    """The tag ImageDepth of SGI, of which Pillow reads the last slice."""
    tifffile.imwrite(tmp_path / "a.tif", STACK[:depth], volumetric=True, tile=tile, metadata=None, **GRAY)
    check_stack(tmp_path / "a.tif", STACK[:depth])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_packed_stack(tmp_path, compression):
    first, *others = (Image.fromarray(pixels) for pixels in STACK)
    said = "ImageJ=1.54f\nimages=12\nslices=12\n"
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression=compression, description=said)
    check_stack(tmp_path / "a.tif", STACK)


def test_slices_in_color(tmp_path):
    gray = (STACK // 16).astype(np.uint8)
    for name, blue in (("gray", gray), ("color", 255 - gray)):
        pixels = np.stack([gray, gray, blue], axis=-1)
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, imagej=True, metadata={"axes": "ZYXS"})
    check_stack(tmp_path / "gray.tif", gray)
    with pytest.raises(InputError, match=r"color\.tif: the slices in the tiff file are in color; save them in gray"):
        open_scan(tmp_path / "color.tif")


def test_slices_of_several_sizes(tmp_path):
    first, *others = (Image.fromarray(RAMP[: 30 - n]) for n in range(3))
    said = "ImageJ=1.54f\nimages=3\nslices=3\n"
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, description=said)
    with pytest.raises(InputError, match="differ in size or type"):
        open_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("n_pages", [2, 15])
def test_pages_that_nobody_calls_slices(tmp_path, n_pages):
    first, *others = (Image.fromarray(np.roll(RAMP, n)) for n in range(n_pages))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(InputError, match=f"{n_pages} pages; save each page as a picture, or all as a NIfTI volume"):
        open_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["thumbnail behind", "thumbnail before", "mask"])
def test_a_smaller_copy_is_not_a_page(tmp_path, kind):
    smaller = {"data": RAMP[::4, ::4], "subfiletype": 1, "metadata": None}
    pages = [{"data": RAMP, "metadata": None}, smaller]
    if kind == "thumbnail before":
        pages.reverse()
    if kind == "mask":
        pages[1] |= {"data": RAMP > 99, "subfiletype": 4, "photometric": "mask"}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in pages:
            tiff.write(**page)
    np.testing.assert_array_equal(open_scan(tmp_path / "a.tif").voxels, RAMP)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("color", [False, True])
def test_big_tiff(tmp_path, byteorder, color):
    pixels = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2) if color else RAMP * np.uint16(200)
    tifffile.imwrite(tmp_path / "a", pixels, bigtiff=True, byteorder=byteorder)
    scan = open_scan(tmp_path / "a")
    assert scan.format == "tiff"
    np.testing.assert_array_equal(scan.voxels, pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_color_modes(tmp_path, mode, compression):
    picture = Image.fromarray(RAMP).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.tif", compression=compression)
    shown = np.array(picture.convert("L") if mode == "1" else picture.convert("RGB"))
    voxels = open_scan(tmp_path / "a.tif").voxels
    np.testing.assert_allclose(voxels, shown if voxels.shape == shown.shape else shown[..., 0], atol=3)


def test_jpeg_in_tiff(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.tif", compression="jpeg", quality=100)
    np.testing.assert_allclose(open_scan(tmp_path / "a.tif").voxels, RAMP, atol=3)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}, {"dtype": "f8"}, {"volumetric": True}])
def test_damage_anywhere_is_an_error_or_a_scan(tmp_path, options):
    path = tmp_path / "a.tif"
    options = dict(options)
    stack = STACK[:6].astype(options.pop("dtype", STACK.dtype))
    tifffile.imwrite(path, stack, **GRAY, **options)
    whole, random = path.read_bytes(), np.random.default_rng(len(options))
    for _ in range(40):
        damaged = bytearray(whole)
        for place in random.integers(4, 500, 3):
            damaged[place] = random.choice([0, 1, 255, random.integers(256)])
        path.write_bytes(damaged[: random.choice([len(whole), random.integers(len(whole))])])
        try:
            open_scan(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")


def test_missing_strips_are_not_filled(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP, rowsperstrip=8)
    assert open_scan(tmp_path / "a.tif").voxels.shape == RAMP.shape
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(300)
    with pytest.raises(InputError, match=r"damaged or cut off \(a page lists 4 of its 38 strips or tiles\)"):
        open_scan(tmp_path / "a.tif")
