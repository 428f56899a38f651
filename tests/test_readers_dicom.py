"""DICOM series -> Scan: order, geometry, pixel values, transfer syntaxes; dcm2niix as an independent judge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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
from scipy.spatial.transform import Rotation

from data.dicom_source import frames_from_volume, volume_from_frames
from data.errors import InputError
from data.phantom import phantom_volume
from data.readers import open_scan
from tests.dicom_files import PATIENT, planes_of, save_enhanced, save_series

LOSSLESS = (RLELossless, JPEG2000Lossless, JPEGLSLossless)
PLANES = ("axial", "coronal", "sagittal")
DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
_DCM2NIIX = pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")


def rotated(affine, degrees=(12, -7, 20), shift=(3.3, -8.1, 4.7)):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    turn[:3, 3] = shift
    return turn @ affine


def small_volume(seed=0, shape=(20, 24, 9)):
    """Random voxels, so that no flip or swap goes unseen, with an affine of three different spacings."""
    volume = np.random.default_rng(seed).integers(-200, 3000, shape).astype(np.int16)
    return volume, np.array([[1.1, 0, 0, -30], [0, 0.7, 0, -20], [0, 0, 4.5, 10], [0, 0, 0, 1.0]])


def world_of(scan, value):
    (index,) = np.argwhere(scan.voxels == value)
    return scan.affine @ [*index, 1]


def edit(paths, **tags):
    """Set elements in files; a function gets the file's index."""
    for index, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        for name, value in tags.items():
            value = value(index) if callable(value) else value
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        ds.save_as(path)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("oblique", [False, True])
def test_each_voxel_lies_where_it_was(tmp_path, plane, oblique):
    volume, affine = small_volume()
    affine = rotated(affine) if oblique else affine
    volume[3, 17, 2] = 9999  # one voxel of known place
    save_series(tmp_path, volume, affine, plane)
    scan = open_scan(tmp_path)
    assert scan.plane == plane
    assert scan.n_slices == volume.shape[{"sagittal": 0, "coronal": 1, "axial": 2}[plane]]
    np.testing.assert_allclose(world_of(scan, 9999), affine @ [3, 17, 2, 1], atol=1e-4)
    assert np.array_equal(np.sort(scan.voxels, axis=None), np.sort(volume, axis=None))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(scan.voxels), scan.affine))
    assert np.array_equal(np.asarray(canonical.dataobj), volume)
    np.testing.assert_allclose(canonical.affine, affine, atol=1e-4)


@pytest.mark.parametrize("plane", PLANES)
def test_enhanced_multi_frame_is_the_same_volume(tmp_path, plane):
    volume, affine = small_volume()
    save_series(tmp_path / "classic", volume, rotated(affine), plane)
    save_enhanced(tmp_path / "enhanced.dcm", volume, rotated(affine), plane)
    classic, enhanced = open_scan(tmp_path / "classic"), open_scan(tmp_path / "enhanced.dcm")
    assert np.array_equal(classic.voxels, enhanced.voxels)
    np.testing.assert_allclose(classic.affine, enhanced.affine, atol=1e-6)


def test_frames_and_volume_are_inverse():
    frames = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert np.array_equal(frames_from_volume(volume_from_frames(frames)), frames)
    assert volume_from_frames(frames).shape == (4, 3, 2)
    assert volume_from_frames(frames)[1, 2, 0] == frames[0, 0, 1]  # j runs from the bottom row up


@_DCM2NIIX
@pytest.mark.parametrize("plane", [*PLANES, "enhanced"])
def test_dcm2niix_agrees(tmp_path, plane):
    volume, affine = small_volume(shape=(40, 48, 12))
    if plane == "enhanced":
        save_enhanced(tmp_path / "in" / "e.dcm", volume, rotated(affine))
    else:
        save_series(tmp_path / "in", volume, rotated(affine), plane)
    check_against_dcm2niix(tmp_path / "in", tmp_path)


@_DCM2NIIX
@pytest.mark.real
def test_dcm2niix_agrees_on_the_real_series(real, tmp_path):
    scan = check_against_dcm2niix(real / "volumes" / "dicom" / "brainix_t1", tmp_path)
    assert scan.voxels.shape == (512, 512, 22)
    np.testing.assert_allclose(scan.spacing_mm, (0.46875, 0.46875, 6.0), atol=1e-3)


def check_against_dcm2niix(folder, tmp_path):
    scan = open_scan(folder)
    subprocess.run([DCM2NIIX, "-o", tmp_path, "-f", "judge", folder], check=True, capture_output=True)
    (file,) = tmp_path.glob("judge*.nii")
    judge = nib.load(file)
    assert np.abs(judge.affine - scan.affine).max() < 1e-3
    assert np.array_equal(np.asarray(judge.dataobj).squeeze(), scan.voxels)
    return scan


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
    """JPEG lossless and baseline; none of these files is an MR, so the decoder is asked directly."""
    from data.dicom_pixels import stored_frames

    ds = pydicom.dcmread(get_testdata_file(name))
    assert stored_frames(ds, [0])[0].any()


