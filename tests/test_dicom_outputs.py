"""DICOM Segmentation, Structured Report and Secondary Capture: valid, in place, and saying what was measured."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from data.dicom_derived import Algorithm, series_number
from data.dicom_source import DicomSource, frames_from_volume
from data.errors import InputError
from data.readers_dicom import read_series
from data.scan import Scan
from data.writers_dicom import write_mask_dicom
from pipeline.lesions import Lesion
from pipeline.result import Result
from pipeline.secondary_capture import write_overlay_dicom
from pipeline.structured_report import classifier_of, segmenter_of, write_report_dicom
from tests.dicom_files import save_enhanced, save_series

hd = pytest.importorskip("highdicom")

SHAPE = (22, 26, 14)
AFFINE = np.array([[1.1, 0, 0, -12], [0, 0.9, 0, -20.5], [0, 0, 3.0, 7.25], [0, 0, 0, 1]])
ALGORITHM = Algorithm("tumorlens Res-U-Net (resnet50)", "0.1.0", "ab" * 32, {"threshold": "0.5"})


def turned(affine):
    """The affine of a head that lies askew in the scanner."""
    a, b = np.radians([14.0, -9.0])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    askew = affine.copy()
    askew[:3, :3] = x @ z @ affine[:3, :3]
    return askew


def pixels(shape=SHAPE):
    return np.random.default_rng(5).integers(1, 900, shape).astype(np.int16)


def saved(folder, kind, **tags):
    """Paths of a series of one of the kinds that scanners send."""
    if kind == "enhanced":
        return [save_enhanced(folder / "enhanced.dcm", pixels(), AFFINE, **tags)]
    if kind == "two enhanced":
        tags |= {n: generate_uid() for n in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
        below, above = AFFINE.copy(), AFFINE.copy()
        above[:3, 3] += 7 * AFFINE[:3, 2]
        return [
            save_enhanced(folder / "below.dcm", pixels()[..., :7], below, **tags),
            save_enhanced(folder / "above.dcm", pixels()[..., 7:], above, **tags),
        ]
    if kind == "single":
        return save_series(folder / kind, pixels()[..., :1], AFFINE, **tags)
    if kind == "oblique":
        return save_series(folder / kind, pixels(), turned(AFFINE), **tags)
    if kind == "gaps":
        paths = save_series(folder / kind, pixels(), AFFINE, **tags)
        return [path for k, path in enumerate(paths) if k not in (5, 9)]
    return save_series(folder / kind, pixels(), AFFINE, kind, **tags)


KINDS = ("axial", "sagittal", "coronal", "oblique", "enhanced", "two enhanced", "gaps", "single")


def with_lesions(scan):
    """A numbered mask with two lesions that share slices, a hole in one, and none in slices that are missing."""
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    a, b, c = (max(n // 2, 1) for n in scan.voxels.shape)
    numbers[2:a, 3:b, : c + 1] = 1
    numbers[4, 5] = 0
    numbers[a + 2 : a + 5, b + 1 : b + 4, c - 1 : c + 2] = 2
    for k, place in enumerate(scan.dicom.places):
        if place is None:
            numbers[:, :, k] = 0
    return numbers


def lesion(number, **known):
    """A lesion whose measurements are told apart by its number."""
    fields = dict.fromkeys(Lesion.__dataclass_fields__)
    fields |= {"number": number, "voxels": 100 // number, "slice_index": 1}
    fields |= {"volume_mm3": 123.456 / number, "volume_ml": 0.123456 / number}
    fields |= {"axial_longest_mm": 31.5 / number, "axial_perpendicular_mm": 12.25 / number}
    fields |= {"centroid_ras_mm": (10.5 * number, -20.25, 30.0), "side": "left" if number == 1 else "right"}
    return Lesion(**{**fields, **known})


def result_of(scan, label="meningioma", lesions=(), review=()):
    positive = label != "no_tumor"
    probabilities = {
        "no_tumor": 0.0625 if positive else 0.875,
        "glioma": 0.0625,
        "meningioma": 0.03,
        "pituitary": 0.0325,
    }
    if positive:
        probabilities[label] = 0.8125
    fields = dict.fromkeys(Result.__dataclass_fields__)
    known = {
        "scan": scan,
        "label": label,
        "probabilities": probabilities,
        "mask": np.zeros(scan.voxels.shape, np.uint8),
        "lesions": list(lesions),
        "slices": [],
        "review": list(review),
        "threshold": 0.35,
        "models": {
            "classification": {"architecture": "resnet50", "sha256": "cd" * 32},
            "segmentation": {"architecture": "resunet", "encoder": "resnet50", "sha256": "ab" * 32},
        },
        "versions": {"tumorlens": "0.1.0"},
        "timings_s": {},
        "tumor_area_px": 0,
        "shown_slice": 1 if scan.n_slices > 1 else 0,
    }
    return Result(**{**fields, **known})


def written(folder, scan, label="meningioma", numbers=None):
    """All three objects of a scan, with made-up measurements for each lesion of the mask."""
    numbers = with_lesions(scan) if numbers is None else numbers
    result = result_of(scan, label, [lesion(n) for n in range(1, int(numbers.max()) + 1)])
    segmentation = write_mask_dicom(folder / "seg.dcm", numbers, scan, label, segmenter_of(result))
    write_report_dicom(folder / "sr.dcm", result, segmentation)
    write_overlay_dicom(folder / "sc.dcm", np.full((40, 50, 3), 90, np.uint8), result)
    return folder / "seg.dcm", folder / "sr.dcm", folder / "sc.dcm"


def errors_in(path):
    """What dciodvfy finds wrong."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith("Error") or "Abort" in line]


