"""Headers that are wrong about their pixels: the bits of a value and the number of frames. Right or refused."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.scans.dicom import save_enhanced, save_series, small_volume
from tumorlens.data.dicom.decoding import stored_frames
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan

SYNTAXES = [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]
NAMES = {"ids": lambda syntax: syntax.name}


def smooth(highest, signed=False, seed=0):
    """A picture that rises and falls as tissue does, with noise."""
    row, column = np.mgrid[:64, :72]
    wave = (np.sin(row / 9) * np.cos(column / 11) + 1) / 2
    low = -highest if signed else 0
    noise = np.random.default_rng(seed).normal(0, highest / 200, wave.shape)
    return (low + wave * (highest - low) + noise).round().clip(low, highest).astype(np.int64)


def written(folder, values, syntax, signed=False, **tags):
    """A file with 16 bits for each value, and a header of its own."""
    (path,) = save_series(folder, np.zeros((72, 64, 1), np.int16), np.eye(4))
    ds = pydicom.dcmread(path)
    ds.PixelRepresentation, ds.PixelData = int(signed), (values & 0xFFFF).astype("<u2").tobytes()
    if syntax.is_encapsulated:
        ds.compress(syntax)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path)
    return path


def stored(path):
    return stored_frames(pydicom.dcmread(path), [0])[0]


@pytest.mark.parametrize("syntax", SYNTAXES, **NAMES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [15, 13])
def test_values_in_the_upper_bits_are_moved_down(tmp_path, syntax, signed, high):
    values = smooth(2047 if signed else 4095, signed)
    path = written(tmp_path, values << (high - 11), syntax, signed, BitsStored=12, HighBit=high)
    assert np.array_equal(stored(path), values)


@pytest.mark.parametrize("syntax", SYNTAXES, **NAMES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (16, 11), (16, 12), (12, 7), (16, 7), (12, 99)])
def test_a_wrong_high_bit_changes_nothing_where_the_pixels_show_it(tmp_path, syntax, signed, bits, high):
    values = smooth(2047 if signed else 4095, signed)
    assert np.array_equal(stored(written(tmp_path, values, syntax, signed, BitsStored=bits, HighBit=high)), values)


@pytest.mark.parametrize("syntax", SYNTAXES, **NAMES)
def test_a_high_bit_that_the_pixels_contradict_is_refused(tmp_path, syntax):
    path = written(tmp_path, smooth(60000), syntax, BitsStored=12, HighBit=15)
    with pytest.raises(InputError, match=r"IM0000: the header contradicts itself \(HighBit 15, BitsStored 12\)") as e:
        open_scan(path)
    assert "convert this file again or replace it" in str(e.value)


@pytest.mark.parametrize("syntax", SYNTAXES, **NAMES)
@pytest.mark.parametrize(("signed", "highest"), [(False, 4300), (False, 9000), (False, 60000), (True, 2400)])
def test_more_bits_than_the_header_says_are_refused(tmp_path, syntax, signed, highest):
    """The brightest tissue would turn dark."""
    path = written(tmp_path, smooth(highest, signed), syntax, signed, BitsStored=12, HighBit=11)
    with pytest.raises(InputError, match="the pixels use more bits than the 12 that the header says"):
        open_scan(path)


def test_more_bits_than_the_header_says_are_refused_in_a_lossy_file(tmp_path):
    from pydicom.uid import JPEG2000

    path = written(tmp_path, smooth(60000), JPEG2000Lossless, BitsStored=12, HighBit=11)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEG2000
    ds.save_as(path)
    with pytest.raises(InputError, match="the pixels use more bits than the 12"):
        open_scan(path)


@pytest.mark.parametrize("bit", [12, 13, 15])
def test_an_overlay_above_the_values_is_no_contradiction(tmp_path, bit):
    values = smooth(4095)
    overlay = np.zeros_like(values)
    overlay[10:30, 20:50] = overlay[40:50, ::3] = 1
    assert np.array_equal(
        stored(written(tmp_path, values | overlay << bit, ExplicitVRLittleEndian, BitsStored=12, HighBit=11)), values
    )


# Frames


def enhanced(folder, n_frames, n_groups, n_pixels, syntax=ExplicitVRLittleEndian):
    """An enhanced file that counts, describes and holds other numbers of frames."""
    volume, affine = small_volume(3, (64, 72, 8))
    path = save_enhanced(folder / "a.dcm", volume, affine)
    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[n_groups:]
    ds.NumberOfFrames = n_pixels
    ds.PixelData = ds.PixelData[: n_pixels * 64 * 72 * 2]
    if syntax.is_encapsulated:
        ds.compress(syntax)
    ds.NumberOfFrames = n_frames
    ds.save_as(path)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES, **NAMES)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((6, 8, 8), "the header describes 8 of 6 frames"),
        ((8, 6, 8), "the header describes 6 of 8 frames"),
        ((1, 8, 8), "the header describes 8 of 1 frames"),
        ((8, 8, 6), "the pixel data are damaged or cut off"),
        ((6, 6, 8), r"the pixel data hold (8 frames, the header says 6|\d+ bytes more than 6 frames of)"),
        ((1, 1, 8), r"the pixel data hold (8 frames, the header says 1|\d+ bytes more than 1 frame of)"),
    ],
)
def test_frames_that_are_counted_wrong_are_named(tmp_path, syntax, counts, message):
    with pytest.raises(InputError, match=rf"a\.dcm: {message}"):
        open_scan(enhanced(tmp_path, *counts, syntax))
    assert open_scan(enhanced(tmp_path, 7, 7, 7, syntax)).n_slices == 7


@pytest.mark.parametrize("tags", [{"Rows": 60}, {"Columns": 63}])
def test_a_wrong_size_is_refused(tmp_path, tags):
    path = written(tmp_path, smooth(3000), ExplicitVRLittleEndian, **tags)
    with pytest.raises(InputError, match=r"the pixel data hold \d+ bytes more than 1 frame of \d+ x \d+"):
        open_scan(path)


@pytest.mark.parametrize("rest", [b"\0", b"\0" * 2000, b"\1\2"])
def test_padding_behind_the_pixels_is_allowed(tmp_path, rest):
    values = smooth(3000)
    path = written(tmp_path, values, ExplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    ds.PixelData += rest + b"\0" * (len(rest) % 2)
    ds.save_as(path)
    assert np.array_equal(stored(path), values)


# Value representations and byte order


@pytest.mark.parametrize("vr", ["OB", "OW", "UN"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], **NAMES)
def test_a_wrong_value_representation_of_little_endian_pixels_changes_nothing(tmp_path, vr, syntax):
    values = smooth(3000)
    path = written(tmp_path, values, ExplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    ds["PixelData"].VR = vr
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    assert np.array_equal(stored(path), values)


def big_endian(folder, values, vr, order=">u2"):
    """A big-endian file, whose pixels are in any order of bytes."""
    path = written(folder, values, ExplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    ds.PixelData, ds["PixelData"].VR = values.astype(order).tobytes(), vr
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    plain = pydicom.Dataset({element.tag: element for element in ds})  # pydicom converts no other
    plain.file_meta = ds.file_meta
    pydicom.dcmwrite(path, plain, enforce_file_format=True)
    assert path.read_bytes().endswith(values.astype(order).tobytes())  # pydicom writes what it is given
    return path


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_big_endian_pixels_are_right_or_refused(tmp_path, vr):
    """OB has no byte order: some writers leave such pixels little-endian."""
    values = smooth(3000)
    assert np.array_equal(stored(big_endian(tmp_path / "right", values, vr)), values)
    with pytest.raises(InputError, match="the bytes of the pixels are in another order than the header says"):
        open_scan(big_endian(tmp_path / "swapped", values, vr, "<u2"))


def test_big_endian_pixels_with_empty_low_bytes_are_right(tmp_path):
    values = smooth(255) * 256
    assert np.array_equal(stored(big_endian(tmp_path, values, "OW")), values)


def test_a_mosaic_whose_image_type_was_removed_is_refused(tmp_path):
    path = written(tmp_path, smooth(3000), ExplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 24)
    ds.save_as(path)
    with pytest.raises(InputError, match="Siemens mosaic"):
        open_scan(path)
