"""DICOM Structured Report: each lesion with its segment, measurements, place and codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom.sr.codedict import codes

from tests.pipeline.fixed import BRATS
from tests.scans.dicom_results import errors_in, lesion, result_of, saved, value_of, with_lesions, written
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.seg import write_mask_dicom, write_regions_dicom
from tumorlens.data.labels import ClassList
from tumorlens.data.spellings import canonical_label
from tumorlens.pipeline.measurements.regions import RegionSize
from tumorlens.pipeline.outputs.dicom_report import classifier_of, segmenter_of, write_report_dicom

hd = pytest.importorskip("highdicom")


def own(value):
    return hd.sr.CodedConcept(value, "99TUMORLENS", "")


@pytest.fixture
def report(tmp_path):
    """A report with two lesions, read back, its segmentation, and its result."""
    scan = read_series(saved(tmp_path, "sagittal"))
    lesions = [
        lesion(1, confidence=0.9125),
        lesion(2, axial_longest_mm=None, longest_diameter_mm=9.5, perpendicular_diameter_mm=4.5, centroid_ras_mm=None),
    ]
    result = result_of(scan, lesions=lesions, review=["low confidence (0.60)"])
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, result.label, segmenter_of(result))
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation)
    return hd.sr.srread(tmp_path / "sr.dcm"), segmentation, result


def test_the_report_lists_each_lesion_with_its_segment(report):
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


def test_the_report_holds_the_measurements(report):
    sr, _, result = report
    first, second = sr.content.get_volumetric_roi_measurement_groups()
    assert value_of(first, codes.SCT.Volume) == pytest.approx(result.lesions[0].volume_mm3)
    assert value_of(first, codes.SCT.LongAxis) == 31.5
    assert value_of(first, codes.SCT.ShortAxis) == 12.25
    (volume,) = first.get_measurements(codes.SCT.Volume)
    assert volume.unit == codes.UCUM.CubicMillimeter
    assert {m.unit for m in second.get_measurements() if m.name != codes.SCT.Volume} == {codes.UCUM.Millimeter}
    (confidence,) = first.get_measurements(own("P_LESION"))
    assert (confidence.value, confidence.unit) == (91.25, codes.UCUM.Percent)
    assert second.get_measurements(own("P_LESION")) == []
    assert (value_of(second, codes.SCT.LongAxis), value_of(second, codes.SCT.ShortAxis)) == (9.5, 4.5)


def test_the_report_holds_the_place(report):
    sr, segmentation, _ = report
    first, second = sr.content.get_volumetric_roi_measurement_groups()
    for group, side in ((first, codes.SCT.Left), (second, codes.SCT.Right)):
        (site,) = group.finding_sites
        assert site.value == codes.SCT.Brain
        assert site.laterality == side
    (center,) = hd.sr.utils.find_content_items(first[0], name=codes.DCM.Center)
    np.testing.assert_allclose(center.value, [[-10.5, 20.25, 30.0]])
    assert center.frame_of_reference_uid == segmentation.FrameOfReferenceUID
    assert hd.sr.utils.find_content_items(second[0], name=codes.DCM.Center) == []


def test_the_report_describes_the_whole_scan(report):
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


def test_the_report_describes_itself(report):
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


def test_a_lesion_without_measurements(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    unknown = dict.fromkeys(["volume_mm3", "volume_ml", "axial_longest_mm", "axial_perpendicular_mm"])
    result = result_of(scan, lesions=[lesion(1, **unknown, centroid_ras_mm=None, side=None)])
    numbers = (with_lesions(scan) == 1).astype(np.uint16)
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", numbers, scan, result.label, segmenter_of(result))
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation)
    assert errors_in(tmp_path / "sr.dcm") == []
    (group,) = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert group.get_measurements() == []


def test_classes_that_no_table_knows_have_codes_of_their_own(tmp_path):
    scan = read_series(saved(tmp_path, "sagittal"))
    long = "glioma (astrocytoma, ganglioglioma, glioblastoma, oligodendroglioma) T1"
    classes = ClassList.of_labels(["no_tumor", "glioma", canonical_label(long)])
    label = classes.names[2]
    result = replace(
        result_of(scan, lesions=[lesion(1)]),
        classes=classes,
        label=label,
        probabilities={"no_tumor": 0.1, "glioma": 0.2, label: 0.7},
    )
    numbers = (with_lesions(scan) > 0).astype(np.uint16)
    segmentation = write_mask_dicom(
        tmp_path / "seg.dcm", numbers, scan, label, segmenter_of(result), classes=result.classes
    )
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation)
    assert segmentation.SegmentSequence[0].SegmentLabel.startswith("Lesion 1 (glioma astrocytoma")
    sr = hd.sr.srread(tmp_path / "sr.dcm")
    (group,) = sr.content.get_planar_roi_measurement_groups() or sr.content.get_volumetric_roi_measurement_groups()
    assert value_of(group, own("TUMOR_TYPE")) == codes.SCT.Neoplasm
    (whole,) = sr.content.get_image_measurement_groups()
    measured = {m.name.value: (m.name.meaning, m.value) for m in whole.get_measurements()}
    assert measured["P_TUMOR"][1] == pytest.approx(90)
    assert measured["P_GLIOMA"][1] == pytest.approx(20)
    assert measured["P_CLASS_2"] == (f"Probability of {classes.prose(label)}"[:64], pytest.approx(70))
    assert not errors_in(tmp_path / "sr.dcm") and not errors_in(tmp_path / "seg.dcm")


def test_each_region_has_its_volume(tmp_path):
    scan = read_series(saved(tmp_path, "axial"))
    values = np.array([0, 2, 4], np.uint8)[with_lesions(scan)]
    sizes = [RegionSize(volume_mm3=volume) for volume in (90.5, 30.25, 0.0)]
    result = replace(result_of(scan, lesions=[lesion(1), lesion(2)]), regions=BRATS, region_sizes=sizes)
    segmentation = write_mask_dicom(tmp_path / "seg.dcm", with_lesions(scan), scan, result.label, segmenter_of(result))
    planes, named = BRATS.planes(BRATS.bits(values)), [(row.name, row.color) for row in BRATS.rows]
    regions = write_regions_dicom(tmp_path / "r.dcm", planes, named, scan, result.label, segmenter_of(result))
    write_report_dicom(tmp_path / "sr.dcm", result, segmentation, regions)
    assert errors_in(tmp_path / "sr.dcm") == []
    content = hd.sr.srread(tmp_path / "sr.dcm").content
    assert len(content.get_volumetric_roi_measurement_groups()) == 2
    for segment, size in zip(regions.SegmentSequence, sizes, strict=True):
        (group,) = content.get_image_measurement_groups(tracking_uid=segment.TrackingUID)
        assert group.tracking_identifier == segment.TrackingID
        assert value_of(group, codes.SCT.Volume) == size.volume_mm3
