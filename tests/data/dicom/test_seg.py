"""DICOM Segmentation: valid, in place, of the right patient; and what it has in common with the other results."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from tests.pipeline.fixed import BRATS
from tests.scans.dicom import save_series
from tests.scans.dicom_results import (
    AFFINE,
    ALGORITHM,
    SHAPE,
    errors_in,
    pixels,
    result_of,
    saved,
    value_of,
    with_lesions,
    written,
)
from tumorlens.data.dicom.derived import series_number
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.seg import write_mask_dicom, write_regions_dicom
from tumorlens.data.dicom.source import DicomSource, frames_from_volume
from tumorlens.data.errors import InputError
from tumorlens.data.masks.placed import read_mask_dicom
from tumorlens.data.masks.truth import read_regions
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs.dicom_overlay import write_overlay_dicom

hd = pytest.importorskip("highdicom")
KINDS = ("axial", "sagittal", "coronal", "oblique", "enhanced", "two enhanced", "gaps", "single")


def assert_in_place(drawn, affine_ras, expected, scan):
    """The voxels of one mask lie, in mm, where those of the other lie by the scan's affine, and none is left over."""
    places = np.argwhere(drawn) @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    index = (places - scan.affine[:3, 3]) @ np.linalg.inv(scan.affine[:3, :3]).T
    assert np.abs(index - index.round()).max() < 1e-3
    there = np.zeros(expected.shape, bool)
    there[tuple(index.round().astype(int).T)] = True
    np.testing.assert_array_equal(there, expected)


def as_ras(affine_lps):
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps


def code_of(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


# --- validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_objects_are_valid(tmp_path, kind):
    scan = read_series(saved(tmp_path, kind))
    for path in written(tmp_path, scan):
        assert errors_in(path) == [], path.name


@pytest.mark.parametrize("kind", ["axial", "enhanced", "single"])
def test_a_healthy_scan_gives_valid_objects(tmp_path, kind):
    scan = read_series(saved(tmp_path, kind))
    paths = written(tmp_path, scan, "no_tumor", np.zeros(scan.voxels.shape, np.uint16))
    for path in paths:
        assert errors_in(path) == [], path.name
    segmentation = hd.seg.segread(paths[0])
    assert segmentation.NumberOfFrames == 1
    assert segmentation.number_of_segments == 1
    assert segmentation.SegmentSequence[0].SegmentLabel == "No lesion found"
    assert not segmentation.pixel_array.any()
    (group,) = hd.sr.srread(paths[1]).content.get_image_measurement_groups()
    assert value_of(group, codes.DCM.PresenceOfProperty) == codes.SCT.Absent
    assert hd.sr.srread(paths[1]).content.get_volumetric_roi_measurement_groups() == []


FLAWS = {
    "no frame of reference": {"FrameOfReferenceUID": None},
    "no study": dict.fromkeys(["StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"]),
    "no patient": dict.fromkeys(["PatientName", "PatientID", "PatientBirthDate", "PatientSex"]),
    "no series number": {"SeriesNumber": None},
    "huge series number": {"SeriesNumber": 2**31 - 1},
    "no thickness": {"SliceThickness": None},
    "no reference indicator": {"PositionReferenceIndicator": None},
    "strange sex": {"PatientSex": "0000"},
    "strange dates": {"PatientBirthDate": "1961.02.03", "StudyDate": "unknown", "StudyTime": "25:99"},
    "long description": {"StudyDescription": "x" * 90},
    "de-identified": {"PatientIdentityRemoved": "YES"},
    "leading zeros in a UID": {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.0"},
    "private class": {"SOPClassUID": "1.2.3.4.5"},
    "lossy source": {"LossyImageCompression": "01", "LossyImageCompressionRatio": "12"},
    "burned-in text": {"BurnedInAnnotation": "YES"},
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flawed_header_does_no_harm(tmp_path, flaw, recwarn):
    tags = dict(FLAWS[flaw])
    paths = save_series(tmp_path / "series", pixels(), AFFINE)
    for path in paths:  # afterwards, because pydicom would not write some of them
        ds = dcmread(path)
        for name, value in tags.items():
            if value is None and name in ds:
                delattr(ds, name)
            elif value is not None:
                ds.add_new(name, ds[name].VR if name in ds else _VR[name], value)
        ds.save_as(path)
    scan = read_series(paths)
    recwarn.clear()
    outputs = written(tmp_path, scan)
    assert [w for w in recwarn if "Doe" in str(w.message)] == []
    for path in outputs:
        assert errors_in(path) == [], path.name
    if flaw == "burned-in text":
        assert dcmread(outputs[2]).BurnedInAnnotation == "YES"


_VR = {
    "StudyDescription": "LO",
    "PatientIdentityRemoved": "CS",
    "BurnedInAnnotation": "CS",
    "LossyImageCompression": "CS",
    "LossyImageCompressionRatio": "DS",
}


@pytest.mark.real
def test_objects_of_a_real_series(tmp_path, real):
    scan = read_series(sorted((real / "volumes" / "dicom" / "brainix_t1").glob("*.dcm")))
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    numbers[200:260, 220:300, 8:14], numbers[300:310, 150:160, 4:5] = 1, 2
    paths = written(tmp_path, scan, numbers=numbers)
    for path in paths:
        assert errors_in(path) == [], path.name
    segmentation, source = dcmread(paths[0]), scan.dicom.datasets[0]
    assert segmentation.PatientSex == ""  # the source's 0000 is not a code
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyID", "StudyDescription"):
        assert str(segmentation[name].value) == str(source[name].value)
    assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
    volume = hd.seg.segread(paths[0]).get_volume(combine_segments=True)
    assert_in_place(volume.array == 1, as_ras(volume.affine), numbers == 1, scan)
    assert_in_place(volume.array == 2, as_ras(volume.affine), numbers == 2, scan)


# --- the mask ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_voxel_comes_back_in_its_place(tmp_path, kind):
    scan = read_series(saved(tmp_path, kind))
    numbers = with_lesions(scan)
    write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    for number in (1, 2):
        assert_in_place(volume.array == number, as_ras(volume.affine), numbers == number, scan)


@pytest.mark.parametrize("kind", ["axial", "coronal", "gaps", "single"])
def test_every_frame_refers_to_its_instance(tmp_path, kind):
    scan = read_series(saved(tmp_path, kind))
    numbers = with_lesions(scan)
    written_now = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    present = [k for k, place in enumerate(scan.dicom.places) if place is not None]
    uids = [scan.dicom.datasets[scan.dicom.places[k][0]].SOPInstanceUID for k in present]
    for segmentation in (hd.seg.segread(tmp_path / "seg.dcm"), written_now):
        frames = segmentation.get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(frames, frames_from_volume(numbers)[present])


def test_every_frame_refers_to_its_frame(tmp_path):
    scan = read_series(saved(tmp_path, "enhanced"))
    numbers = with_lesions(scan)
    written_now = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    for segmentation in (hd.seg.segread(tmp_path / "seg.dcm"), written_now):
        frames = segmentation.get_pixels_by_source_frame(
            scan.dicom.datasets[0].SOPInstanceUID,
            [frame + 1 for _, frame in scan.dicom.places],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(frames, frames_from_volume(numbers))


def test_frames_of_several_multi_frame_files_refer_to_their_own(tmp_path):
    scan = read_series(saved(tmp_path, "two enhanced"))
    numbers = with_lesions(scan)
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    uids = [ds.SOPInstanceUID for ds in scan.dicom.datasets]
    frames = frames_from_volume(numbers)
    for group, pixel in zip(segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True):
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        place = (uids.index(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber) - 1)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixel, frames[scan.dicom.places.index(place)] == number)


def test_other_software_reads_the_mask(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    scan = read_series(saved(tmp_path, "oblique"))
    numbers = (with_lesions(scan) == 1).astype(np.uint16)
    write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    mask = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert_in_place(mask, as_ras(affine), numbers == 1, scan)
    volume = hd.imread(tmp_path / "seg.dcm").get_volume()
    assert_in_place(volume.array, as_ras(volume.affine), numbers == 1, scan)


def test_segments_describe_themselves(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "meningioma", ALGORITHM)
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.SeriesDescription == "tumorlens tumor mask"
    assert segmentation.SeriesNumber == 501
    assert {segmentation.StudyInstanceUID} == {ds.StudyInstanceUID for ds in scan.dicom.datasets}
    assert segmentation.SeriesInstanceUID != scan.dicom.datasets[0].SeriesInstanceUID
    referenced = segmentation.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == scan.dicom.datasets[0].SeriesInstanceUID
    assert [i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence] == [
        ds.SOPInstanceUID for ds in scan.dicom.datasets
    ]
    first, second = segmentation.SegmentSequence
    assert (first.SegmentNumber, second.SegmentNumber) == (1, 2)
    assert first.SegmentLabel == "Lesion 1 (meningioma, predicted)"
    assert first.TrackingUID != second.TrackingUID
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert code_of(first.SegmentedPropertyCategoryCodeSequence) == ("49755003", "SCT")
    assert code_of(first.SegmentedPropertyTypeCodeSequence) == ("108369006", "SCT")
    assert code_of(first.AnatomicRegionSequence) == ("12738006", "SCT")
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert code_of(algorithm.AlgorithmFamilyCodeSequence) == ("123110", "DCM")
    assert algorithm.AlgorithmName == "tumorlens Res-U-Net (resnet50)"
    assert algorithm.AlgorithmVersion == "0.1.0, weights abababababab"
    pituitary = write_mask_dicom(tmp_path / "pit.dcm", with_lesions(scan), scan, "pituitary", ALGORITHM)
    assert code_of(pituitary.SegmentSequence[0].AnatomicRegionSequence) == ("56329008", "SCT")


def test_many_lesions(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    places = np.indices(scan.voxels.shape).reshape(3, -1).T
    chosen = places[(places % 2 == 0).all(axis=1)][:300]
    numbers[tuple(chosen.T)] = np.arange(1, 301)
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, "glioma", ALGORITHM)
    assert segmentation.number_of_segments == 300
    assert errors_in(tmp_path / "seg.dcm") == []


def test_a_missing_frame_of_reference_is_the_same_in_all_objects(tmp_path):
    scan = read_series(saved(tmp_path, "axial", FrameOfReferenceUID=None))
    first, second = (
        write_mask_dicom(tmp_path / f"{n}.dcm", with_lesions(scan), scan, "glioma", ALGORITHM) for n in "ab"
    )
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != ""


# --- the patient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "王^小东"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")],
)
def test_names_survive_their_character_set(tmp_path, charset, name):
    scan = read_series(saved(tmp_path, "axial", SpecificCharacterSet=charset, PatientName=name))
    for path in written(tmp_path, scan):
        assert str(dcmread(path).PatientName) == name
        assert errors_in(path) == []


def test_names_that_archives_file_under_are_passed_on_and_free_text_is_not(tmp_path):
    paths = saved(tmp_path, "axial")
    for path in paths:
        ds = dcmread(path)
        ds.add_new("AccessionNumber", "SH", "A-NUMBER-OF-MORE-THAN-16")
        ds.IssuerOfPatientID = "Hospital"
        ds.private_block(0x0019, "Phantom Works", create=True).add_new(1, "LO", "Jane was here")
        ds.save_as(path)
    scan = read_series(paths)
    for path in written(tmp_path, scan):
        ds = dcmread(path)
        assert ds.AccessionNumber == "A-NUMBER-OF-MORE-THAN-16"
        assert (ds.PatientID, ds.IssuerOfPatientID) == ("PID-77881Q", "Hospital")
        assert (ds.PatientBirthDate, ds.PatientSex, ds.StudyDate) == ("19610203", "F", "20240102")
        everything = path.read_bytes()
        assert b"Hidden Lane" not in everything
        assert b"Unspoken" not in everything
        assert b"was here" not in everything


@pytest.mark.parametrize(
    ("of_source", "expected"), [("5", 502), ("601", 60102), ("0", 2), ("-3", 2), ("", 2), (str(2**31 - 1), 2)]
)
def test_series_numbers_stay_within_their_limits(of_source, expected):
    ds = Dataset()
    ds.SeriesNumber = of_source
    assert series_number(DicomSource((ds,), ()), 2) == expected


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_missing_geometry_is_reported_in_a_sentence(tmp_path, name):
    scan = read_series(saved(tmp_path, "axial"))
    for ds in scan.dicom.datasets:
        delattr(ds, name)
    with pytest.raises(InputError, match=f"DICOM segmentation .*no {name}"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)
    assert not (tmp_path / "seg.dcm").exists()


def test_different_frames_of_reference_are_reported_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    scan.dicom.datasets[3].FrameOfReferenceUID = generate_uid()
    with pytest.raises(InputError, match="different frames of reference"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)


def test_a_missing_uid_is_reported_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    del scan.dicom.datasets[2].SOPInstanceUID
    result = result_of(scan)
    with pytest.raises(InputError, match="has no SOPInstanceUID"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)
    with pytest.raises(InputError, match="has no SOPInstanceUID"):
        write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((8, 8, 3), np.uint8), result)


def test_a_source_that_highdicom_refuses_is_reported_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    for ds in scan.dicom.datasets:
        ds.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    with pytest.raises(InputError, match=r"no DICOM segmentation can be made of this series: \w"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)


def test_other_scans_have_no_dicom_results(tmp_path):
    scan = Scan.from_array(pixels(), AFFINE)
    with pytest.raises(InputError, match="from DICOM files only"):
        write_mask_dicom(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint16), scan, "glioma", ALGORITHM)


def test_every_segment_has_a_shade_of_its_class(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    for number in range(1, 6):
        numbers[2 + 3 * number, 3:6, 2:5] = number
    colors = {}
    for label, count in (("glioma", 5), ("meningioma", 5), ("glioma", 1)):
        mask = np.where(numbers <= count, numbers, 0).astype(np.uint16)
        ds = write_mask_dicom(tmp_path / "seg.dcm", mask, scan, label, ALGORITHM)
        colors[label, count] = [tuple(segment.RecommendedDisplayCIELabValue) for segment in ds.SegmentSequence]
        assert errors_in(tmp_path / "seg.dcm") == []
    several = colors["glioma", 5]
    assert len(set(several)) == 5 and [c[0] for c in several] == sorted((c[0] for c in several), reverse=True)
    assert len({c[1:] for c in several}) == 1  # one hue
    assert several[0][1:] != colors["meningioma", 5][0][1:]
    assert hd.color.CIELabColor.from_dicom_value(colors["glioma", 1][0]).to_rgb() == pytest.approx(
        (0xD5, 0x5E, 0), abs=2
    )


# --- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["axial", "oblique", "enhanced", "gaps", "single"])
def test_regions_that_lie_in_each_other_are_segments(tmp_path, kind):
    scan = read_series(saved(tmp_path, kind))
    values = np.array([0, 2, 1], np.uint8)[with_lesions(scan)]  # the second lesion is core, and nothing enhances
    bits = BRATS.bits(values)
    named = [(row.name, row.color) for row in BRATS.rows]
    write_regions_dicom(tmp_path / "regions.dcm", BRATS.planes(bits), named, scan, "glioma", ALGORITHM)
    assert errors_in(tmp_path / "regions.dcm") == []
    np.testing.assert_array_equal(read_regions(tmp_path / "regions.dcm", scan, BRATS), bits)
    np.testing.assert_array_equal(read_mask_dicom(tmp_path / "regions.dcm", scan), values > 0)
    regions = hd.seg.segread(tmp_path / "regions.dcm")
    assert [s.SegmentLabel for s in regions.SegmentSequence] == [f"{name} (predicted)" for name in BRATS.names]
    assert regions.SegmentsOverlap == "YES"
    assert regions.SeriesNumber == 504
    core = regions.get_volume(segment_numbers=[2]).array[..., 0] != 0
    assert core.sum() == (values == 1).sum() > 0
