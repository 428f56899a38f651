"""The acquisition of an MR series by its header: weighting, contrast agent, plane, and what its volumes differ in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.headers import frame_items, number, numbers, text, value
from tumorlens.data.errors import printable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

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
    if _is_mosaic(header):
        return (
            "it is a Siemens mosaic, which shows all slices as tiles of one picture: convert it with dcm2niix and run "
            "the NIfTI file"
        )
    if (number(header, "SamplesPerPixel") or 1) > 1 or text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        return "it holds color pictures (a secondary capture), not a scan"
    return None


def _is_mosaic(header: Dataset) -> bool:
    try:
        image_type = header.get_item("ImageType")  # as bytes: to convert it in all files of a study takes time
        if (0x0019, 0x100A) in header and "SIEMENS" in str(header[0x0019, 0x0010].value):  # NumberOfImagesInMosaic
            return True
        return image_type is not None and "MOSAIC" in str(image_type.value).upper()
    except Exception:  # a damaged file
        return False


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


# What tells the volumes of a series apart

_DAY = 86400.0  # seconds


class Described(Protocol):
    """What must be known of an image: index of its file and of the frame in it, its place in space, its header."""

    @property
    def place(self) -> tuple[int, int]: ...
    @property
    def position(self) -> NDArray[np.float64] | None: ...
    @property
    def normal(self) -> NDArray[np.float64]: ...
    @property
    def items(self) -> Sequence[Dataset]: ...


Values = Callable[[Sequence[Described]], list[Any]]  # one of each image: hashable, or none where its header has none
Texts = Callable[[list[Any]], list[str]]


def acquisition_values(full: Sequence[Described]) -> Iterator[tuple[str, Values, Texts]]:
    """Name, values and their texts of what acquisitions differ in, the clearest first.

    Args:
        full: The images at one place, which need to be parted.
    """
    for name, elements in PARAMETERS:
        yield name, read(number, *elements), as_numbers
    yield "gradient direction", read(numbers, "DiffusionGradientOrientation"), as_ranks
    for name, elements in TYPES:
        yield name, read(text, *elements), _as_texts
    yield "contrast agent", read(text, "ContrastBolusAgent"), as_ranks
    for name, elements in _COUNTS:
        yield name, read(number, *elements), as_numbers
    for n in range(len(read(numbers, _DIMENSIONS)(full[:1])[0] or ())):
        yield f"dimension {n + 1}:", partial(_dimension, n), as_numbers
    for name, element, day in TIMES:
        yield name, partial(moments, element, day), as_clock
    yield "place in its plane:", _places_in_plane, as_ranks
    yield "file", lambda images: [image.place[0] for image in images], as_ranks  # each enhanced file may be a volume
    for tag, keyword, kind in _elements(full):
        if kind in _NUMERIC:
            yield _name_of(tag), read(number, keyword), as_numbers
        elif kind == "CS":
            yield _name_of(tag), read(text, keyword), _as_texts


def other_values(full: Sequence[Described]) -> Iterator[tuple[str, Values, Texts]]:
    """The same for all other elements, which mean little or may name people."""
    for tag, keyword, kind in _elements(full):
        if kind == "UI":
            yield _name_of(tag), read(uid_numbers, keyword), as_ranks
        elif kind != "CS" and kind not in _NUMERIC:
            yield _name_of(tag), read(_content, tag), as_ranks


def _elements(full: Sequence[Described]) -> list[tuple[BaseTag, str, str]]:
    """Tag, keyword and value representation of all elements in some headers; the last two are empty if private."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    tags = sorted({tag for image in full for item in image.items for tag in item.keys()})  # noqa: SIM118
    tags = [tag for tag in tags if tag.group not in _NOT_COMPARED and tag != _SOP_INSTANCE_UID]
    return [(tag, keyword_for_tag(tag), dictionary_VR(tag) if dictionary_has_tag(tag) else "") for tag in tags]


def _name_of(tag: BaseTag) -> str:
    from pydicom.datadict import dictionary_description, dictionary_has_tag

    return dictionary_description(tag).lower() if dictionary_has_tag(tag) else f"private element {tag}"


def uid_numbers(header: Dataset, name: str) -> tuple[int, ...] | None:
    """The numbers in a UID, so that 9 comes before 10; none if it is not a UID."""
    parts = text(header, name).split(".")
    is_uid = all(re.fullmatch("[0-9]{1,64}", part) for part in parts)  # a UID has 64 letters (PS3.5 9.1)
    return tuple(int(part) for part in parts) if is_uid else None


