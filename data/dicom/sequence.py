"""The sequence of an MR series by its header: weighting, contrast agent, plane, and whether it is a scan at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.dicom.headers import frame_items, number, numbers, text, value

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_OTHER_WEIGHTINGS = (  # in this order, then T1, T2, PD: a T1 map is not a T1, a T2* not a T2, a T1 FLAIR not a T2
    ("diffusion", r"dwi|diffus|\badc\b|\btrace|dti\b|ep2d.?d|\bb\s?\d{3,4}\b|tensor"),
    ("perfusion", r"perf|\bdsc\b|\bdce|dynam|\basl\b|\bpwi\b|\br?cb[fv]\b|\bmtt\b|\bttp\b|\btmax\b"),
    ("angiography", r"\btof\b|\bmr[av]\b|angio|venogr|\btwist\b|\btricks\b"),
    ("a map", r"\bmaps?\b|\bsub\b|subtract"),
    ("susceptibility", r"\bswi\b|swan|hemo|t2\s?\*|t2\s?star|venbold|\bpha\b|phase (map|im)|\bmip\b"),
    ("functional", r"\bbold\b|fmri|rest(ing)?.?state"),
)

_T1 = r"t1(?!\d)|mp\s?2?\s?rage|\bf?spgr\b|\bbravo\b|\bvibe\b|\blava\b|\bthrive\b|\btfl\b|\btfe\b"
_T2 = r"t2(?!\d)|flair|dark.?fluid|\bstir\b|\btirm\b|ciss|fiesta"
_PD = r"\bpdw?\b|proton.?dens"
_AGENT = r"(contrast\w*|kontrast\w*|c|gd|gad\w*|km|iv|inj\w*|enh\w*|mdc|ce)\b"
_MINUS = r"(?<![a-z])(c|gd|gad\w*|km|ce|contrast)\s?\(?-\)?(?![a-z0-9])|(?<=\s)-\s?(c|gd|km|ce)\b"

_WITHOUT = (
    rf"\bpre\b(?!\s?op)(\s?{_AGENT})?|\bpre{_AGENT}|\bnativ\w*|\bunenhanced\b|\bplain\b|\bw\s?o\b(\s?{_AGENT})?"
    rf"|\b(non?|vor|prae|avant|before|sem|sin|senza|zonder)\s?(\w+\s)?{_AGENT}|\b(without|ohne|sans)\b(\s?{_AGENT})?"
)

_BOTH = r"\bw\s?(and|&|\+)?\s?(w\s?o|without)\b|with (and|or|&|\+) without|\bmit (und|oder) ohne"

_WITH = (
    r"\+\s?(c|gd|gad\w*|km|k|ce|mdc|contrast)\b|\bc\s?\+|\bpost\b(?!\s?(fossa|op))|\bpost(contrast|gd|gad|km)"
    r"|\b(gd|gad\w*|km|mdc|ce|inj\w*)\b|t1\s?(c|ce|gd|km)\b|enhanced|dotarem|magnevist|prohance"
    r"|(?<!phase )(?<!high )(?<!tissue )\b[ck]ontrast"
)

_LOCALIZER = (
    r"\bloc\b|localiz|localis|scout|survey|three.?plane|3.?plane|\b3.?pl\b|calibration|\basset\b|\bsmart.?brain\b"
)

_MAPS = ("ADC", "FA", "TRACEW", "DIFFUSION", "PERFUSION", "MTT", "CBF", "CBV", "PROJECTION IMAGE", "MIN IP")
_ELSEWHERE = r"spine|\b[clt]\s?sp\b|lumb|thora|cervic|\bneck\b|knee|hip\b|shoulder|abdom|liver|pelvis|prostat|breast"
_HEAD_PARTS = ("head", "brain", "skull", "crani", "cereb", "pituit", "sella", "orbit", "iac", "neuro", "kopf")


def weighting_of(header: Dataset) -> str | None:
    """``"T1"``, ``"T2"``, ``"PD"``, ``"diffusion"`` ..., by the header's words, else by its times; none if unknown."""
    contrast = text(header, "AcquisitionContrast").upper()  # which enhanced MR has
    if contrast in ("T1", "T2", "DIFFUSION", "PERFUSION"):
        return contrast if contrast[0] == "T" else contrast.lower()
    words = _words(header)
    for name, pattern in (*_OTHER_WEIGHTINGS, ("T1", _T1), ("T2", _T2), ("PD", _PD)):
        if re.search(pattern, words):
            return name
    return _weighting_by_times(header)