def test_the_order_is_the_position_whatever_names_and_numbers_say(tmp_path):
    volume, affine = small_volume()
    for shuffle in (1, 2):
        save_series(tmp_path / str(shuffle), volume, affine, shuffle=shuffle)
    assert np.array_equal(open_scan(tmp_path / "1").voxels, open_scan(tmp_path / "2").voxels)


def test_rescaling_is_undone_slice_by_slice(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path)
    assert plain.voxels.dtype == np.int16
    edit(paths, RescaleSlope=lambda k: str(1 + k), RescaleIntercept=lambda k: str(10 * k))
    scaled = open_scan(tmp_path)
    k = np.arange(volume.shape[2])
    np.testing.assert_allclose(scaled.voxels, plain.voxels * (1.0 + k) + 10.0 * k)
    assert scaled.voxels.dtype == np.float32


def test_monochrome1_is_turned_over(tmp_path):
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


def test_a_single_image_without_place_is_a_picture(tmp_path):
    volume, affine = small_volume(shape=(20, 24, 1))
    paths = save_series(tmp_path, volume, affine, ImagePositionPatient=None, ImageOrientationPatient=None)
    scan = open_scan(paths[0])
    assert not scan.volume and scan.affine is None
    assert scan.spacing_mm == pytest.approx((0.7, 1.1))
    assert any("place in space" in warning for warning in scan.warnings)


def test_facts_name_no_patient(tmp_path):
    volume, affine = small_volume()
    save_series(tmp_path, volume, affine)
    scan = open_scan(tmp_path)
    assert scan.dicom.facts["weighting"] == "T1" and scan.dicom.facts["contrast_agent"] is True
    assert not any(str(value) in str(scan.dicom.facts) for value in PATIENT.values() if len(str(value)) > 2)
    assert scan.dicom.identifiers["PatientID"] == PATIENT["PatientID"]
    assert not hasattr(scan.dicom.datasets[0], "PixelData")


def test_reading_is_quick(tmp_path):
    """0.3 s for 100 slices of 512 x 512; twice that is allowed for a busy machine, best of three."""
    volume = np.random.default_rng(0).integers(0, 3000, (512, 512, 100)).astype(np.int16)
    save_series(tmp_path, volume, np.diag([0.5, 0.5, 1.5, 1]))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        open_scan(tmp_path)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.6


def test_phantom_lesion_keeps_its_place(tmp_path):
    phantom = phantom_volume(7, "meningioma")
    save_series(tmp_path / "image", phantom.image, phantom.affine, "sagittal")
    save_series(tmp_path / "mask", phantom.mask.astype(np.int16), phantom.affine, "sagittal")
    image, mask = open_scan(tmp_path / "image"), open_scan(tmp_path / "mask")
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-6)
    centre = (image.affine @ [*np.argwhere(mask.voxels).mean(axis=0), 1])[:3]
    truth = (phantom.affine @ [*np.argwhere(phantom.mask).mean(axis=0), 1])[:3]
    np.testing.assert_allclose(centre, truth, atol=1e-3)


def test_planes_of_is_right_itself():
    """The writer of the tests, checked on a volume that can be told by eye."""
    volume = np.zeros((3, 3, 3), np.int16)
    volume[2, 0, 1] = 7  # right, posterior
    frames, positions, orientation, _ = planes_of(volume, np.eye(4))
    assert frames[1, 2, 0] == 7  # bottom row, left column
    assert orientation == pytest.approx([1, 0, 0, 0, 1, 0])
    assert positions[0] == pytest.approx([-2, -2, 0])


def test_a_frame_is_asked_for_only_where_there_are_several(tmp_path):
    volume, affine = small_volume()
    save_series(tmp_path, volume, affine, series="1.2.3", EchoTime="10")
    assert open_scan(tmp_path, frame=3).frame is None
    save_series(tmp_path / "second", volume + 1, affine, series="1.2.3", EchoTime="90")
    with pytest.raises(InputError, match=r"holds 2 volumes at the same place.*--frame 0 to 1"):
        open_scan(tmp_path)
    assert np.array_equal(open_scan(tmp_path, frame=0).voxels + 1, open_scan(tmp_path, frame=1).voxels)
    with pytest.raises(InputError, match="frame 2 does not exist"):
        open_scan(tmp_path, frame=2)


def test_an_incomplete_echo_is_not_filled_up_from_another(tmp_path):
    volume, affine = small_volume()
    first = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    whole = open_scan(tmp_path, frame=0)
    first[4].unlink()
    with pytest.raises(InputError, match="holds 2 volumes"):
        open_scan(tmp_path)
    scan = open_scan(tmp_path, frame=0)
    assert scan.voxels.max() < 5000 and open_scan(tmp_path, frame=1).voxels.min() >= 4800
    kept = [k for k in range(9) if k != 4]
    assert np.array_equal(scan.voxels[..., kept], whole.voxels[..., kept])
    assert scan.dicom.places[4] is None
    assert any("frame 0 lacks 1 of the 9 places" in w for w in scan.warnings)


