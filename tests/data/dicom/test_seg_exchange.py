"""DICOM Segmentations are read onto any grid, and written again with colors and merged segments."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest

from tests.scans.dicom_results import ALGORITHM, errors_in, saved, with_lesions
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.dicom.seg_exchange import cielab_of, copy_segmentation
from tumorlens.data.errors import InputError
from tumorlens.data.labels import TABLE
from tumorlens.data.masks.labeling import rgb_of
from tumorlens.data.masks.placed import read_mask_dicom

COLORS = {1: (213, 94, 0), 2: (240, 200, 160)}


def segmentation(folder, kind="axial", numbers=None):
    scan = read_series(saved(folder, kind))
    numbers = with_lesions(scan) if numbers is None else numbers(scan)
    write_mask_dicom(folder / "mask.dcm", numbers, scan, "glioma", ALGORITHM)
    return scan, numbers, folder / "mask.dcm"


@pytest.mark.parametrize("kind", ["axial", "coronal", "sagittal", "oblique", "enhanced", "single", "gaps"])
@pytest.mark.parametrize("merged", [None, ("glioma", (0, 114, 178))])
def test_copies(tmp_path, kind, merged):
    scan, numbers, path = segmentation(tmp_path, kind)
    np.testing.assert_array_equal(read_mask_dicom(path, scan), numbers > 0)
    copy_segmentation(path, tmp_path / "copy.dcm", COLORS, merged)
    assert errors_in(tmp_path / "copy.dcm") == []
    copy, source = hd.seg.segread(tmp_path / "copy.dcm"), hd.seg.segread(path)
    assert copy.SOPInstanceUID != source.SOPInstanceUID
    assert copy.SeriesInstanceUID != source.SeriesInstanceUID
    assert copy.StudyInstanceUID == source.StudyInstanceUID
    wanted = {1: merged[1]} if merged else COLORS
    for number, rgb in wanted.items():
        description = copy.get_segment_description(number)
        lab = hd.color.CIELabColor.from_dicom_value(description.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(lab.to_rgb(), rgb, atol=1)
    assert copy.number_of_segments == len(wanted)
    for number in wanted:
        expected = numbers > 0 if merged else numbers == number
        np.testing.assert_array_equal(segment(copy, number, scan), expected)
    np.testing.assert_array_equal(read_mask_dicom(tmp_path / "copy.dcm", scan), numbers > 0)
    if merged:
        assert copy.get_segment_description(1).segment_label == "glioma"


def segment(copy, number, scan):
    """A segment as highdicom gives it for the source instances, in the order of the scan."""
    from tumorlens.data.dicom.source import volume_from_frames

    frames = np.zeros((scan.voxels.shape[2], *scan.voxels.shape[1::-1]), np.uint8)
    for index, item in enumerate(copy.PerFrameFunctionalGroupsSequence):
        if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        place = scan.affine @ [0, scan.voxels.shape[1] - 1, 0, 1]
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        k = round(float(np.linalg.lstsq(scan.affine[:3, 2:3], position - place[:3], rcond=None)[0][0]))
        frames[k] = copy.pixel_array[index] if copy.pixel_array.ndim == 3 else copy.pixel_array
    return volume_from_frames(frames)


def test_a_single_lesion_is_merged(tmp_path):
    scan, numbers, path = segmentation(tmp_path, numbers=lambda scan: with_lesions(scan) == 1)
    copy_segmentation(path, tmp_path / "copy.dcm", COLORS, ("glioma", (0, 114, 178)))
    assert errors_in(tmp_path / "copy.dcm") == []
    np.testing.assert_array_equal(read_mask_dicom(tmp_path / "copy.dcm", scan), numbers)


def test_an_empty_segmentation(tmp_path):
    scan, _, path = segmentation(tmp_path, numbers=lambda scan: np.zeros(scan.voxels.shape, np.uint16))
    assert not read_mask_dicom(path, scan).any()
    copy_segmentation(path, tmp_path / "copy.dcm", {}, None)
    assert errors_in(tmp_path / "copy.dcm") == []
    assert not hd.seg.segread(tmp_path / "copy.dcm").pixel_array.any()


def test_what_is_not_a_segmentation_of_the_scan(tmp_path):
    scan, _, path = segmentation(tmp_path)
    picture = saved(tmp_path, "single")[0]
    with pytest.raises(InputError, match="this is not a DICOM Segmentation"):
        read_mask_dicom(picture, scan)
    moved = pydicom.dcmread(path)
    for group in moved.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[0] += 0.5
    moved.save_as(tmp_path / "moved.dcm")
    with pytest.raises(InputError, match="not on the grid of its scan"):
        read_mask_dicom(tmp_path / "moved.dcm", scan)
    moved.PixelData = moved.PixelData[:20]
    moved.save_as(tmp_path / "cut.dcm")
    with pytest.raises(InputError, match=r"cut\.dcm: the pixel data are damaged or cut off"):
        read_mask_dicom(tmp_path / "cut.dcm", scan)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_colors(row):
    color = hd.color.CIELabColor.from_dicom_value(cielab_of(rgb_of(row.color)))
    np.testing.assert_allclose(color.to_rgb(), rgb_of(row.color), atol=1)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_segmentation_of_colors_is_damaged(tmp_path, frames):
    scan, _, path = segmentation(tmp_path)
    ds = pydicom.dcmread(path)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.NumberOfFrames = 8, 8, 7, frames
    ds.PixelData = bytes(ds.Rows * ds.Columns * 3 * frames)
    ds.save_as(path)
    with pytest.raises(InputError, match=r"mask\.dcm: the DICOM Segmentation is damaged \(it holds colors\)"):
        read_mask_dicom(path, scan)


@pytest.mark.parametrize("most", ["1\\\\1", "abc", None])
def test_a_strange_largest_value_does_not_matter_in_a_binary_segmentation(tmp_path, most):
    scan, numbers, path = segmentation(tmp_path)
    ds = pydicom.dcmread(path)
    ds["MaximumFractionalValue"] = pydicom.DataElement("MaximumFractionalValue", "LO", most)
    ds.save_as(path)
    np.testing.assert_array_equal(read_mask_dicom(path, scan), numbers > 0)
