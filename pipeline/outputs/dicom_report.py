"""A `Result` -> DICOM Structured Report: the measurements, coded by template TID 1500 (PS3.16), for machines to read.

A Comprehensive 3D SR (PS3.3 A.35.13). One measurement group for each lesion (TID 1411) refers to the lesion's segment
in the DICOM Segmentation. One group for the whole scan (TID 1501) holds the presence of a tumor and the probabilities;
where lesions have regions, one more for each holds its volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.dicom.derived import (
    MANUFACTURER,
    REPORT_SERIES,
    RESEARCH_ONLY,
    Algorithm,
    frame_of_reference,
    highdicom_errors,
    inherit,
    new_series,
    reference_to,
    save_dicom,
    source_of,
    uid,
)
from tumorlens.data.dicom.source import DicomSource
from tumorlens.data.labels import SHIPPED_CLASSES, TABLE, TUMOR, TUMOR_FREE, ClassList
from tumorlens.pipeline.measurements.lesions import Lesion
from tumorlens.pipeline.result import Result

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WHAT = "DICOM structured report"
_SCHEME = "99TUMORLENS"  # private: PS3.16 has no codes for the probabilities of tumor types

_OWN_CODES = {
    "P_TUMOR": "Probability of a tumor",
    "P_LESION": "Probability of a lesion",
    **{f"P_{row.name.upper()}": f"Probability of {row.prose}" for row in TABLE},
    "TUMOR_TYPE": "Predicted tumor type",
}

_COMMENT = f"Output of tumorlens, {RESEARCH_ONLY}: not a diagnosis, not verified by a physician."

# SNOMED CT codes that are not in pydicom's dictionary.
_MRI_OF_BRAIN = ("816077007", "SCT", "Magnetic resonance imaging of brain")
_SOURCE = ("260753009", "SCT", "Source")


def classifier_of(result: Result) -> Algorithm:
    """Stage one as a DICOM algorithm."""
    card = result.models.get("classification", {})
    name = f"tumorlens classifier ({card.get('architecture') or 'unknown'})"
    return _algorithm(name, card, result.versions, {"tumor threshold": f"{result.threshold:.6g}"})


def segmenter_of(result: Result) -> Algorithm:
    """Stage two as a DICOM algorithm, for `data.dicom.seg.write_mask_dicom`."""
    return segmenter_from(result.models, result.versions)


def segmenter_from(models: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> Algorithm:
    """The same from ``models`` and ``versions`` of a result, as ``result.json`` holds them."""
    card = models.get("segmentation", {})
    kind = card.get("encoder") or card.get("architecture") or "unknown"
    return _algorithm(f"tumorlens Res-U-Net ({kind})", card, versions, {})


def write_report_dicom(path: Path, result: Result, segmentation: Dataset, regions: Dataset | None = None) -> Dataset:
    """Write the measurements of a scan as a DICOM Structured Report.

    The report is complete, preliminary and not verified. A scan without lesions has only the group of the whole scan.

    Args:
        path: The file to write.
        result: The result of a scan that was read from DICOM.
        segmentation: The object that `data.dicom.seg.write_mask_dicom` made of the same lesions.
        regions: The object that `data.dicom.seg.write_regions_dicom` made of their regions, or None.

    Returns:
        The object as written, a ``highdicom.sr.Comprehensive3DSR``.

    Raises:
        InputError: The scan is not from DICOM, its headers lack the UIDs that the report refers to, or highdicom
            rejects them. The message says what is missing.
    """
    import highdicom as hd

    source = source_of(result.scan)
    instances = [reference_to(dataset) for dataset in source.datasets]
    series = new_series(source, REPORT_SERIES)
    classifier = classifier_of(result)
    with highdicom_errors(_WHAT):
        content = hd.sr.MeasurementReport(
            observation_context=_observer(classifier),
            procedure_reported=hd.sr.CodedConcept(*_MRI_OF_BRAIN),
            imaging_measurements=[
                _scan_group(result, classifier),
                *([] if regions is None else _region_groups(result, regions)),
                *(_lesion_group(lesion, result, segmentation, source) for lesion in result.lesions),
            ],
        )
        content[0].ContentSequence.insert(-1, _image_library(instances, frame_of_reference(source)))
        report: Dataset = hd.sr.Comprehensive3DSR(
            evidence=[reference_to(segmentation), *instances],
            content=content,
            is_complete=True,
            is_final=False,
            is_verified=False,
            manufacturer_model_name=classifier.name[:64],
            software_versions=classifier.package_version,
            device_serial_number=classifier.serial_number,
            series_description=f"tumorlens measurements, {RESEARCH_ONLY}",
            **series,
        )
        report.CodingSchemeIdentificationSequence = [_own_scheme()]
        inherit(report, source)
        save_dicom(path, report)
    return report


def _algorithm(
    name: str, card: Mapping[str, Any], versions: Mapping[str, str], parameters: dict[str, str]
) -> Algorithm:
    return Algorithm(name, versions.get("tumorlens", "unknown"), str(card.get("sha256") or ""), parameters)


def _observer(algorithm: Algorithm) -> Any:
    """The program as the observer (TID 1004)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    # The same program with the same weights is the same device.
    device = generate_uid(entropy_srcs=[MANUFACTURER, algorithm.package_version, algorithm.weights_sha256])
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=str(device),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.version,
    )
    context = hd.sr.ObserverContext(codes.DCM.Device, attributes)
    return hd.sr.ObservationContext(observer_device_context=context)