# What acquisitions differ in. Enhanced files have other names for some.
PARAMETERS = (
    ("echo time", ("EffectiveEchoTime", "EchoTime")),
    ("echo", ("EchoNumbers",)),
    ("flip angle", ("FlipAngle",)),
    ("inversion time", ("InversionTimes", "InversionTime")),
    ("repetition time", ("RepetitionTime",)),
    ("b-value", ("DiffusionBValue",)),
)
TYPES = (("image type", ("FrameType", "ImageType")), ("component", ("ComplexImageComponent",)))
_COUNTS = (
    ("time point", ("TemporalPositionIdentifier",)),
    ("time index", ("TemporalPositionIndex",)),
    ("trigger time", ("NominalCardiacTriggerDelayTime", "TriggerTime")),
    ("acquisition", ("AcquisitionNumber",)),
)
_DIMENSIONS = "DimensionIndexValues"
# A time and its date; an element of both has no date of its own.
TIMES = (
    ("acquisition time", "FrameAcquisitionDateTime", ""),
    ("acquisition time", "AcquisitionTime", "AcquisitionDate"),
    ("acquisition time", "AcquisitionDateTime", ""),
    ("content time", "ContentTime", "ContentDate"),
    ("series time", "SeriesTime", "SeriesDate"),
)
_NOT_COMPARED = (0x0002, 0x0010, 0x7FE0)  # groups: the file, the patient, the pixels
_SOP_INSTANCE_UID = 0x00080018
_NUMERIC = ("DS", "IS", "FL", "FD", "US", "SS", "UL", "SL")


def read(kind: Callable[[Dataset, Any], Any], *names: Any) -> Values:
    """Gives the first value that each image's header has under one of some names, as `kind` reads it."""

    def value_of(image: Described) -> Any:
        found = (kind(item, name) for name in names for item in image.items)
        return next((content for content in found if content not in (None, "")), None)

    return lambda images: [value_of(image) for image in images]


def _dimension(n: int, images: Sequence[Described]) -> list[float | None]:
    return [v[n] if v is not None and n < len(v) else None for v in read(numbers, _DIMENSIONS)(images)]


def _places_in_plane(images: Sequence[Described]) -> list[tuple[float, ...]]:
    """The positions, to a tenth of a mm, without their part along the normal."""
    places = []
    for image in images:
        assert image.position is not None  # callers check it
        inside = image.position - (image.position @ image.normal) * image.normal
        places.append(tuple((np.round(inside, 1) + 0.0).tolist()))
    return places


def _content(item: Dataset, tag: Any) -> str | None:
    try:
        return str(item[tag].value)[:1024] if tag in item and item[tag].VR != "SQ" else None
    except Exception:  # pydicom converts on access, and meets any kind of broken value
        return None


def as_numbers(values: list[Any]) -> list[str]:
    return [f"{value:g}" for value in values]


def _as_texts(values: list[Any]) -> list[str]:
    return [printable(value)[:32] for value in values]


def as_ranks(values: list[Any]) -> list[str]:
    return [f"{n} of {len(values)}" for n in range(1, len(values) + 1)] if len(values) > 1 else ["given"] * len(values)


def as_clock(moments: list[Any]) -> list[str]:
    """hh:mm:ss, with as many decimals as tell the moments apart."""
    texts = [[_clock(moment, decimals) for moment in moments] for decimals in (0, 2, 6)]
    return next((shown for shown in texts if len(set(shown)) == len(shown)), texts[0])


def _clock(moment: float, decimals: int) -> str:
    whole, part = divmod(int(round(moment % _DAY, 6) * 10**decimals), 10**decimals)
    shown = f"{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{shown}.{part:0{decimals}}" if decimals else shown


def moments(name: str, day_name: str, images: Sequence[Described]) -> list[float | None]:
    """The moment of each image in seconds.

    Dates count if they differ. Without them, a series that runs past midnight leaves many hours of the day free, and
    begins after those.
    """
    times = [(time or "").replace(":", "") for time in read(text, name)(images)]
    if day_name:
        days = [_day((day or "").replace(".", "")) for day in read(text, day_name)(images)]
    else:
        days, times = [_day(time[:8]) for time in times], [time[8:] for time in times]
    clocks = [_seconds(time) for time in times]
    if None not in days and len(set(days)) > 1:
        return [None if c is None else (d or 0) * _DAY + c for d, c in zip(days, clocks, strict=True)]
    ordered = sorted({c for c in clocks if c is not None})
    gap, begin = max(((b - a, b) for a, b in pairwise(ordered)), default=(0.0, 0.0))
    return [c + _DAY if c is not None and c < begin and gap > _DAY / 2 else c for c in clocks]


def _day(digits: str) -> int | None:
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal()
    except ValueError:
        return None


def _seconds(digits: str) -> float | None:
    """A time of day (PS3.5 6.2: HHMMSS.FFFFFF, of which all but the hour may be missing) in seconds."""
    clock = re.match(r"(\d\d)(\d\d)?(\d\d)?(\.\d+)?", digits)
    if clock is None:
        return None
    hours, minutes, seconds, part = clock.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(part)
