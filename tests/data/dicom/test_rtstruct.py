"""RT Structure Sets are valid, refer to their images, and give the mask back to other programs and to the import."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from skimage.draw import polygon2mask

from tests.scans.dicom_results import ALGORITHM, errors_in, saved, with_lesions
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.dicom.source import frames_from_volume
from tumorlens.data.errors import InputError
from tumorlens.data.masks.export import FORMATS
from tumorlens.data.masks.placed import read_mask_dicom
from tumorlens.data.scan import Scan

COLORS = {1: (213, 94, 0), 2: (240, 200, 160)}
MERGED = ("glioma", (0, 114, 178))


def exported(folder, kind, numbers=with_lesions, merged=None, label="glioma"):
    """Scan, numbered mask, structure set and its path."""
    paths = saved(folder, kind)
    scan = read_series(paths)
    mask = numbers(scan)
    write_mask_dicom(folder / "mask.dcm", mask, scan, label, ALGORITHM)
    FORMATS["rtstruct"].write_dicom(folder / "mask.dcm", folder / "rt.dcm", COLORS, merged)
    return scan, mask, pydicom.dcmread(folder / "rt.dcm"), folder / "rt.dcm"


def difficult(scan):
    """Lesions of one pixel, at a corner, with holes that touch, an island in a hole, and parts that share a corner."""
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    numbers[:, :, 0] = 1
    numbers[4:7, 4:7, 0] = 0
    numbers[5, 5, 0] = 1  # an island in the hole, of the same lesion
    numbers[7, 7, 0] = 0  # a hole that touches the other one
    numbers[0, 0, 0] = 0
    numbers[10, 2:5, 0] = 2  # a hole of the first lesion that the second one fills
    numbers[10, 3, 0] = 0
    if scan.voxels.shape[2] > 1:
        numbers[3, 4, 1] = 2
        numbers[0, 0, 1] = numbers[-1, -1, 1] = 1
        random = np.random.default_rng(3).random(scan.voxels.shape[:2])
        numbers[:, :, 2] = np.where(random < 0.45, 1, np.where(random < 0.8, 2, 0))
    return numbers


def contours_of(structures, roi):
    """The contours of a region with the image to which each refers."""
    (region,) = (item for item in structures.ROIContourSequence if item.ReferencedROINumber == roi)
    for contour in region.get("ContourSequence", ()):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints >= 4
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        yield points, contour.ContourImageSequence[0]


def filled(structures, roi, scan, fill):
    """The region's mask ``(slices, rows, columns)`` by another program, placed by the headers of the source images."""
    frames = frames_from_volume(np.zeros(scan.voxels.shape, bool)).copy()
    uids = [str(ds.SOPInstanceUID) for ds in scan.dicom.datasets]
    for points, image in contours_of(structures, roi):
        place = uids.index(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1)) - 1
        header, plane = scan.dicom.datasets[place[0]], scan.dicom.datasets[place[0]]
        if "PerFrameFunctionalGroupsSequence" in header:
            shared = header.SharedFunctionalGroupsSequence[0]
            plane = pydicom.Dataset()
            plane.update(shared.PixelMeasuresSequence[0])
            plane.update(shared.PlaneOrientationSequence[0])
            plane.update(header.PerFrameFunctionalGroupsSequence[place[1]].PlanePositionSequence[0])
        position = np.array(plane.ImagePositionPatient, float)
        along, down = np.reshape(np.array(plane.ImageOrientationPatient, float), (2, 3))
        assert np.abs((points - position) @ np.cross(along, down)).max() < 1e-3
        rows_columns = np.stack(
            [
                (points - position) @ down / float(plane.PixelSpacing[0]),
                (points - position) @ along / float(plane.PixelSpacing[1]),
            ],
            axis=1,
        )
        np.testing.assert_allclose((rows_columns + 0.5).round(), rows_columns + 0.5, atol=1e-3)  # borders of pixels
        frames[scan.dicom.places.index(place)] ^= fill(frames.shape[1:], rows_columns)
    return frames


def by_matplotlib(shape, rows_columns):
    centers = np.argwhere(np.ones(shape))
    return Polygon(rows_columns, closed=False).contains_points(centers).reshape(shape)


@pytest.mark.parametrize("fill", [polygon2mask, by_matplotlib])
@pytest.mark.parametrize("numbers", [with_lesions, difficult])
@pytest.mark.parametrize("kind", ["axial", "coronal", "sagittal", "oblique", "enhanced", "two enhanced", "single"])
def test_the_mask_comes_back(tmp_path, kind, numbers, fill):
    scan, mask, structures, path = exported(tmp_path, kind, numbers)
    for roi in (1, 2):
        np.testing.assert_array_equal(filled(structures, roi, scan, fill), frames_from_volume(mask == roi))
    np.testing.assert_array_equal(read_mask_dicom(path, scan), mask > 0)


