"""A `Result` -> DICOM Structured Report: what was measured, coded by template TID 1500 (PS3.16), for machines to read.

A Comprehensive 3D SR (PS3.3 A.35.13). One measurement group for each lesion (TID 1411) refers to the lesion's segment
in the DICOM Segmentation; one for the whole scan (TID 1501) holds the presence of a tumor and the probabilities.
"""

from __future__ import annotations

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
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.pipeline.measurements.lesions import Lesion
from tumorlens.pipeline.result import Result

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WHAT = "DICOM structured report"
_SCHEME = "99TUMORLENS"  # private: PS3.16 has no codes for the probabilities of tumor types

_OWN_CODES = {
    "P_TUMOR": "Probability of a tumor",
    "P_NO_TUMOR": "Probability of no tumor",
    "P_GLIOMA": "Probability of glioma",
    "P_MENINGIOMA": "Probability of meningioma",
    "P_PITUITARY": "Probability of pituitary tumor",
    "TUMOR_TYPE": "Predicted tumor type",
}

_COMMENT = f"Output of tumorlens, {RESEARCH_ONLY}: not a diagnosis, not verified by a physician."

# SNOMED CT codes that pydicom's dictionary of DICOM's own context groups does not have.
_MRI_OF_BRAIN = ("816077007", "SCT", "Magnetic resonance imaging of brain")
_SOURCE = ("260753009", "SCT", "Source")

_TYPES = {
    "glioma": ("393564001", "SCT", "Glioma"),
    "meningioma": ("302820008", "SCT", "Intracranial meningioma"),
    "pituitary": ("254956000", "SCT", "Pituitary adenoma"),
}


def classifier_of(result: Result) -> Algorithm:
    """Stage one as DICOM names an algorithm."""
    card = result.models.get("classification", {})
    name = f"tumorlens classifier ({card.get('architecture') or 'unknown'})"
    return _algorithm(name, card, result, {"tumor threshold": f"{result.threshold:.6g}"})


def segmenter_of(result: Result) -> Algorithm:
    """Stage two as DICOM names an algorithm; what `data.dicom.seg.write_mask_dicom` wants to know."""
    card = result.models.get("segmentation", {})
    kind = card.get("encoder") or card.get("architecture") or "unknown"
    return _algorithm(f"tumorlens Res-U-Net ({kind})", card, result, {})


def write_report_dicom(path: Path, result: Result, segmentation: Dataset) -> Dataset:
    """Write the measurements of a scan as a DICOM Structured Report.

    It is complete, not verified and preliminary. A scan without lesions has the group of the whole scan only.

    Args:
        path: Where to.
        result: Of a scan from DICOM.
        segmentation: What `data.dicom.seg.write_mask_dicom` made of the same lesions.

    Returns:
        The object as written, a ``highdicom.sr.Comprehensive3DSR``.

    Raises:
        InputError: The scan is not from DICOM, its headers lack the UIDs by which the report refers to it, or highdicom
            does not take them; the message says what is missing.
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
                *(_lesion_group(lesion, result, segmentation, source) for lesion in result.lesions),
            ],
        )
        content[0].ContentSequence.insert(-1, _image_library(instances, frame_of_reference(source)))
        made: Dataset = hd.sr.Comprehensive3DSR(
            evidence=[reference_to(segmentation), *instances],  # of the first it wants to know the class; ours it knows
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
        made.CodingSchemeIdentificationSequence = [_own_scheme()]
        inherit(made, source)
        save_dicom(path, made)
    return made


def _algorithm(name: str, card: dict[str, Any], result: Result, parameters: dict[str, str]) -> Algorithm:
    version = result.versions.get("tumorlens", "unknown")
    return Algorithm(name, version, str(card.get("sha256") or ""), parameters)


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

    highdicom's own library repeats a dozen descriptors for each instance, wants elements that not every header has, and
    takes no multi-frame instance.
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
    """Presence of a tumor and the probabilities, of the whole scan (TID 1501)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    probabilities = {"P_TUMOR": 1.0 - result.probabilities[CLASSES[NO_TUMOR]]}
    probabilities |= {f"P_{name.upper()}": p for name, p in result.probabilities.items()}
    present = codes.SCT.Present if result.positive else codes.SCT.Absent  # CID 240
    evaluations = [hd.sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, present)]
    if result.positive:
        evaluations.append(_predicted_type(result.label))
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Whole scan"),
        finding_type=codes.SCT.Neoplasm,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Brain)],
        algorithm_id=_identification(classifier),
        measurements=[
            hd.sr.Measurement(_own_code(code), round(100 * float(p), 4), codes.UCUM.Percent)
            for code, p in probabilities.items()
        ],
        qualitative_evaluations=evaluations,
    )
    remarks = [_COMMENT, *([f"To be looked at: {'; '.join(result.review)}."] if result.review else [])]
    group[0].ContentSequence.append(
        hd.sr.TextContentItem(codes.DCM.Comment, " ".join(remarks), hd.sr.RelationshipTypeValues.CONTAINS)
    )
    return group


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
        finding_sites=[_site(lesion, result.label)],
        algorithm_id=_identification(segmenter_of(result)),
        measurements=_measurements(lesion) or None,
        qualitative_evaluations=[_predicted_type(result.label)] if result.positive else None,
    )
    if lesion.centroid_ras_mm is not None:
        group[0].ContentSequence.append(_centre(lesion.centroid_ras_mm, frame_of_reference(source)))
    return group


def _measurements(lesion: Lesion) -> list[Any]:
    """Volume and the two diameters, those that are known.

    The diameters are the axial ones, which stand for a lesion in reports; where the scan has no axial plane, those of
    the slice.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    long, short = lesion.axial_longest_mm, lesion.axial_perpendicular_mm
    if long is None:
        long, short = lesion.longest_diameter_mm, lesion.perpendicular_diameter_mm
    known = (
        (codes.SCT.Volume, lesion.volume_mm3, codes.UCUM.CubicMillimeter),
        (codes.SCT.LongAxis, long, codes.UCUM.Millimeter),
        (codes.SCT.ShortAxis, short, codes.UCUM.Millimeter),
    )
    return [hd.sr.Measurement(name, float(value), unit) for name, value, unit in known if value is not None]


def _site(lesion: Lesion, label: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    laterality = {"left": codes.SCT.Left, "right": codes.SCT.Right}.get(lesion.side or "")  # CID 244 has no midline
    return hd.sr.FindingSite(codes.SCT.Pituitary if label == "pituitary" else codes.SCT.Brain, laterality)


def _centre(ras_mm: tuple[float, float, float], frame_of_reference_uid: str) -> Any:
    """The centre of gravity as a point in the patient's coordinates, which DICOM counts to the left and to posterior.

    An addition to TID 1411, which is extensible.
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


def _predicted_type(label: str) -> Any:
    import highdicom as hd

    return hd.sr.QualitativeEvaluation(_own_code("TUMOR_TYPE"), hd.sr.CodedConcept(*_TYPES[label]))


def _own_code(value: str) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(value, _SCHEME, _OWN_CODES[value])


def _own_scheme() -> Dataset:
    """What the private designator stands for (SOP Common Module, PS3.3 C.12.1)."""
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