def contrast_of(header: Dataset) -> bool | None:
    """Whether contrast agent had been given; none if the header does not say.

    The series' own description comes first. Scanners fill the agent's element for a whole examination, so it comes
    second. The protocol's name may also mean a whole examination ("with and without"), so it comes last.
    """
    by_description = _contrast_in(_names(header, "SeriesDescription", "SequenceName"))
    if by_description is not None:
        return by_description
    agent = text(header, "ContrastBolusAgent").lower()
    if agent:
        return not re.fullmatch(r"(no|none|n|0|false|without|ohne|kein\w*|n/?a|-+)", agent)
    if any(value(header, sequence) for sequence in ("ContrastBolusAgentSequence", "ContrastBolusUsageSequence")):
        return True
    return _contrast_in(_names(header, "ProtocolName"))


def _contrast_in(names: str) -> bool | None:
    """Whether names say that contrast agent was given; none if they say nothing, or both."""
    words = _spaced(names)
    if re.search(_BOTH, words):
        return None
    without_agent = bool(re.search(_MINUS, names.lower()) or re.search(_WITHOUT, words))
    rest = re.sub(_WITHOUT, " ", _spaced(re.sub(_MINUS, " ", names.lower())))  # "without contrast" names the agent, too
    with_agent = bool(re.search(_WITH, rest))
    return None if without_agent == with_agent else with_agent


def plane_of(header: Dataset) -> str | None:
    """``"axial"``, ``"coronal"`` or ``"sagittal"``: the plane nearest to the images', or none."""
    orientations = (numbers(item, "ImageOrientationPatient") for item in frame_items(header))
    cosines = next((c for c in orientations if c is not None), None)
    if cosines is None or len(cosines) != 6:
        return None
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def class_name(header: Dataset) -> str:
    """The name of the SOP Class UID, such as ``"MR Image"``; empty if the standard does not have it."""
    from pydicom.uid import UID

    uid = UID(text(header, "SOPClassUID"))
    return uid.name.removesuffix(" Storage") if uid and uid.name != str(uid) else ""


def refusal_of(header: Dataset) -> str | None:
    """Why a series cannot be run, or none."""
    modality, kind = text(header, "Modality").upper(), class_name(header)
    if modality and modality != "MR":
        return f"its modality is {modality[:16]}, not MR"
    if not modality and kind and "MR" not in kind and "Secondary Capture" not in kind:
        return f"it is a {kind}, not MR"
    if (number(header, "SamplesPerPixel") or 1) > 1 or text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        return "it holds color pictures (a secondary capture), not a scan"
    return None


def unfitness_of(header: Dataset) -> str | None:
    """Why a series is run only if ``--series`` names it, or none."""
    kinds = text(header, "ImageType").upper().split("\\")
    if "LOCALIZER" in kinds or re.search(_LOCALIZER, _words(header)):
        return "it is a localizer"
    for kind in kinds:
        if kind in _MAPS:
            return f"it is a derived map ({kind})"
    return None


def is_original(header: Dataset) -> bool:
    """Whether the images were acquired, not computed from others."""
    return "DERIVED" not in text(header, "ImageType").upper()


def is_elsewhere(header: Dataset) -> bool:
    """Whether the header names a part of the body that is not the head."""
    return body_part_warning(header) is not None or bool(re.search(_ELSEWHERE, _words(header)))


def body_part_warning(header: Dataset) -> str | None:
    """A warning if the header names a part of the body that is not the head, or none."""
    part = text(header, "BodyPartExamined")
    if not part or any(word in part.lower() for word in _HEAD_PARTS):
        return None
    shown = part.upper() if re.fullmatch(r"[A-Za-z]{3,16}", part) else "another"  # people may have typed anything there
    return f"the header's body part is {shown}, not the head"


def _names(header: Dataset, *tags: str) -> str:
    """The names that people gave the series, in one text."""
    return " ".join(text(header, tag) for tag in tags or ("SeriesDescription", "ProtocolName", "SequenceName"))


def _spaced(names: str) -> str:
    """Names in small letters, with one space between words."""
    return re.sub(r"[\s_\-./\\()\[\],:;]+", " ", names.lower())


def _words(header: Dataset) -> str:
    return _spaced(_names(header))


def _weighting_by_times(header: Dataset) -> str | None:
    """The weighting by repetition, echo and inversion times in ms; none if they are missing or fit none."""
    repetition, echo = number(header, "RepetitionTime"), number(header, "EchoTime")
    inversion, sequence = number(header, "InversionTime"), text(header, "ScanningSequence").upper()
    if repetition is None or echo is None or "EP" in sequence:
        return None
    if "GR" in sequence and "SE" not in sequence:
        return "T1" if echo <= 12 else "susceptibility"
    if echo >= 60:
        return "T2"
    if repetition <= 1200 or (inversion is not None and 500 <= inversion <= 1300):
        return "T1"
    return "PD" if echo <= 40 else None