def _image_library(instances: list[Dataset], frame_of_reference_uid: str) -> Any:
    """The source instances (TID 1600), with the descriptors (TID 1602) that all of them share.

    highdicom's own image library repeats a dozen descriptors for each instance, requires elements that not every header
    has, and does not accept multi-frame instances.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    relation = hd.sr.RelationshipTypeValues
    group = hd.sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=relation.CONTAINS)
    group.ContentSequence = hd.sr.ContentSequence(
        [
            hd.sr.CodeContentItem(codes.DCM.Modality, codes.cid29.MagneticResonance, relation.HAS_ACQ_CONTEXT),
            hd.sr.UIDRefContentItem(codes.DCM.FrameOfReferenceUID, frame_of_reference_uid, relation.HAS_ACQ_CONTEXT),
            *(
                hd.sr.ImageContentItem(
                    hd.sr.CodedConcept(*_SOURCE),
                    instance.SOPClassUID,
                    instance.SOPInstanceUID,
                    relationship_type=relation.CONTAINS,
                )
                for instance in instances
            ),
        ]
    )
    library = hd.sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=relation.CONTAINS)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library


def _scan_group(result: Result, classifier: Algorithm) -> Any:
    """Presence of a tumor and the probabilities for the whole scan (TID 1501)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    probabilities = {_own_code("P_TUMOR"): 1.0 - result.probabilities.get(TUMOR_FREE, 0.0)}
    probabilities |= {_probability_code(name, result.classes): p for name, p in result.probabilities.items()}
    present = codes.SCT.Present if result.positive else codes.SCT.Absent  # CID 240
    presence = hd.sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, present)
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Whole scan"),
        finding_type=codes.SCT.Neoplasm,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Brain)],
        algorithm_id=_identification(classifier),
        measurements=[
            hd.sr.Measurement(code, round(100 * float(p), 4), codes.UCUM.Percent) for code, p in probabilities.items()
        ],
        qualitative_evaluations=[presence, *_predicted_type(result)],
    )
    named = result.classes.row(result.label)
    label = [] if named in (*TABLE, SHIPPED_CLASSES.row(TUMOR)) else [f"Label: {named.prose}."]
    remarks = [_COMMENT, *label, *([f"To be looked at: {'; '.join(result.review)}."] if result.review else [])]
    group[0].ContentSequence.append(
        hd.sr.TextContentItem(codes.DCM.Comment, " ".join(remarks), hd.sr.RelationshipTypeValues.CONTAINS)
    )
    return group