def assert_in_place(found, affine_ras, wanted, scan):
    """The voxels of one mask lie, in mm, where those of the other lie by the scan's affine, and none is left over."""
    places = np.argwhere(found) @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    index = (places - scan.affine[:3, 3]) @ np.linalg.inv(scan.affine[:3, :3]).T
    assert np.abs(index - index.round()).max() < 1e-3
    there = np.zeros(wanted.shape, bool)
    there[tuple(index.round().astype(int).T)] = True
    np.testing.assert_array_equal(there, wanted)


def as_ras(affine_lps):
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps


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
        for name, found in tags.items():
            if found is None and name in ds:
                delattr(ds, name)
            elif found is not None:
                ds.add_new(name, ds[name].VR if name in ds else _VR[name], found)
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
    assert segmentation.PatientSex == ""  # the source's 0000 is no code
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


def test_segments_say_what_they_are(tmp_path):
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
        assert (ds.PatientID, ds.IssuerOfPatientID) == ("PID-77881", "Hospital")
        assert (ds.PatientBirthDate, ds.PatientSex, ds.StudyDate) == ("19610203", "F", "20240102")
        everything = path.read_bytes()
        assert b"Hidden Lane" not in everything
        assert b"Unspoken" not in everything
        assert b"was here" not in everything


@pytest.mark.parametrize(
    ("given", "wanted"), [("5", 502), ("601", 60102), ("0", 2), ("-3", 2), ("", 2), (str(2**31 - 1), 2)]
)
def test_series_numbers_stay_within_their_limits(given, wanted):
    ds = Dataset()
    ds.SeriesNumber = given
    assert series_number(DicomSource((ds,), ()), 2) == wanted


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_no_geometry_is_told_in_a_sentence(tmp_path, name):
    scan = read_series(saved(tmp_path, "axial"))
    for ds in scan.dicom.datasets:
        delattr(ds, name)
    with pytest.raises(InputError, match=f"DICOM segmentation .*no {name}"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)
    assert not (tmp_path / "seg.dcm").exists()


def test_different_frames_of_reference_are_told_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    scan.dicom.datasets[3].FrameOfReferenceUID = generate_uid()
    with pytest.raises(InputError, match="different frames of reference"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)


def test_no_uid_is_told_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    del scan.dicom.datasets[2].SOPInstanceUID
    result = result_of(scan)
    with pytest.raises(InputError, match="has no SOPInstanceUID"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)
    with pytest.raises(InputError, match="has no SOPInstanceUID"):
        write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((8, 8, 3), np.uint8), result)


def test_what_highdicom_does_not_take_is_told_in_a_sentence(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    for ds in scan.dicom.datasets:
        ds.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    with pytest.raises(InputError, match=r"no DICOM segmentation can be made of this series: \w"):
        write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, "glioma", ALGORITHM)


