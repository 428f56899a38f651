"""DICOM series -> Scan: order and geometry; dcm2niix as an independent judge."""

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
from scipy.spatial.transform import Rotation

from tests.scans.dicom import PATIENT, edit, planes_of, save_enhanced, save_series, small_volume
from tumorlens.data.dicom.source import frames_from_volume, volume_from_frames
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_volume

PLANES = ("axial", "coronal", "sagittal")
DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
_DCM2NIIX = pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")


def rotated(affine, degrees=(12, -7, 20), shift=(3.3, -8.1, 4.7)):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    turn[:3, 3] = shift
    return turn @ affine


def world_of(scan, value):
    (index,) = np.argwhere(scan.voxels == value)
    return scan.affine @ [*index, 1]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("oblique", [False, True])
def test_each_voxel_keeps_its_place(tmp_path, plane, oblique):
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


@_DCM2NIIX
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("descending", [False, True])
def test_dcm2niix_turns_3d_acquisitions(tmp_path, plane, descending):
    """It writes them in the order right, anterior, superior; with ``-x i`` it does not turn them."""
    volume, affine = small_volume(shape=(40, 48, 12))
    paths = save_series(tmp_path / "in", volume, rotated(affine), plane, MRAcquisitionType="3D")
    edit(paths, InstanceNumber=lambda index: len(paths) - index if descending else index + 1)
    scan = open_scan(tmp_path / "in")
    judge = dcm2niix(tmp_path / "in", tmp_path)
    turned = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(scan.voxels), scan.affine))
    assert nib.aff2axcodes(judge.affine) == ("R", "A", "S") != nib.aff2axcodes(scan.affine)
    np.testing.assert_allclose(judge.affine, turned.affine, atol=1e-3)
    assert np.array_equal(np.asarray(judge.dataobj), np.asarray(turned.dataobj))
    check_against_dcm2niix(tmp_path / "in", tmp_path / "in", "-x", "i")


def check_against_dcm2niix(folder, tmp_path, *options):
    scan = open_scan(folder)
    judge = dcm2niix(folder, tmp_path, *options)
    assert np.abs(judge.affine - scan.affine).max() < 1e-3
    assert np.array_equal(np.asarray(judge.dataobj).squeeze(), scan.voxels)
    return scan


def dcm2niix(folder, out, *options):
    subprocess.run([DCM2NIIX, *options, "-o", out, "-f", "judge", folder], check=True, capture_output=True)
    (file,) = out.glob("judge*.nii")
    return nib.load(file)


def test_the_order_is_the_position_not_the_names_and_numbers(tmp_path):
    volume, affine = small_volume()
    for shuffle in (1, 2):
        save_series(tmp_path / str(shuffle), volume, affine, shuffle=shuffle)
    assert np.array_equal(open_scan(tmp_path / "1").voxels, open_scan(tmp_path / "2").voxels)


def test_a_single_image_without_place_is_a_picture(tmp_path):
    volume, affine = small_volume(shape=(20, 24, 1))
    paths = save_series(tmp_path, volume, affine, ImagePositionPatient=None, ImageOrientationPatient=None)
    scan = open_scan(paths[0])
    assert not scan.volume and scan.affine is None
    assert scan.spacing_mm == pytest.approx((0.7, 1.1))
    assert any("place in space" in warning for warning in scan.warnings)


def test_facts_do_not_name_the_patient(tmp_path):
    volume, affine = small_volume()
    save_series(tmp_path, volume, affine)
    scan = open_scan(tmp_path)
    assert scan.dicom.facts["weighting"] == "T1" and scan.dicom.facts["contrast_agent"] is True
    assert not any(str(value) in str(scan.dicom.facts) for value in PATIENT.values() if len(str(value)) > 2)
    assert scan.dicom.identifiers["PatientID"] == PATIENT["PatientID"]
    assert not hasattr(scan.dicom.datasets[0], "PixelData")


