"""Decoding of compressed pixels: in worker processes, frame by frame, and only the bits that are stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.scans.dicom import edit, save_enhanced, save_killer, save_series, small_volume
from tumorlens.data.dicom import decoding
from tumorlens.data.dicom.decoding import decode, prepare_decoders, stored_frames
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.workers import isolation

COMPRESSED = [JPEG2000Lossless, JPEGLSLossless]
NAMES = {"ids": lambda uid: uid.name}


def coded(folder, pixels, syntax, bits=16, **tags):
    """The path of a file whose pixels are compressed as if `bits` were stored, whatever its header then says."""
    (path,) = save_series(folder, np.zeros((*pixels.shape[::-1], 1), np.int16), np.eye(4))
    ds = pydicom.dcmread(path)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    if syntax.is_encapsulated:
        ds.compress(syntax)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [*COMPRESSED, RLELossless, ExplicitVRLittleEndian], **NAMES)
@pytest.mark.parametrize(("bits", "signed"), [(12, False), (10, False), (12, True), (13, True)])
def test_bits_above_the_stored_ones_are_not_values(tmp_path, syntax, bits, signed):
    """Old archives keep overlays there."""
    random = np.random.default_rng(bits)
    low = -(2 ** (bits - 1)) if signed else 0
    values = random.integers(low, low + 2**bits, (64, 72))
    overlay = random.integers(0, 2, values.shape) << (bits + 1)
    pixels = ((values & (2**bits - 1)) | overlay).astype("<u2").view("<i2" if signed else "<u2")
    path = coded(tmp_path, pixels, syntax, BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(stored_frames(pydicom.dcmread(path), [0])[0], values)
    assert np.array_equal(np.sort(open_scan(path).voxels, axis=None), np.sort(values, axis=None))


@pytest.mark.parametrize("overlay_bit", [None, 14])
def test_a_lossy_codec_does_not_turn_white_to_black(tmp_path, overlay_bit):
    """It overshoots the highest value that is stored. A header that speaks of an overlay takes all bits above away."""
    values = np.full((64, 72), 4095, np.uint16)
    values[:, ::2] = 4093
    over = values + np.uint16(4)  # 4099 and 4097
    ds = pydicom.dcmread(coded(tmp_path, over, JPEGLSLossless, BitsStored=12, HighBit=11))
    ds.file_meta.TransferSyntaxUID = JPEGLSNearLossless  # which may code without a loss, too
    if overlay_bit:
        ds.add_new((0x6000, 0x0102), "US", overlay_bit)
    expected = np.full_like(values, 4095) if overlay_bit is None else over & 4095
    assert np.array_equal(stored_frames(ds, [0])[0], expected)


@pytest.mark.parametrize("bits", [12, 16])
def test_lossy_frames_are_those_of_pydicom(tmp_path, bits):
    pixels = (np.add.outer(np.arange(64), np.arange(72)) * 20).astype(np.uint16)
    ds = pydicom.dcmread(coded(tmp_path, pixels, ExplicitVRLittleEndian, bits))
    ds.compress(JPEG2000, j2k_cr=[8])
    assert np.array_equal(stored_frames(ds, [0])[0], ds.pixel_array)


@pytest.mark.parametrize("syntax", COMPRESSED, **NAMES)
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_frames_are_decoded_in_groups(tmp_path, monkeypatch, syntax, at_once):
    volume, affine = small_volume(3, (64, 72, 8))
    path = save_enhanced(tmp_path / "a.dcm", volume, affine)
    plain = open_scan(path).voxels
    ds = pydicom.dcmread(path)
    ds.compress(syntax)
    ds.save_as(path)
    calls = []

    def isolated(function, *args, size):
        calls.append(args[1]["number_of_frames"])
        return isolation.isolated(function, *args, size=size)

    monkeypatch.setattr(decoding, "isolated", isolated)
    monkeypatch.setattr(decoding, "_AT_ONCE", at_once * 64 * 72 * 2)
    assert np.array_equal(open_scan(path).voxels, plain)
    assert sum(calls) == 8 and max(calls) == min(8, at_once)
    assert np.array_equal(stored_frames(ds, [5, 2])[1], ds.pixel_array[2])


def test_frames_that_are_not_there_are_damage(tmp_path):
    volume, affine = small_volume(3, (64, 72, 4))
    ds = pydicom.dcmread(save_enhanced(tmp_path / "a.dcm", volume, affine))
    ds.compress(JPEG2000Lossless)
    ds.NumberOfFrames = 9
    with pytest.raises(InputError, match=r"a\.dcm: the pixel data are damaged or cut off; delete or replace this file"):
        stored_frames(ds, list(range(9)))


@pytest.mark.parametrize("syntax", COMPRESSED, **NAMES)
@pytest.mark.parametrize("cut", [0.1, 0.8])
def test_pixels_that_are_cut_off(tmp_path, syntax, cut):
    pixels = np.random.default_rng(0).integers(0, 4000, (64, 72), np.uint16)
    ds = pydicom.dcmread(coded(tmp_path, pixels, syntax))
    ds.PixelData = ds.PixelData[: int(len(ds.PixelData) * cut)]
    with pytest.raises(InputError, match=r"the pixel data are damaged|cannot be decoded"):
        stored_frames(ds, [0])


@pytest.mark.parametrize("death", ["abort", "spin"])
def test_a_decoder_that_dies_names_the_file(tmp_path, monkeypatch, death):
    from tests.scans import decoders

    volume, affine = small_volume(0, (64, 72, 5))
    paths = save_series(tmp_path / "series", volume, affine)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.compress(JPEG2000Lossless)
        ds.save_as(path)
    killer = pydicom.dcmread(paths[3]).PixelData

    def isolated(function, *args, size):
        if args[2] == killer:
            return isolation.isolated(getattr(decoders, death), size=size)
        return isolation.isolated(function, *args, size=size)

    monkeypatch.setattr(decoding, "isolated", isolated)
    monkeypatch.setattr(isolation, "_SECONDS", 2.0)
    why = {"abort": r"the decoder crashed on this file \(SIGABRT\)", "spin": "the decoder did not end within 2 s"}[
        death
    ]
    with pytest.raises(InputError, match=rf"series: {paths[3].name}: {why}"):
        open_scan(tmp_path / "series")


def test_a_damaged_file_that_crashes_gdcm(tmp_path):
    """gdcm throws an exception that nothing catches: without a worker, this process would end here."""
    path = save_killer(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm: .*(crashed on this file|cannot be decoded)"):
        open_scan(path)
    assert open_scan(get_testdata_file("MR_small_jp2klossless.dcm")).voxels.shape == (64, 64, 1)


def test_only_compressed_pixels_start_a_worker(tmp_path):
    volume, affine = small_volume(0, (64, 72, 3))
    isolation._end_all()
    isolation._idle.clear()
    for syntax in (None, RLELossless):
        for path in save_series(tmp_path / str(syntax), volume, affine):
            if syntax:
                ds = pydicom.dcmread(path)
                ds.compress(syntax, encoding_plugin="pydicom")
                ds.save_as(path)
            prepare_decoders(path.read_bytes()[:560])
        open_scan(tmp_path / str(syntax))
    assert not isolation._workers
    prepare_decoders(Path(get_testdata_file("MR_small_jp2klossless.dcm")).read_bytes()[:560])
    assert len(isolation._workers) == 1


def test_a_worker_sees_the_pixels_and_nothing_else_of_the_header(monkeypatch):
    seen = []
    monkeypatch.setattr(decoding, "isolated", lambda function, *args, size: seen.append(args) or decode(*args))
    ds = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    stored_frames(ds, [0])
    ((_, options, pixels),) = seen
    assert pixels == ds.PixelData
    assert set(options) <= {
        *("samples_per_pixel", "photometric_interpretation", "planar_configuration", "number_of_frames"),
        *("rows", "columns", "bits_allocated", "bits_stored", "pixel_representation", "extended_offsets"),
    }


def test_high_throughput_jpeg_2000_is_known():
    assert decoding._needs_decoder(HTJ2KLossless)
    assert not any(decoding._needs_decoder(uid) for uid in ("1.2.840.10008.1.2.1.99", "1.2.3.4", "", None))


def test_a_broken_element_is_damage(tmp_path):
    path = coded(tmp_path, np.arange(6400, dtype=np.uint16).reshape(80, 80), JPEG2000Lossless)
    edit([path], BitsStored=40)
    with pytest.raises(InputError, match="the pixel data are damaged"):
        open_scan(path)


def test_the_worker_of_a_dicom_file_loads_no_opencv_and_no_torch():
    code = "import sys; from tumorlens.data.dicom.decoding import load_decoders; load_decoders(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("cv2", "torch", "openvino", "scipy", "nibabel") if name in loaded.split()]