def test_other_scans_have_no_dicom_results(tmp_path):
    scan = Scan.from_array(pixels(), AFFINE)
    with pytest.raises(InputError, match="from DICOM files only"):
        write_mask_dicom(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint16), scan, "glioma", ALGORITHM)


# --- the report -------------------------------------------------------------------------------------------------------


def code_of(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def value_of(group, name):
    """The value of the one evaluation or measurement of a group that has this name."""
    (item,) = [i for i in (*group.get_measurements(), *group.get_qualitative_evaluations()) if i.name == name]
    return item.value


def own(value):
    return hd.sr.CodedConcept(value, "99TUMORLENS", "")


@pytest.fixture
def report(tmp_path):
    """A report with two lesions, read back, its segmentation, and its result."""
    scan = read_series(saved(tmp_path, "sagittal"))
    lesions = [
        lesion(1),
        lesion(2, axial_longest_mm=None, longest_diameter_mm=9.5, perpendicular_diameter_mm=4.5, centroid_ras_mm=None),
    ]
    result = result_of(scan, lesions=lesions, review=["low confidence (0.60)"])
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, result.label, segmenter_of(result))
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation)
    return hd.sr.srread(tmp_path / "sr.dcm"), segmentation, result


def test_the_report_gives_each_lesion_under_its_segment(report):
    sr, segmentation, _ = report
    series = segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID
    for segment in segmentation.SegmentSequence:
        (group,) = sr.content.get_volumetric_roi_measurement_groups(tracking_uid=segment.TrackingUID)
        assert group.tracking_identifier == segment.TrackingID
        assert group.finding_type == codes.SCT.Neoplasm
        item = group._referenced_segment_item
        assert item.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert item.referenced_segment_numbers == [segment.SegmentNumber]
        assert group._source_series_for_segmentation_item.value == series
        assert value_of(group, own("TUMOR_TYPE")).value == "302820008"


def test_the_report_gives_the_measurements(report):
    sr, _, result = report
    first, second = sr.content.get_volumetric_roi_measurement_groups()
    assert value_of(first, codes.SCT.Volume) == pytest.approx(result.lesions[0].volume_mm3)
    assert value_of(first, codes.SCT.LongAxis) == 31.5
    assert value_of(first, codes.SCT.ShortAxis) == 12.25
    (volume,) = first.get_measurements(codes.SCT.Volume)
    assert volume.unit == codes.UCUM.CubicMillimeter
    assert {m.unit for m in first.get_measurements() if m.name != codes.SCT.Volume} == {codes.UCUM.Millimeter}
    assert (value_of(second, codes.SCT.LongAxis), value_of(second, codes.SCT.ShortAxis)) == (9.5, 4.5)


def test_the_report_gives_the_place(report):
    sr, segmentation, _ = report
    first, second = sr.content.get_volumetric_roi_measurement_groups()
    for group, side in ((first, codes.SCT.Left), (second, codes.SCT.Right)):
        (site,) = group.finding_sites
        assert site.value == codes.SCT.Brain
        assert site.laterality == side
    (centre,) = hd.sr.utils.find_content_items(first[0], name=codes.DCM.Center)
    np.testing.assert_allclose(centre.value, [[-10.5, 20.25, 30.0]])
    assert centre.frame_of_reference_uid == segmentation.FrameOfReferenceUID
    assert hd.sr.utils.find_content_items(second[0], name=codes.DCM.Center) == []


def test_the_report_gives_the_whole_scan(report):
    sr, _, result = report
    (group,) = sr.content.get_image_measurement_groups()
    assert value_of(group, codes.DCM.PresenceOfProperty) == codes.SCT.Present
    assert value_of(group, own("TUMOR_TYPE")).value == "302820008"
    assert value_of(group, own("P_TUMOR")) == 93.75
    for name, probability in result.probabilities.items():
        assert value_of(group, own(f"P_{name.upper()}")) == pytest.approx(100 * probability)
    (comment,) = hd.sr.utils.find_content_items(group[0], name=codes.DCM.Comment)
    assert "for research only" in comment.value
    assert "low confidence (0.60)" in comment.value