@pytest.mark.parametrize("kind", ["axial", "oblique", "enhanced", "gaps"])
@pytest.mark.parametrize("merged", [None, MERGED])
def test_the_object_is_valid_and_refers_to_its_source(tmp_path, kind, merged):
    scan, mask, structures, path = exported(tmp_path, kind, merged=merged)
    assert errors_in(path) == []
    segmentation, sources = pydicom.dcmread(tmp_path / "mask.dcm"), scan.dicom.datasets
    assert structures.StudyInstanceUID == sources[0].StudyInstanceUID
    assert structures.PatientID == sources[0].PatientID
    assert structures.SeriesInstanceUID not in (segmentation.SeriesInstanceUID, sources[0].SeriesInstanceUID)
    assert structures.SeriesNumber == 504
    assert "for research only" in structures.StructureSetDescription
    (frame,) = structures.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    instances = {(ds.SOPClassUID, ds.SOPInstanceUID) for ds in sources}
    images = series.ContourImageSequence
    assert {(image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID) for image in images} == instances
    rois = [int(item.ROINumber) for item in structures.StructureSetROISequence]
    names = [item.ROIName for item in structures.StructureSetROISequence]
    colors = [tuple(item.ROIDisplayColor) for item in structures.ROIContourSequence]
    if merged:
        assert (rois, names, colors) == ([1], ["glioma"], [MERGED[1]])
    else:
        assert (rois, colors) == ([1, 2], [COLORS[1], COLORS[2]])
        assert names == [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    for roi, observation in zip(rois, structures.RTROIObservationsSequence, strict=True):
        assert observation.ReferencedROINumber == roi
        assert observation.RTROIIdentificationCodeSequence[0].CodeMeaning == "Neoplasm"
        wanted = mask > 0 if merged else mask == roi
        np.testing.assert_array_equal(filled(structures, roi, scan, polygon2mask), frames_from_volume(wanted))


def test_a_scan_without_lesion_is_one_empty_region(tmp_path):
    scan, _, structures, path = exported(
        tmp_path, "axial", lambda scan: np.zeros(scan.voxels.shape, np.uint16), label="no_tumor"
    )
    assert errors_in(path) == []
    assert [item.ROIName for item in structures.StructureSetROISequence] == ["No lesion found"]
    assert "ContourSequence" not in structures.ROIContourSequence[0]
    assert not read_mask_dicom(path, scan).any()


def test_a_contour_of_any_length(tmp_path):
    def comb(scan):
        numbers = np.zeros(scan.voxels.shape, np.uint16)
        numbers[::2, :, 3], numbers[:, 0, 3] = 1, 1
        return numbers

    scan, mask, _, path = exported(tmp_path, "axial", comb)
    data = pydicom.dcmread(path)
    contour = data.ROIContourSequence[0].ContourSequence[0]
    copies = 65536 // len("\\".join(map(str, contour.ContourData))) + 2
    contour.ContourData = list(contour.ContourData) * (2 * (copies // 2) + 1)  # an odd number of turns fills the same
    data.save_as(path)
    assert len(np.array(pydicom.dcmread(path).ROIContourSequence[0].ContourSequence[0].ContourData)) > 6000
    np.testing.assert_array_equal(read_mask_dicom(path, scan), mask > 0)


def edited(path, change):
    """The file with all points ``(n, 3)`` LPS changed."""
    structures = pydicom.dcmread(path)
    for region in structures.ROIContourSequence:
        for contour in region.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            contour.ContourData = [f"{n:.4f}" for n in np.asarray(change(points), float).ravel()]
    structures.save_as(path.with_name("edited.dcm"))
    return path.with_name("edited.dcm")


def test_contours_of_other_programs(tmp_path):
    scan, mask, structures, path = exported(tmp_path, "axial")
    near = edited(path, lambda points: np.add(points, (0.2, -0.2, 1.4)))  # less than half a pixel, half a slice
    np.testing.assert_array_equal(read_mask_dicom(near, scan), mask > 0)
    turned = Scan.from_array(scan.voxels.transpose(2, 0, 1)[:, ::-1], scan.affine[:, [2, 0, 1, 3]] @ flip(scan))
    np.testing.assert_array_equal(read_mask_dicom(path, turned), (mask > 0).transpose(2, 0, 1)[:, ::-1])
    for contour in structures.ROIContourSequence[1].ContourSequence:
        contour.ContourGeometricType = "OPEN_PLANAR"
    structures.save_as(tmp_path / "open.dcm")
    np.testing.assert_array_equal(read_mask_dicom(tmp_path / "open.dcm", scan), mask == 1)


def flip(scan):
    """Index matrix that turns the second axis of the transposed scan around."""
    matrix = np.diag([1.0, -1, 1, 1])
    matrix[1, 3] = scan.voxels.shape[0] - 1
    return matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: np.add(points, (0, 0, 60)), "a contour lies on no slice of its scan"),
        (lambda points: np.add(points, (30, 0, 0)), "a contour reaches out of its scan"),
        (lambda points: points @ [[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]], "not parallel to the slices"),
        (lambda points: np.full(points.shape, np.nan), "not parallel to the slices"),
        (lambda points: points.ravel()[:-1], "the RT Structure Set is damaged"),
    ],
)
def test_contours_that_do_not_fit(tmp_path, change, message):
    scan, _, _, path = exported(tmp_path, "axial")
    with pytest.raises(InputError, match=message):
        read_mask_dicom(edited(path, change), scan)


def test_what_is_not_a_segmentation_of_tumorlens(tmp_path):
    saved(tmp_path, "single")
    picture = next((tmp_path / "single").iterdir())
    with pytest.raises(InputError, match="this is not a DICOM Segmentation"):
        FORMATS["rtstruct"].write_dicom(picture, tmp_path / "rt.dcm", COLORS, None)
    exported(tmp_path, "axial")
    segmentation = pydicom.dcmread(tmp_path / "mask.dcm")
    del segmentation.ReferencedSeriesSequence
    segmentation.save_as(tmp_path / "other.dcm")
    with pytest.raises(InputError, match="no RT Structure Set can be made"):
        FORMATS["rtstruct"].write_dicom(tmp_path / "other.dcm", tmp_path / "x.dcm", COLORS, None)
    assert not (tmp_path / "x.dcm").exists()