@pytest.mark.slow
def test_reading_is_quick(tmp_path):
    """100 slices of 512 x 512 take at most four times as long as pydicom takes for their headers and pixels."""
    volume = np.random.default_rng(0).integers(0, 3000, (512, 512, 100)).astype(np.int16)
    paths = save_series(tmp_path, volume, np.diag([0.5, 0.5, 1.5, 1]))

    def seconds(read):
        begun = time.process_time()
        read()
        return time.process_time() - begun

    ours = min(seconds(lambda: open_scan(tmp_path)) for _ in range(3))
    assert ours < 4 * min(seconds(lambda: [pydicom.dcmread(path).pixel_array for path in paths]) for _ in range(3))


def test_phantom_lesion_keeps_its_place(tmp_path):
    phantom = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))
    save_series(tmp_path / "image", phantom.image, phantom.affine, "sagittal")
    save_series(tmp_path / "mask", phantom.mask.astype(np.int16), phantom.affine, "sagittal")
    image, mask = open_scan(tmp_path / "image"), open_scan(tmp_path / "mask")
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-6)
    center = (image.affine @ [*np.argwhere(mask.voxels).mean(axis=0), 1])[:3]
    truth = (phantom.affine @ [*np.argwhere(phantom.mask).mean(axis=0), 1])[:3]
    np.testing.assert_allclose(center, truth, atol=1e-3)


def test_the_writer_of_the_tests_is_right():
    """Checked on a volume of one bright voxel."""
    volume = np.zeros((3, 3, 3), np.int16)
    volume[2, 0, 1] = 7  # right, posterior
    frames, positions, orientation, _ = planes_of(volume, np.eye(4))
    assert frames[1, 2, 0] == 7  # bottom row, left column
    assert orientation == pytest.approx([1, 0, 0, 0, 1, 0])
    assert positions[0] == pytest.approx([-2, -2, 0])


def test_files_that_share_a_uid_but_differ_are_all_read(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path, volume, affine)
    plain = open_scan(tmp_path)
    edit(paths, SOPInstanceUID="1.2.3")
    scan = open_scan(tmp_path)
    assert np.array_equal(scan.voxels, plain.voxels)
    assert any("9 files share a SOP Instance UID" in w for w in scan.warnings)
    (tmp_path / "copy").write_bytes(paths[2].read_bytes())  # with the first of three places under one UID in between
    assert "1 file is a copy of others and left out" in open_scan(tmp_path).warnings


def test_files_without_a_uid_do_not_share_one(tmp_path):
    volume, affine = small_volume()
    edit(save_series(tmp_path, volume, affine), SOPInstanceUID=None)
    scan = open_scan(tmp_path)
    assert scan.n_slices == 9 and not any("UID" in w for w in scan.warnings)


def test_an_impossible_number_of_frames_is_refused_at_once(tmp_path):
    volume, affine = small_volume(shape=(20, 24, 1))
    (path,) = save_series(tmp_path, volume, affine)
    edit([path], NumberOfFrames=1_900_000_000)
    with pytest.raises(InputError, match="impossible size"):
        open_scan(path)


@pytest.mark.parametrize("times", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_a_damaged_enhanced_header_is_an_input_error(tmp_path, times):
    volume, affine = small_volume(shape=(8, 8, 6))
    raw = save_enhanced(tmp_path / "e.dcm", volume, affine).read_bytes()
    end, rng = len(raw) - 8 * 8 * 6 * 2, np.random.default_rng(0)
    (tmp_path / "m.dcm").write_bytes(raw)
    for _ in range(times):
        broken = bytearray(raw)
        for at in rng.integers(132, end, rng.integers(1, 5)):
            broken[at] = rng.integers(0, 256)
        (tmp_path / "m.dcm").write_bytes(broken)
        with contextlib.suppress(InputError):
            open_scan(tmp_path / "m.dcm")
