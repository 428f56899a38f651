"""Lengths that no head can have: they are reported, decide nothing and measure nothing."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tests.pipeline.fixed import SIZE, fixed_pipeline
from tests.scans.dicom import edit, save_series
from tests.scans.volumes import save_as
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.measurements.size import impossible_head, impossible_voxels
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.write import write_result

VOLUME = phantom_volume(11, "glioma", shape=(60, 70, 14), spacing_mm=(3.2, 3.2, 9.0))
IN_MM = ("area_mm2", "longest_diameter_mm", "perpendicular_diameter_mm", "volume_mm3", "volume_ml", "axial_longest_mm")
PLACES = ("axial_perpendicular_mm", "centroid_ras_mm", "side")


def scaled(*factors):
    """The volume with another size in its header, along each axis."""
    return VOLUME.affine @ np.diag([*factors, 1.0])


def doubt_of(voxels, affine=None, spacing_mm=None):
    return prepare(Scan.from_array(voxels, affine, spacing_mm), SIZE).size_doubt


# ---- what is impossible ----


@pytest.mark.parametrize("factor", [0.5, 0.75, 1, 1.5, 1.9])
def test_lengths_that_a_head_can_have_are_believed(factor):
    """An infant's head, a cut one, and one that was enlarged by mistake: nothing is certain there."""
    assert doubt_of(VOLUME.image, scaled(factor, factor, factor)) is None


@pytest.mark.parametrize(
    ("factor", "width"), [(1e-6, "0.00017"), (1e-3, "0.17"), (0.1, "17"), (0.2, "3"), (10, "1"), (1000, "1")]
)
def test_a_head_of_another_unit_is_reported_with_its_width(factor, width):
    doubt = doubt_of(VOLUME.image, scaled(factor, factor, factor))
    assert doubt.startswith(f"the head would be {width}") and " mm wide (heads are about 110 to 260 mm)" in doubt
    assert "nothing is measured in mm or ml" in doubt


@pytest.mark.parametrize(("width_mm", "believed"), [(39, False), (41, True), (349, True), (351, False)])
def test_the_width_is_the_diameter_of_a_disk_with_the_heads_area(width_mm, believed):
    scan = Scan.from_array(np.zeros((90, 90)), spacing_mm=(2.0, 0.5))
    assert (impossible_head(scan, np.pi * width_mm**2 / 4, 1) is None) == believed


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_every_plane_sees_the_wrong_unit(plane):
    head = phantom_volume(5, "meningioma", shape=(72, 84, 72), spacing_mm=(2.0, 2.0, 2.0))
    for factor, wrong in ((1, False), (0.1, True), (25.4, True)):
        scan = open_source(
            Scan.from_array(head.image, head.affine @ np.diag([factor] * 3 + [1])), RunOptions(plane=plane)
        )
        assert (prepare(scan, SIZE).size_doubt is not None) == wrong


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (500, "the voxels would be 3.2 x 3.2 x 4500 mm in size"),
        (0.001, "the voxels would be 3.2 x 3.2 x 0.009 mm in size"),
        (0.005, "the slices would lie 0.045 mm apart"),
        (12, "the slices would lie 108 mm apart"),
        (4, "the slices would lie 36 mm apart"),
        (2, None),
        (0.1, None),
        (0.02, "the slices would lie 0.18 mm apart"),
    ],
)
def test_a_slice_distance_that_is_wrong_alone_is_reported(factor, text):
    doubt = doubt_of(VOLUME.image, scaled(1, 1, factor))
    assert doubt is None if text is None else doubt.startswith(text)


def test_a_head_of_too_many_slices_is_reported():
    scan = Scan.from_array(np.zeros((60, 60, 31)), spacing_mm=(3.0, 3.0, 20.0))
    assert impossible_head(scan, 1500.0, 26) is None
    assert impossible_head(scan, 1500.0, 27).startswith("the head would reach over 520 mm of slices")


def test_pictures_are_checked_where_their_pixel_size_is_known():
    image = phantom_slice(4, "pituitary", size=200, pixel_mm=1.1).image
    assert doubt_of(image) is None and doubt_of(image, spacing_mm=(1.1, 1.1)) is None
    assert "mm wide" in doubt_of(image, spacing_mm=(0.0011, 0.0011))
    assert doubt_of(image, spacing_mm=(1.1, 1100.0)).startswith("the pixels would be 1.1 x 1100 mm in size")


def test_what_no_head_was_found_in_has_no_width():
    scan = Scan.from_array(np.zeros((50, 50)), spacing_mm=(500.0, 500.0))
    assert impossible_head(scan, 0.0, 1) is None
    assert impossible_voxels(scan) is None


def test_a_sides_ratio_that_no_voxel_has_does_not_stretch_the_slices():
    """It would also choose the wrong plane: the coarsest axis is taken for that across the slices."""
    case = prepare(Scan.from_array(VOLUME.image, scaled(1000, 1, 1)), SIZE)
    assert case.size_doubt.startswith("the voxels would be 3200 x 3.2 x 9 mm")
    assert (case.scan.slice_axis, case.scan.plane, case.scan.pixel_aspect) == (2, "axial", 1)
    upright = prepare(VOLUME.scan, SIZE)
    assert np.abs(case.prepared[7].image.astype(int) - upright.prepared[7].image).mean() < 12


# ---- what it does to a result ----