def _region_groups(result: Result, regions: Dataset) -> list[Any]:
    """The volume of each region in the whole scan (TID 1501), under the tracking identifier of its segment."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
            finding_type=codes.SCT.Neoplasm,
            finding_sites=[hd.sr.FindingSite(getattr(codes.SCT, result.classes.row(result.label).site))],
            algorithm_id=_identification(segmenter_of(result)),
            measurements=[hd.sr.Measurement(codes.SCT.Volume, size.volume_mm3, codes.UCUM.CubicMillimeter)],
        )
        for segment, size in zip(regions.SegmentSequence, result.region_sizes, strict=True)
        if size.volume_mm3 is not None
    ]


def _lesion_group(lesion: Lesion, result: Result, segmentation: Dataset, source: DicomSource) -> Any:
    """The measurements of one lesion (TID 1411), under the tracking identifier of its segment."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segment = next(s for s in segmentation.SegmentSequence if s.SegmentNumber == lesion.number)
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=lesion.number,
            source_series=hd.sr.SourceSeriesForSegmentation(uid(source.datasets[0], "SeriesInstanceUID")),
        ),
        finding_type=codes.SCT.Neoplasm,
        finding_sites=[_site(lesion, result)],
        algorithm_id=_identification(segmenter_of(result)),
        measurements=_measurements(lesion) or None,
        qualitative_evaluations=_predicted_type(result) or None,
    )
    if lesion.centroid_ras_mm is not None:
        group[0].ContentSequence.append(_center(lesion.centroid_ras_mm, frame_of_reference(source)))
    return group


def _measurements(lesion: Lesion) -> list[Any]:
    """Volume and the two diameters, as far as they are known, and the probability that it is a lesion.

    Reports give the axial diameters of a lesion. Where the scan has no axial plane, those of the slice replace them.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    long, short = lesion.axial_longest_mm, lesion.axial_perpendicular_mm
    if long is None:
        long, short = lesion.longest_diameter_mm, lesion.perpendicular_diameter_mm
    measures = (
        (codes.SCT.Volume, lesion.volume_mm3, codes.UCUM.CubicMillimeter),
        (codes.SCT.LongAxis, long, codes.UCUM.Millimeter),
        (codes.SCT.ShortAxis, short, codes.UCUM.Millimeter),
        (_own_code("P_LESION"), lesion.confidence and round(100 * lesion.confidence, 4), codes.UCUM.Percent),
    )
    return [hd.sr.Measurement(name, float(value), unit) for name, value, unit in measures if value is not None]


def _site(lesion: Lesion, result: Result) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    laterality = {"left": codes.SCT.Left, "right": codes.SCT.Right}.get(lesion.side or "")  # CID 244 has no midline
    return hd.sr.FindingSite(getattr(codes.SCT, result.classes.row(result.label).site), laterality)


def _center(ras_mm: tuple[float, float, float], frame_of_reference_uid: str) -> Any:
    """The center of gravity as a point in DICOM's patient coordinates, which run to left, posterior and superior.

    This is an addition to TID 1411, which is extensible.
    """
    import highdicom as hd
    import numpy as np
    from pydicom.sr.codedict import codes

    right, anterior, superior = ras_mm
    return hd.sr.Scoord3DContentItem(
        name=codes.DCM.Center,
        graphic_type=hd.sr.GraphicTypeValues3D.POINT,
        graphic_data=np.array([[-right, -anterior, superior]], np.float64),
        frame_of_reference_uid=frame_of_reference_uid,
        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
    )


def _predicted_type(result: Result) -> list[Any]:
    """The tumor type as an evaluation; empty for a scan without tumor."""
    import highdicom as hd

    concept = result.classes.row(result.label).concept
    if concept is None:
        return []
    return [hd.sr.QualitativeEvaluation(_own_code("TUMOR_TYPE"), hd.sr.CodedConcept(*concept))]


def _own_code(value: str, meaning: str = "") -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(value, _SCHEME, meaning or _OWN_CODES[value])


def _probability_code(name: str, classes: ClassList) -> Any:
    """The code of a class's probability: by its name, or by its number where the table lacks it (16 letters fit)."""
    code = f"P_{name.upper()}"
    if code in _OWN_CODES:
        return _own_code(code)
    return _own_code(f"P_CLASS_{classes.names.index(name)}", f"Probability of {classes.prose(name)}"[:64])


def _own_scheme() -> Dataset:
    """Meaning of the private coding scheme designator (SOP Common Module, PS3.3 C.12.1)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = _SCHEME, "tumorlens private codes"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _identification(algorithm: Algorithm) -> Any:
    """The algorithm (TID 4019)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=[f"{name}={value}" for name, value in algorithm.parameters.items()] or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )
