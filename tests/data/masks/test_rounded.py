"""Sources whose headers are rounded: their masks open in other programs, and lie where the source lies."""

from __future__ import annotations

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)
from scipy.spatial.transform import Rotation

from tests.scans.volumes import LPS, save_mha, save_nrrd
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.label_maps import write_nrrd_labels, write_slicer_segmentation, write_snap_labels
from tumorlens.data.masks.placed import read_placed_mask
from tumorlens.data.masks.write import write_mask_nifti
from tumorlens.data.scan import shear_deg

SHAPE = (180, 160, 22)
SPACING = np.array([0.9, 1.1, 5.5])
MARK = (171, 12, 19)  # near a corner, where a turn shows most
CORNERS = np.array(np.meshgrid(*((0, n - 1) for n in SHAPE), [1])).reshape(4, -1)
FORMATS = ["sform", "sform of code 2", "nrrd", "mha", "mgz"]
TURNS = [(11, -17, 23), (86, 9, -38), (-171, 13, 174)]  # axial, nearly coronal, and rows that run the other way
WRITERS = {".nii.gz": write_snap_labels, ".nrrd": write_nrrd_labels, ".seg.nrrd": write_slicer_segmentation}


def stated_affine(turn, decimals=3, shear=None):
    """RAS affine of the directions as a header with so many decimals has them."""
    directions = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ (np.eye(3) if shear is None else shear)
    affine = np.eye(4)
    affine[:3, :3] = directions.round(decimals) * SPACING
    affine[:3, 3] = -71.3, -64.2, 11.9
    return affine


def save_source(folder, form, affine, scale=1.0):
    """A volume in a format with the affine as it is. MetaImage and MGH keep directions, here with length `scale`."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[::3, ::2] = 300
    voxels[MARK] = 999
    path = folder / f"scan.{form if form in ('nrrd', 'mha', 'mgz') else 'nii'}"
    lps, data = LPS @ affine[:3], voxels.tobytes("F")
    if form == "nrrd":
        vectors = " ".join(f"({','.join(f'{c:.10g}' for c in lps[:, axis])})" for axis in range(3))
        origin = f"space origin: ({','.join(map(str, lps[:, 3]))})"
        sizes = "sizes: " + " ".join(map(str, SHAPE))
        fields = ("type: short", "dimension: 3", sizes, "endian: little", "encoding: raw")
        return save_nrrd(path, *fields, "space: LPS", f"space directions: {vectors}", origin, data=data)
    if form == "mha":
        matrix = (lps[:, :3] / SPACING * scale).T.ravel()
        return save_mha(
            path,
            data,
            DimSize=" ".join(map(str, SHAPE)),
            ElementSpacing=" ".join(map(str, SPACING)),
            TransformMatrix=" ".join(f"{c:.10g}" for c in matrix),
            Offset=" ".join(map(str, lps[:, 3])),
        )
    if form == "mgz":
        image = nib.MGHImage(voxels, affine)
        image.header["delta"], image.header["Mdc"] = SPACING, (affine[:3, :3] / SPACING).T * scale
        nib.save(image, path)
        return path
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(affine, 2 if form.endswith("2") else 1)
    image.header["pixdim"][1:4] = SPACING
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def apart_mm(affine, other):
    """How far two affines put the corners of the volume from each other."""
    return float(np.linalg.norm(((affine - other) @ CORNERS)[:3], axis=0).max())


def itk_affine(image):
    """The affine to RAS mm by which ITK lays an image."""
    affine = np.eye(4)
    affine[:3, :3] = LPS @ np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = LPS @ image.GetOrigin()
    return affine


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("turn", TURNS)
def test_masks_of_rounded_headers_open_everywhere_and_lie_on_their_source(tmp_path, form, turn):
    stated = stated_affine(turn)
    assert 0.01 < shear_deg(stated) < 0.1  # ITK opens no NIfTI with a sform like this
    path = save_source(tmp_path, form, stated)
    scan = open_scan(path)
    assert scan.warnings == ()
    lengths = SPACING if form in ("mha", "mgz") else np.linalg.norm(stated[:3, :3], axis=0)
    np.testing.assert_allclose(scan.spacing_mm, lengths, rtol=1e-6)
    assert np.argwhere(scan.voxels == 999).tolist() == [list(MARK)]
    mask = (scan.voxels == 999).astype(np.uint8)
    write_mask_nifti(tmp_path / "mask.nii.gz", mask, scan)
    image = nib.load(tmp_path / "mask.nii.gz")
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == (2 if form.endswith("2") else 1)
    if form.startswith("sform"):
        np.testing.assert_array_equal(image.header.get_sform(), nib.load(path).header.get_sform())
    for seen in (image.affine, image.header.get_qform(), scan.affine):
        assert apart_mm(seen, stated) < 0.2
    for suffix, write in WRITERS.items():
        write(tmp_path / f"labels{suffix}", mask, scan, ())
    for name in ("mask.nii.gz", *(f"labels{suffix}" for suffix in WRITERS)):
        by_itk = sitk.ReadImage(str(tmp_path / name))
        assert by_itk[MARK] == 1
        assert apart_mm(itk_affine(by_itk), stated) < 0.2
        np.testing.assert_allclose(by_itk.GetSpacing(), lengths, rtol=1e-5)
        np.testing.assert_array_equal(read_placed_mask(tmp_path / name, scan), mask)
        sitk.WriteImage(by_itk, str(tmp_path / f"edited.{name.split('.')[-1].replace('gz', 'nii.gz')}"))
    for suffix in (".nrrd", ".seg.nrrd"):
        values, header = nrrd.read(str(tmp_path / f"labels{suffix}"))
        assert values[MARK] == 1
        assert apart_mm(np.vstack([LPS @ np.c_[header["space directions"].T, header["space origin"]], [0, 0, 0, 1]]),
                        stated) < 0.2  # fmt: skip
    for edited in ("edited.nii.gz", "edited.nrrd"):  # as a program that is built on ITK saves a corrected mask
        np.testing.assert_array_equal(read_placed_mask(tmp_path / edited, scan), mask)


@pytest.mark.parametrize("form", ["mha", "mgz"])
@pytest.mark.parametrize("scale", [0.998, 1.003])
def test_the_spacing_is_the_header_s_where_directions_are_not_of_length_1(tmp_path, form, scale):
    stated = stated_affine((12, -7, 20), decimals=9)
    scan = open_scan(save_source(tmp_path, form, stated, scale))
    np.testing.assert_allclose(scan.spacing_mm, SPACING, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), SPACING, rtol=1e-6)
    fixed = [0, 0, 0, 1] if form == "mha" else [*(np.array(SHAPE) / 2), 1]  # what the header gives the place of
    expected = (stated @ fixed)[:3]
    if form == "mgz":
        written = nib.load(tmp_path / "scan.mgz")
        expected = written.affine @ fixed
    np.testing.assert_allclose((scan.affine @ fixed)[:3], expected[:3], atol=1e-3)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("degrees", [2, 15])
def test_real_shear_is_kept_and_reported(tmp_path, form, degrees):
    shear = np.array([[1, 0, 0], [0, 1, np.sin(np.radians(degrees))], [0, 0, np.cos(np.radians(degrees))]])
    stated = stated_affine((11, -17, 23), decimals=9, shear=shear)
    scan = open_scan(save_source(tmp_path, form, stated))
    assert scan.warnings == (f"the array axes are sheared by {degrees}.0 degrees; the mask's affine follows the shear",)
    assert apart_mm(scan.affine, stated) < 1e-3
    mask = (scan.voxels == 999).astype(np.uint8)
    write_mask_nifti(tmp_path / "mask.nii.gz", mask, scan)
    image = nib.load(tmp_path / "mask.nii.gz")
    assert apart_mm(image.affine, stated) < 1e-3
    assert int(image.header["qform_code"]) == 0
    with pytest.raises(RuntimeError, match="orthonormal"):  # as it refuses a NIfTI source with this sform
        sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    write_nrrd_labels(tmp_path / "labels.nrrd", mask, scan, ())
    by_itk = sitk.ReadImage(str(tmp_path / "labels.nrrd"))
    assert by_itk[MARK] == 1 and apart_mm(itk_affine(by_itk), stated) < 1e-3


def test_exact_forms_stay_as_they_are(tmp_path):
    """ITK opens a sform of full precision without qform, so the mask gets none."""
    path = save_source(tmp_path, "sform", stated_affine((11, -17, 23), decimals=9))
    scan = open_scan(path)
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    image, source = nib.load(tmp_path / "mask.nii.gz"), nib.load(path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_array_equal(scan.affine, source.affine)
    assert sitk.ReadImage(str(tmp_path / "mask.nii.gz"))[MARK] == 1