@pytest.mark.parametrize("factor", [1e-3, 0.04, 40, 1e3])
def test_a_wrong_unit_changes_neither_label_nor_mask_nor_a_files_affine(tmp_path, factor):
    """Lesions under 100 mm3 are dropped, and the reach is in mm: neither may depend on such a size."""
    path = tmp_path / "wrong.nii.gz"
    nib.save(nib.Nifti1Image(VOLUME.image, scaled(factor, factor, factor)), path)
    right, wrong = fixed_pipeline().run(VOLUME.scan), fixed_pipeline().run(path)
    assert (wrong.label, wrong.probabilities) == (right.label, right.probabilities)
    assert wrong.mask.sum() > 0
    np.testing.assert_array_equal(wrong.mask, right.mask)
    assert any("the lengths in the file are wrong" in reason for reason in wrong.review)
    assert not any("the lengths in the file" in reason for reason in right.review)
    assert (wrong.tumor_volume_mm3, wrong.tumor_area_mm2) == (None, None) and right.tumor_volume_mm3 > 0
    for lesion in wrong.lesions:
        assert {getattr(lesion, name) for name in (*IN_MM, *PLACES)} == {None}
    assert [lesion.voxels for lesion in wrong.lesions] == [lesion.voxels for lesion in right.lesions]
    content = write_result(wrong, tmp_path / "out", "wrong.nii.gz")
    assert content["tumor_volume_mm3"] is None and content["scan"]["plane"] == "axial"
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "mask.nii.gz").affine, nib.load(path).affine, rtol=1e-6)


def test_a_right_unit_measures_as_before():
    result = fixed_pipeline().run(VOLUME.scan)
    assert all(getattr(lesion, name) is not None for lesion in result.lesions for name in IN_MM)


def test_the_ratio_of_a_pixels_sides_still_counts():
    """Coronal slices of thick axial ones are three times as tall as they have rows, in any unit."""
    right = prepare(open_source(VOLUME.scan, RunOptions(plane="coronal")), SIZE)
    scan = Scan.from_array(VOLUME.image, scaled(0.001, 0.001, 0.001))
    wrong = prepare(open_source(scan, RunOptions(plane="coronal")), SIZE)
    assert wrong.size_doubt is not None
    np.testing.assert_array_equal(wrong.used, right.used)
    for one, other in zip(wrong.chosen, right.chosen, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert wrong.measured.slice_axis == wrong.scan.slice_axis == 1


def test_a_near_isotropic_volume_of_a_wrong_unit_is_one_plane_and_says_that_lesions_may_lie_outside():
    head = phantom_volume(5, "meningioma", shape=(72, 84, 72), spacing_mm=(2.0, 2.0, 2.0))
    result = fixed_pipeline().run(Scan.from_array(head.image, head.affine @ np.diag([0.001] * 3 + [1])))
    assert result.label == "meningioma" and result.mask.any()
    reasons = [reason for reason in result.review if reason.startswith("lesions may lie outside of the brain")]
    assert reasons == [
        "lesions may lie outside of the brain: the volume's lengths are not known, so no atlas can be laid on it"
    ]


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mgz"])
def test_every_format_is_checked(tmp_path, suffix):
    for factor, wrong in ((1, False), (0.01, True)):
        affine = scaled(factor, factor, factor)
        path = save_as(tmp_path, suffix, VOLUME.image.astype(np.float32), affine)
        assert (prepare(open_source(path), SIZE).size_doubt is not None) == wrong


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 0.1, 10, 1e3])
@pytest.mark.parametrize("own_uids", [False, True])
def test_a_dicom_series_in_another_unit_is_read_and_reported(tmp_path, factor, own_uids):
    """In meters, its slices lie closer than two images at one place would in mm."""
    paths = save_series(tmp_path / "a", VOLUME.image.astype(np.int16), scaled(factor, factor, factor))
    if own_uids:  # a volume in pieces
        edit(paths, SeriesInstanceUID=lambda k: f"1.2.7.{k}")
    scan = open_source(tmp_path / "a")
    assert scan.n_slices == 14 and scan.frame is None
    assert "the lengths in the file are wrong" in prepare(scan, SIZE).size_doubt


def test_a_nifti_in_meters_that_says_so_is_measured(tmp_path):
    image = nib.Nifti1Image(VOLUME.image, scaled(0.001, 0.001, 0.001))
    for unit, wrong in (("meter", False), ("mm", True), ("micron", True)):
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / "a.nii.gz")
        assert (prepare(open_source(tmp_path / "a.nii.gz"), SIZE).size_doubt is not None) == wrong


def test_a_volume_of_known_size_and_unknown_orientation_is_checked():
    case = prepare(Scan.from_array(VOLUME.image, spacing_mm=(320.0, 320.0, 900.0)), SIZE)
    assert "mm wide" in case.size_doubt
    result = fixed_pipeline().run(case.scan)
    assert result.tumor_volume_mm3 is None and result.mask.any()
    assert any("nothing of orientation" in reason for reason in result.review)
    assert not any("nothing of size" in reason for reason in result.review)


def test_a_single_slice_of_no_thickness_keeps_its_lesion():
    thin = Scan.from_array(VOLUME.image[:, :, 6:7], np.diag([3.2, 3.2, 0.02, 1.0]))
    result = fixed_pipeline().run(thin)
    assert result.mask.any() and result.tumor_volume_mm3 is None
    assert any("0.02 mm apart" in reason or "x 0.02 mm in size" in reason for reason in result.review)