def test_the_report_says_what_it_is(report):
    sr, segmentation, result = report
    assert (sr.CompletionFlag, sr.PreliminaryFlag, sr.VerificationFlag) == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert sr.SeriesNumber == 502
    evidence = {uid for _, _, uid, _ in sr.get_evidence()}
    assert evidence == {ds.SOPInstanceUID for ds in result.scan.dicom.datasets} | {segmentation.SOPInstanceUID}
    library = hd.sr.utils.find_content_items(sr.content[0], name=codes.DCM.ImageLibraryGroup, recursive=True)
    images = hd.sr.utils.find_content_items(library[0], value_type=hd.sr.ValueTypeValues.IMAGE)
    assert len(images) == result.scan.n_slices
    observer = hd.sr.utils.find_content_items(sr.content[0], name=codes.DCM.DeviceObserverName)
    assert observer[0].value == "tumorlens"
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99TUMORLENS"
    assert (classifier_of(result).version, segmenter_of(result).version) == (
        "0.1.0, weights cdcdcdcdcdcd",
        "0.1.0, weights abababababab",
    )


@pytest.mark.parametrize(("label", "snomed"), [("glioma", "393564001"), ("pituitary", "254956000")])
def test_other_types_have_their_codes(tmp_path, label, snomed):
    scan = read_series(saved(tmp_path, "axial"))
    (_, path, _) = written(tmp_path, scan, label)
    group = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()[0]
    assert value_of(group, own("TUMOR_TYPE")).value == snomed
    assert (group.finding_sites[0].value == codes.SCT.Pituitary) == (label == "pituitary")


def test_a_lesion_of_unknown_measures(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    unknown = dict.fromkeys(["volume_mm3", "volume_ml", "axial_longest_mm", "axial_perpendicular_mm"])
    result = result_of(scan, lesions=[lesion(1, **unknown, centroid_ras_mm=None, side=None)])
    numbers = (with_lesions(scan) == 1).astype(np.uint16)
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, result.label, segmenter_of(result))
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation)
    assert errors_in(tmp_path / "sr.dcm") == []
    (group,) = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert group.get_measurements() == []


# --- the overlay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "directions"), [("axial", "LP"), ("coronal", "LF"), ("sagittal", "PF")])
def test_the_overlay_keeps_its_pixels_and_says_where_it_looks(tmp_path, kind, directions):
    scan = read_series(saved(tmp_path, kind))
    picture = np.random.default_rng(0).integers(0, 255, (31, 45, 3)).astype(np.uint8)  # an odd number of bytes
    write_overlay_dicom(tmp_path / "sc.dcm", picture, result_of(scan))
    ds = dcmread(tmp_path / "sc.dcm")
    np.testing.assert_array_equal(ds.pixel_array, picture)
    assert "".join(ds.PatientOrientation) == directions
    assert ds.SeriesDescription == ds.DerivationDescription == "tumorlens overlay, for research only"
    assert (ds.SeriesNumber, ds.BurnedInAnnotation) == (503, "NO")
    (shown,) = ds.SourceImageSequence
    assert shown.ReferencedSOPInstanceUID == scan.dicom.datasets[scan.dicom.places[1][0]].SOPInstanceUID
    assert errors_in(tmp_path / "sc.dcm") == []


def test_the_overlay_of_a_multi_frame_file_names_the_frame(tmp_path):
    scan = read_series(saved(tmp_path, "enhanced"))
    ds = write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert ds.SourceImageSequence[0].ReferencedFrameNumber == scan.dicom.places[1][1] + 1


def test_the_overlay_of_another_plane_refers_to_all_instances(tmp_path):
    scan = replace(read_series(saved(tmp_path, "axial")), plane_axis=0)
    ds = write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert len(ds.SourceImageSequence) == len(scan.dicom.datasets)
    assert list(ds.PatientOrientation) == ["P", "F"]


def test_a_picture_without_geometry_has_an_overlay_and_no_mask(tmp_path):
    (path,) = saved(tmp_path, "single")
    ds = dcmread(path)
    del ds.ImageOrientationPatient, ds.ImagePositionPatient
    ds.save_as(path)
    scan = read_series([path])
    assert not scan.volume
    write_overlay_dicom(tmp_path / "sc.dcm", np.zeros((20, 20, 3), np.uint8), result_of(scan))
    assert errors_in(tmp_path / "sc.dcm") == []
    with pytest.raises(InputError, match="no ImageOrientationPatient"):
        write_mask_dicom(tmp_path / "seg.dcm", np.ones(scan.voxels.shape, np.uint16), scan, "glioma", ALGORITHM)
