"""Masks go back into the source's own geometry, in all 48 orientations."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.data.test_scan import all_orientations, reoriented
from tests.scans.volumes import VOXELS, oblique_affine
from tumorlens.data.formats.nifti import read_nifti
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.write import write_mask_nifti, write_mask_png
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.scan import Scan


@pytest.mark.parametrize("code", all_orientations())
def test_nifti_round_trip(tmp_path, code):
    phantom = phantom_volume(4, "meningioma", shape=(40, 48, 10), spacing_mm=(4, 4, 12))
    voxels, affine = reoriented(phantom.image, phantom.affine, code)
    truth, _ = reoriented(phantom.mask, phantom.affine, code)
    oblique = affine.copy()
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique[:3, :3] = turn @ affine[:3, :3]
    source = nib.Nifti1Image(voxels, oblique)
    source.header.set_sform(oblique, 2)
    source.header.set_qform(affine, 1)  # the two forms differ, as they do after registration
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "scan.nii.gz")

    scan = open_scan(tmp_path / "scan.nii.gz")
    slices = np.stack([scan.view(truth, k) for k in range(scan.n_slices)])
    write_mask_nifti(tmp_path / "mask.nii.gz", scan.mask_from_slices(slices), scan)

    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), truth)
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == voxels.shape
    before = nib.load(tmp_path / "scan.nii.gz").header
    np.testing.assert_allclose(mask.affine, oblique, atol=1e-5)
    np.testing.assert_array_equal(mask.header.get_sform(), before.get_sform())
    np.testing.assert_array_equal(mask.header.get_qform(), before.get_qform())
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (2, 1)
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(mask.header.get_zooms(), before.get_zooms())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_storage_of_the_source_does_not_leak(tmp_path, kind, dtype):
    data = np.random.default_rng(0).integers(0, 99, (6, 7, 8)).astype(dtype)
    source = kind(data, np.diag([1, 2, 3, 1.0]))
    source.header.set_slope_inter(3.0, 100.0)
    source.header["cal_max"] = 1234
    nib.save(source, tmp_path / "scan.nii")
    scan = open_scan(tmp_path / "scan.nii")
    mask = (data > 50).astype(np.uint8)
    write_mask_nifti(tmp_path / "mask.nii.gz", mask, scan)
    again = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(again.get_fdata(), mask)
    assert again.header["cal_max"] == 0
    assert type(again) is kind


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
def test_flat_nifti_keeps_its_shape(tmp_path, shape):
    data = np.arange(42, dtype=np.int16).reshape(shape)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    scan = open_scan(tmp_path / "scan.nii")
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels > 20).astype(np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == shape
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), data > 20)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_masks_hold_no_texts_of_the_source(tmp_path, kind):
    source = kind(VOXELS, oblique_affine())
    header = source.header
    words = {"descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str"} & set(header.keys())
    for field in words:
        header[field] = b"DOE^JANE"
    header["intent_code"], header["intent_p1"] = 5, 7
    for code in (2, 4, 6):  # DICOM, AFNI, comment
        header.extensions.append(nib.nifti1.Nifti1Extension(code, b"DOE^JANE"))
    nib.save(source, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"DOE^JANE") == len(words) + 3
    scan = read_nifti(tmp_path / "a.nii")
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    written = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert b"DOE" not in written
    assert b"JANE" not in written
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert len(mask.header.extensions) == 0
    assert len(written) == mask.header.single_vox_offset + VOXELS.size
    assert mask.header.get_intent()[0] == "none"
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), VOXELS == 999)
    assert len(scan.header.extensions) == 3  # the source's own header stays as it was


def test_a_sheared_affine_has_no_qform(tmp_path):
    sheared = oblique_affine()
    sheared[:3, 0] += 0.2 * sheared[:3, 1]
    scan = Scan(VOXELS, affine=sheared, volume=True, source_shape=VOXELS.shape)
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones(VOXELS.shape, np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(mask.affine, sheared, atol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), np.linalg.norm(sheared[:3, :3], axis=0), atol=1e-5)


def test_mask_png(tmp_path):
    mask = np.eye(5, 9, dtype=np.uint8)
    write_mask_png(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "m.png")), mask * 255)