@pytest.mark.parametrize("name", ["AcquisitionTime", "TriggerTime"])
def test_time_points_are_told_apart_by_their_times(tmp_path, name):
    volume, affine = small_volume()
    for step in range(3):  # the later, the lower the instance numbers: they say nothing
        paths = save_series(tmp_path / str(step), volume % 1000 + 5000 * step, affine, series="1.2.3", shuffle=9 - step)
        edit(paths, **{name: ("1013%02d" if name == "AcquisitionTime" else "%d") % (10 * (step + 1))})
    for step in range(3):
        voxels = open_scan(tmp_path, frame=step).voxels
        assert 5000 * step <= voxels.min() and voxels.max() < 5000 * step + 1000
    with pytest.raises(InputError, match=r"--frame 0 to 2 \(0: .*; 1: .*; 2: "):
        open_scan(tmp_path)


def test_files_that_share_a_uid_but_differ_are_all_read(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path)
    edit(paths, SOPInstanceUID="1.2.3")
    scan = open_scan(tmp_path)
    assert np.array_equal(scan.voxels, plain.voxels)
    assert any("9 files share a SOP Instance UID" in w for w in scan.warnings)


def test_bombs_inside_dicom_are_refused_at_once(tmp_path):
    volume, affine = small_volume(shape=(20, 24, 1))
    (path,) = save_series(tmp_path / "a", volume, affine)
    edit([path], NumberOfFrames=1_900_000_000)
    with pytest.raises(InputError, match="impossible size"):
        open_scan(path)
    ds = pydicom.dcmread(path)
    ds.NumberOfFrames = 1
    ds.add_new((0x0009, 0x0010), "LO", "X")
    ds.add_new((0x0009, 0x1001), "OB", bytes(600 * 2**20))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "bomb.dcm", ds, implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match="would inflate to over 512 MiB"):
        open_scan(tmp_path / "bomb.dcm")


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    paths += save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    edit(paths, AcquisitionNumber=lambda index: index)
    assert open_scan(tmp_path, frame=0).voxels.max() < 5000


@pytest.mark.parametrize("told_by", ["EffectiveEchoTime", "TemporalPositionIndex", "DimensionIndexValues"])
def test_echoes_of_an_enhanced_file_are_told_apart_in_any_order(tmp_path, told_by):
    volume, affine = small_volume()
    path = save_enhanced(tmp_path / "e.dcm", np.concatenate([volume, volume], axis=2), affine)
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array.copy()
    positions = [np.array(g.PlanePositionSequence[0].ImagePositionPatient) for g in ds.PerFrameFunctionalGroupsSequence]
    for f, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        k = round((positions[f][2] - 10) / 4.5)
        echo, place = divmod(k, 9)
        if place % 2:  # which echo comes first alternates, as in interleaved acquisitions
            echo = 1 - echo
        frames[f] = 1000 * (echo + 1) + place
        group.PlanePositionSequence[0].ImagePositionPatient = [*positions[f][:2], 10 + 4.5 * place]
        item = pydicom.Dataset()
        if told_by == "EffectiveEchoTime":
            item.EffectiveEchoTime = 10.0 + 80 * echo
            group.MREchoSequence = [item]
        elif told_by == "TemporalPositionIndex":
            group.FrameContentSequence[0].TemporalPositionIndex = echo + 1
        else:
            group.FrameContentSequence[0].DimensionIndexValues = [1, place + 1, echo + 1]
    ds.PixelData = frames.tobytes()
    ds.save_as(path)
    for frame in (0, 1):
        found = open_scan(path, frame=frame).voxels[0, 0]
        assert found.tolist() == [1000 * (frame + 1) + place for place in range(9)]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_turning_over_does_not_overflow(tmp_path, dtype):
    from data.dicom_pixels import _finished

    limits = np.iinfo(dtype)
    frames = np.array([[[limits.min, 0, limits.max, 7]]], dtype)
    expected = (int(limits.max) + int(limits.min) - frames.astype(int)).astype(dtype)
    assert np.array_equal(_finished(frames.copy(), None, [], [0]), expected)


def test_reading_leaves_the_warning_filters_of_the_program_alone(tmp_path):
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    open_scan(paths[0])
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_scan, paths * 6))
    assert warnings.filters == before


def test_a_damaged_enhanced_header_is_an_input_error(tmp_path):
    volume, affine = small_volume(shape=(8, 8, 6))
    raw = save_enhanced(tmp_path / "e.dcm", volume, affine).read_bytes()
    end, rng = len(raw) - 8 * 8 * 6 * 2, np.random.default_rng(0)
    (tmp_path / "m.dcm").write_bytes(raw)
    for _ in range(400):
        broken = bytearray(raw)
        for at in rng.integers(132, end, rng.integers(1, 5)):
            broken[at] = rng.integers(0, 256)
        (tmp_path / "m.dcm").write_bytes(broken)
        with contextlib.suppress(InputError):
            open_scan(tmp_path / "m.dcm")
