"""DICOM headers that are rounded: right angles and the header's spacing; and shear that rounding does not explain."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tests.data.dicom.test_reader import rotated
from tests.scans.dicom import save_series
from tumorlens.data.dicom.derived import Algorithm
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.placed import read_mask_dicom
from tumorlens.data.masks.write import write_mask_nifti
from tumorlens.data.scan import shear_deg
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions

PRECISE = 9


def save_rounded(folder, shape, spacing, plane="axial", cosines=PRECISE, positions=PRECISE, length=1.0, tilt=0.0):
    """An oblique series whose header is rounded to so many decimals, and its images sheared by so many degrees."""
    volume = np.random.default_rng(2).integers(0, 900, shape).astype(np.int16)
    paths = save_series(folder, volume, rotated(np.diag([*spacing, 1.0]), (9, -14, 17), (-61.37, -58.11, 9.73)), plane)
    first = None
    for path in paths:
        ds = pydicom.dcmread(path)
        place, directions = np.array(ds.ImagePositionPatient, float), np.array(ds.ImageOrientationPatient, float)
        first = place if first is None else first
        place += directions[3:] * np.linalg.norm(place - first) * np.tan(np.radians(tilt))
        ds.ImageOrientationPatient = [f"{c * length:.{cosines}f}" for c in directions]
        ds.ImagePositionPatient = [f"{p:.{positions}f}" for p in place]
        ds.save_as(path)
    return volume


def corners_apart_mm(affine, other, shape):
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), [1])).reshape(4, -1)
    return float(np.linalg.norm(((affine - other) @ corners)[:3], axis=0).max())


CASES = [  # shape, spacing, and what is rounded
    ((96, 80, 24), (0.8, 0.8, 5.0), {"cosines": 3}),
    ((96, 80, 24), (0.8, 0.9, 5.5), {"positions": 1}),
    ((96, 80, 24), (0.47, 0.47, 6.0), {"cosines": 3, "positions": 1}),
    ((64, 60, 90), (1.0, 1.0, 1.0), {"cosines": 3, "positions": 1}),
    ((96, 80, 3), (0.8, 0.8, 3.0), {"positions": 1}),  # tilts by up to a degree
    ((96, 80, 2), (0.7, 0.7, 4.0), {"cosines": 4, "positions": 1}),
    ((96, 80, 4), (0.8, 0.8, 3.0), {"positions": 2, "cosines": 2}),
    ((96, 80, 20), (0.8, 0.8, 5.0), {"length": 0.998}),
    ((96, 80, 20), (0.8, 0.8, 5.0), {"length": 1.004, "cosines": 3}),
    ((96, 80, 1), (0.8, 0.8, 5.0), {"cosines": 3}),
]


@pytest.mark.parametrize(("shape", "spacing", "rounded"), CASES)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_rounded_headers_give_right_angles_and_the_header_s_spacing(tmp_path, plane, shape, spacing, rounded):
    if plane == "sagittal":  # the slices lie across the first axis
        shape, spacing = (shape[2], *shape[:2]), (spacing[2], *spacing[:2])
    save_rounded(tmp_path / "precise", shape, spacing, plane)
    save_rounded(tmp_path / "in", shape, spacing, plane, **rounded)
    precise, scan = open_scan(tmp_path / "precise"), open_scan(tmp_path / "in")
    assert scan.warnings == ()
    assert shear_deg(scan.affine) < 1e-4
    assert scan.plane == plane and scan.n_slices == precise.n_slices
    np.testing.assert_array_equal(scan.voxels, precise.voxels)
    np.testing.assert_allclose(scan.spacing_mm, precise.spacing_mm, rtol=1e-3)
    off = 0.15 if rounded.get("cosines") != 2 else 0.6
    assert corners_apart_mm(scan.affine, precise.affine, scan.voxels.shape) < off

    mask = np.zeros(scan.voxels.shape, np.uint8)
    mask[20:50, 30:45] = 1
    (lesion,), (other,) = (measure_lesions(number_lesions(mask, s), s) for s in (scan, precise))
    assert lesion.volume_mm3 == pytest.approx(other.volume_mm3, rel=1e-3)

    write_mask_nifti(tmp_path / "mask.nii.gz", mask, scan)
    image, by_itk = nib.load(tmp_path / "mask.nii.gz"), sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(by_itk.GetSpacing(), precise.spacing_mm, rtol=1e-3)
    for index in ((20, 30, 0), (49, 44, scan.voxels.shape[2] - 1)):
        place = (precise.affine @ [*index, 1])[:3] * (-1, -1, 1)
        assert np.linalg.norm(by_itk.TransformIndexToPhysicalPoint(index) - place) < off
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk).T, mask)

    write_mask_dicom(tmp_path / "mask.dcm", mask.astype(np.int32), scan, "glioma", Algorithm("a", "1"))
    np.testing.assert_array_equal(read_mask_dicom(tmp_path / "mask.dcm", scan), mask)


@pytest.mark.parametrize(
    ("n", "distance", "tilt", "decimals"),
    [(24, 5.0, 1.5, 1), (24, 5.0, 0.4, PRECISE), (60, 1.5, 0.6, 1), (3, 3.0, 4.0, 1), (3, 3.0, 1.0, PRECISE)],
)
def test_shear_that_rounding_does_not_explain_is_kept(tmp_path, n, distance, tilt, decimals):
    save_rounded(tmp_path, (64, 60, n), (0.9, 0.9, distance), positions=decimals, tilt=tilt)
    scan = open_scan(tmp_path)
    (warning,) = scan.warnings
    assert "(gantry tilt); the mask's affine follows the shear" in warning
    assert float(warning.split("sheared by ")[1].split()[0]) == pytest.approx(tilt, abs=1.5 if n == 3 else 0.15)
    assert shear_deg(scan.affine) == pytest.approx(tilt, abs=1.5 if n == 3 else 0.15)
