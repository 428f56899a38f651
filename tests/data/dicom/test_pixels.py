"""DICOM pixels: transfer syntaxes, rescaling, photometric interpretation, padding, windows."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.scans.dicom import edit, save_series, small_volume
from tumorlens.data.formats.open import open_scan

LOSSLESS = (RLELossless, JPEG2000Lossless, JPEGLSLossless)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, *LOSSLESS],
    ids=lambda uid: uid.name,
)
def test_lossless_transfer_syntaxes_give_the_same_voxels(tmp_path, syntax):
    volume, affine = small_volume(shape=(72, 64, 4))
    save_series(tmp_path / "plain", volume, affine)
    (tmp_path / "coded").mkdir()
    for path in (tmp_path / "plain").iterdir():
        ds = pydicom.dcmread(path)
        if syntax.is_encapsulated:
            ds.compress(syntax)
            ds.save_as(tmp_path / "coded" / path.name)
        else:
            if syntax == ExplicitVRBigEndian:
                ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
                ds["PixelData"].VR = "OW"
            ds.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(
                tmp_path / "coded" / path.name,
                ds,
                implicit_vr=syntax.is_implicit_VR,
                little_endian=syntax.is_little_endian,
            )
    assert np.array_equal(open_scan(tmp_path / "coded").voxels, open_scan(tmp_path / "plain").voxels)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
    ],
)
def test_files_of_other_writers(name, reference):
    scan, expected = open_scan(get_testdata_file(name)), open_scan(get_testdata_file(reference))
    assert np.array_equal(scan.voxels, expected.voxels)
    assert scan.n_slices == 1 and scan.affine is not None


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "SC_rgb_small_odd_jpeg.dcm"])
def test_jpeg_decoders_are_installed(name):
    """JPEG lossless and baseline; none of these files is an MR, so the test calls the decoder."""
    from tumorlens.data.dicom.decoding import stored_frames

    ds = pydicom.dcmread(get_testdata_file(name))
    assert stored_frames(ds, [0])[0].any()


def test_rescaling_is_applied_slice_by_slice(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path)
    assert plain.voxels.dtype == np.int16
    edit(paths, RescaleSlope=lambda k: str(1 + k), RescaleIntercept=lambda k: str(10 * k))
    scaled = open_scan(tmp_path)
    k = np.arange(volume.shape[2])
    np.testing.assert_allclose(scaled.voxels, plain.voxels * (1.0 + k) + 10.0 * k)
    assert scaled.voxels.dtype == np.float32


def test_monochrome1_is_inverted(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path).voxels.astype(int)
    edit(paths, PhotometricInterpretation="MONOCHROME1")
    inverse = open_scan(tmp_path).voxels.astype(int)
    assert np.array_equal(inverse, plain.max() + plain.min() - plain)
    edit(paths[1:], PhotometricInterpretation="MONOCHROME2")
    mixed = open_scan(tmp_path).voxels.astype(int)
    assert np.array_equal(mixed[..., 1:], plain[..., 1:]) and np.array_equal(mixed[..., 0], inverse[..., 0])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_becomes_air(tmp_path, photometric):
    volume, affine = small_volume()
    padded = volume.copy()
    padded[:5] = -2000
    paths = save_series(tmp_path, padded, affine)
    edit(paths, PhotometricInterpretation=photometric)
    for path in paths:  # its VR depends on the pixels' sign
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.save_as(path)
    voxels = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(open_scan(tmp_path).voxels), affine_of(tmp_path)))
    voxels = np.asarray(voxels.dataobj)
    inside = voxels[5:]
    assert (voxels[:5] == inside.min()).all()
    assert inside.min() == volume[5:].min() and inside.max() == volume[5:].max()


def pad(paths, vr, value, limit=None, **tags):
    """Declare a padding value, whatever its VR; functions and values of tags as in `edit`."""
    edit(paths, **tags)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)
        ds.save_as(path)


def stored_in(folder):
    """The voxels of a series, axes to right, anterior, superior."""
    image = nib.Nifti1Image(np.asarray(open_scan(folder).voxels), affine_of(folder))
    return np.asarray(nib.as_closest_canonical(image).dataobj)


@pytest.mark.parametrize("value", [-1500, -2000, -32768, -1])
def test_signed_padding_that_is_declared_unsigned(tmp_path, value):
    volume, affine = small_volume()
    volume = np.abs(volume)
    volume[:4] = value
    pad(save_series(tmp_path, volume, affine), "US", value % 2**16)
    assert any("PixelPaddingValue" in note for note in open_scan(tmp_path).notes)
    assert np.array_equal(stored_in(tmp_path), np.where(volume == value, volume[4:].min(), volume))


def test_unsigned_padding_that_is_declared_signed(tmp_path):
    volume, affine = small_volume()
    volume = np.abs(volume)
    expected = np.where(np.arange(20)[:, None, None] < 3, volume[3:].min(), volume)
    volume[:3] = -536
    pad(save_series(tmp_path, volume, affine), "SS", -536, PixelRepresentation=0)  # stored as 65000
    assert np.array_equal(stored_in(tmp_path), expected)


def test_a_range_of_padding_that_is_declared_unsigned(tmp_path):
    volume, affine = small_volume()
    volume = np.abs(volume)
    expected = np.where(np.arange(20)[:, None, None] < 3, volume[3:].min(), volume)
    volume[:3] = np.random.default_rng(1).integers(-1300, -1200, volume[:3].shape)
    pad(save_series(tmp_path, volume, affine), "US", 2**16 - 1300, limit=2**16 - 1200)
    assert np.array_equal(stored_in(tmp_path), expected)


def test_padding_beyond_the_stored_bits(tmp_path):
    """-2000 in 12 of 16 bits, of which the upper four are cut off when pixels are decoded."""
    volume, affine = small_volume()
    volume = np.abs(volume).clip(0, 2000)
    expected = np.where(np.arange(20)[:, None, None] < 3, volume[3:].min(), volume)
    volume[:3] = -2000
    pad(save_series(tmp_path, volume, affine), "SS", -2000, BitsStored=12, HighBit=11)
    assert np.array_equal(stored_in(tmp_path), expected)
    pad(save_series(tmp_path, volume, affine), "US", 2096, BitsStored=12, HighBit=11)
    assert np.array_equal(stored_in(tmp_path), expected)


def test_tissue_that_holds_the_padding_value_stays(tmp_path):
    volume, affine = small_volume()
    volume[volume == 0] = 1
    volume[:6] = 0
    volume[10, 7:20:3] = 0
    pad(save_series(tmp_path, volume, affine), "SS", 0)
    voxels = stored_in(tmp_path)
    assert (voxels[:6] == volume.min()).all() and np.array_equal(voxels[6:], volume[6:])


def test_padding_of_slices_with_different_slopes(tmp_path):
    volume, affine = small_volume()
    volume = np.abs(volume) + 10
    volume[:5] = -700
    slopes = 1 + 0.25 * np.arange(volume.shape[2])
    pad(save_series(tmp_path, volume, affine), "US", 2**16 - 700, RescaleSlope=lambda k: f"{slopes[k]}")
    voxels = stored_in(tmp_path)
    inside = volume[5:] * slopes
    np.testing.assert_allclose(voxels[5:], inside)
    np.testing.assert_allclose(voxels[:5], inside.min())


def affine_of(folder):
    return open_scan(folder).affine


def test_unsigned_and_overlay_bits(tmp_path):
    """12 stored bits with rubbish in the upper four, as old overlays left it."""
    volume, affine = small_volume()
    volume = np.abs(volume).clip(0, 4095)
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path).voxels.astype(int)
    for path in paths:
        ds = pydicom.dcmread(path)
        stored = np.frombuffer(ds.PixelData, "<u2") | 0x3000
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PixelData = 12, 11, 0, stored.astype("<u2").tobytes()
        ds.save_as(path)
    assert np.array_equal(open_scan(tmp_path).voxels.astype(int), plain)


def test_the_window_travels_and_is_used_for_the_overlay_only(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    edit(paths, WindowCenter=lambda k: str(500 + k), WindowWidth="400")
    scan = open_scan(tmp_path)
    assert scan.windows[3] == pytest.approx((503 - 0.5 - 399 / 2, 503 - 0.5 + 399 / 2))
    assert scan.voxels.max() > 2000


def test_a_file_without_preamble_is_dicom(tmp_path):
    volume, affine = small_volume(shape=(20, 24, 1))
    (path,) = save_series(tmp_path / "a", volume, affine)
    ds = pydicom.dcmread(path)
    bare = tmp_path / "bare"
    pydicom.dcmwrite(bare, ds_without_meta(ds), implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(open_scan(bare).voxels, open_scan(path).voxels)


def ds_without_meta(ds):
    plain = pydicom.dataset.Dataset()
    plain.update({element.tag: element for element in ds})
    return plain


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_inversion_does_not_overflow(tmp_path, dtype):
    from tumorlens.data.dicom.pixels import _finished

    limits = np.iinfo(dtype)
    frames = np.array([[[limits.min, 0, limits.max, 7]]], dtype)
    expected = (int(limits.max) + int(limits.min) - frames.astype(int)).astype(dtype)
    assert np.array_equal(_finished(frames.copy(), None, [], [0]), expected)
