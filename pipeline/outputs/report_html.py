"""The report of a scan as HTML, from its ``result.json`` and its pictures: one file, no script, nothing to load."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR_FREE, ClassList
from tumorlens.data.plotting import plain, shown_probability
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.measurements.lesions import LOW_CONFIDENCE
from tumorlens.pipeline.outputs import REPORT, REPORT_PDF
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

GENERATOR = "tumorlens run --report"
_MOST_OF_REGIONS = 6  # lesions that have a column in the table of regions

# Reasons to review that name files: the head of each stays in a report without identifiers.
_NAMING = {
    "the scans of this study do not agree": "the scans of this study do not agree; results.csv says what each shows",
    "could not be read (": "DICOM files of the series could not be read",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        uri: The file itself, as ``data:``.
        width: In pixels.
        height: In pixels.
        alt: A description for readers who cannot see it.
        caption: A sentence below it.
        heading: Above it.
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str
    heading: str = ""


def write_report(content: Mapping[str, Any], folder: Path, pdf: bool = False) -> None:
    """Write ``report.html``, and on request ``report.pdf``, beside the other files of a result.

    Args:
        content: The content of its ``result.json``.
        folder: Its folder, with the pictures.
        pdf: Whether to write a PDF as well.

    Raises:
        InputError: A picture is missing, or no program can make a PDF.
    """
    html = render_report(content, folder)
    write_text(folder / REPORT, html)
    if pdf:
        from tumorlens.pipeline.outputs.report_pdf import write_pdf

        write_pdf(html, folder / REPORT_PDF)


def render_report(content: Mapping[str, Any], folder: Path) -> str:
    """The report of one scan as a page that needs no other file; arguments and errors as in `write_report`.

    Of a DICOM source it names neither file nor folder, unless the result holds the patient's identifiers.
    """
    label, volume = content["label"], content["scan"]["n_slices"] > 1
    return render(
        "report.html",
        title=_title(content["scan"]),
        about=f"tumorlens {content['versions'].get('tumorlens', '')}; report of {date.today().isoformat()}",
        label="not judged" if label == REFUSED else ClassList.from_card(content).prose(label),
        refused=label == REFUSED,
        meaning=_meaning(content),
        review=_reasons(content),
        probabilities=_probabilities(content),
        about_probabilities=_about_probabilities(content, volume),
        overlay=_picture(folder / "overlay.png", *_about_overlay(content)),
        pictures=_more_pictures(content, folder),
        measurements=_measurements(content),
        lesions=_lesions(content["lesions"], volume),
        regions=_regions(content),
        scan=_scan(content),
        models=_models(content["models"]),
        computed=_computed(content),
        limits=_limits(content),
    )


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return pages.get_template(template).render(generator=GENERATOR, **values)


def _is_named(scan: Mapping[str, Any]) -> bool:
    """Whether the report may name the scan: file and folder names of DICOM often hold the patient's."""
    return "dicom" not in scan or "identifiers" in scan


def _title(scan: Mapping[str, Any]) -> str:
    if _is_named(scan):
        return str(scan["name"])
    number = scan["dicom"].get("series_number")
    return f"{scan['dicom'].get('modality') or 'DICOM'} series{'' if number is None else f' {number}'}"


def _reasons(content: Mapping[str, Any]) -> list[str]:
    if _is_named(content["scan"]):
        return list(content["review"])
    return [next((short for mark, short in _NAMING.items() if mark in r), r) for r in content["review"]]


def _meaning(content: Mapping[str, Any]) -> list[str]:
    """Label and probability in words."""
    label, classes = content["label"], ClassList.from_card(content)
    if label == REFUSED:
        return ["The scan does not look like an MRI of the brain. It has no label, no probabilities and no mask."]
    share = _percent(content["confidence"])
    if label == TUMOR_FREE:
        return [
            f"The classifier sees no tumor; it gives that a probability of {share}.",
            "Small lesions can be missed, and so can other diseases than the tumors that it knows.",
        ]
    prose = classes.prose(label)
    article = "an" if prose[:1].lower() in "aeiou" else "a"
    typical = content["malignancy"].removeprefix("usually ")
    behavior = f"Typical behavior: {typical}."
    if typical in ("malignant", "benign"):
        behavior = f"{article.capitalize()} {prose} is usually {typical}."
    behavior += f" {content['malignancy_note']}"
    if classes.is_uncertain(label):
        behavior = "The type is uncertain, so nothing is said of how such a tumor behaves."
    elif content["malignancy"] == "unknown":
        behavior = "Nothing is said of how such a tumor behaves."
    every = [] if classes.gate else ["This classifier knows no scan without a tumor: it calls every scan one."]
    return [f"The classifier sees {article} {prose}; it gives that a probability of {share}.", behavior, *every]


def _probabilities(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    possible, classes = content["prediction_set"], ClassList.from_card(content)
    return [
        {
            "name": classes.prose(name),
            "percent": _percent(p),
            "width": round(100 * p, 1),
            "possible": "" if not possible else "yes" if name in possible else "no",
        }
        for name, p in (content["probabilities"] or {}).items()
    ]


def _about_probabilities(content: Mapping[str, Any], volume: bool) -> str:
    text = (
        "The probabilities are calibrated: of 100 scans that get 90\u00a0%, about 90 should be what the label says, if "
        "they are like the scans of the calibration."
    )
    if volume:
        text += " For a volume they come from a rule that was fitted on few volumes."
    if content["prediction_set"]:
        text += " Classes marked as possible cannot be excluded at the coverage on the classifier's card "
        text += "(mostly 95\u00a0%)."
    return f"{text} A scan counts as positive from a tumor probability of {content['threshold']:g} on."


def _percent(share: float) -> str:
    if not 0.001 <= share <= 0.999:
        return "under 0.1\u00a0%" if share < 0.5 else "over 99.9\u00a0%"
    return f"{100 * share:.1f}\u00a0%"


def _about_overlay(content: Mapping[str, Any]) -> tuple[str, str]:
    """Alternative text and caption of the overlay."""
    lesions, scan = content["lesions"], content["scan"]
    count = f"{len(lesions)} outlined lesion{'' if len(lesions) == 1 else 's'}" if lesions else "no outlined lesion"
    where = (
        f"{(scan['plane'] or 'slice').capitalize()} slice {content['shown_slice']}" if scan["n_slices"] > 1 else "Scan"
    )
    if scan["n_slices"] > 1 and not scan["plane"]:
        where = f"Slice {content['shown_slice']}"
    inside = f"the scan has {count}" if scan["n_slices"] > 1 else count
    doubtful = " A thin dashed line surrounds a doubtful lesion." if any(_is_doubtful(x) for x in lesions) else ""
    note = (
        "" if scan["n_slices"] == 1 else " It is the slice in which the largest lesion is largest." if lesions else ""
    )
    counted = f"{where} (counted from 0)" if scan["n_slices"] > 1 else where
    drawn = "its regions in the colors below" if content.get("regions") else "the mask in red"
    return f"{where}, {inside}.", f"{counted}, with {drawn}.{note}{doubtful}" if lesions else f"{counted}."


def _more_pictures(content: Mapping[str, Any], folder: Path) -> list[Picture]:
    pictures = []
    if "montage.png" in content["files"]:
        what = "the slices with tumor and, where the orientation is known, three planes through the largest lesion"
        if not content["lesions"]:
            what = "the slices that look most like a tumor, with their tumor probability; no lesion is outlined"
        alt = f"Montage: {what}."
        pictures.append(_picture(folder / "montage.png", alt, f"{what[0].upper()}{what[1:]}.", "Slices"))
    if "explanation.png" in content["files"]:
        alt = "Two copies of the slice: one with the mask, one under a heat map of where the classifier looked."
        caption = (
            "Grad-CAM: the warmer, the more the region spoke for the label. It is not an outline of the tumor, and it "
            "can point to the wrong place while the label is right."
        )
        pictures.append(_picture(folder / "explanation.png", alt, caption, "Where the classifier looked"))
    return pictures


def _picture(path: Path, alt: str, caption: str, heading: str = "") -> Picture:
    try:
        png = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}), so the report was not written") from None
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    uri = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return Picture(uri, width, height, alt, caption, heading)


def _measurements(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured on the whole mask, with units; empty for a refused scan and for one without a lesion."""
    if content["label"] == REFUSED or not content["lesions"]:
        return []
    volume, area = content["tumor_volume_mm3"], content["tumor_area_mm2"]
    where = f"area in slice {content['shown_slice']}" if content["scan"]["n_slices"] > 1 else "area"
    rows = [("lesions", str(len(content["lesions"])))]
    if volume is not None:
        rows.append(("volume", f"{volume / 1000:.2f} ml"))
    pixels = f"{content['tumor_area_px']} pixels"
    return [*rows, (where, pixels if area is None else f"{area:.0f} mm² ({pixels})")]


def _is_doubtful(lesion: Mapping[str, Any]) -> bool:
    return lesion["confidence"] is not None and lesion["confidence"] < LOW_CONFIDENCE


def _lesion_confidence(lesion: Mapping[str, Any]) -> str:
    if lesion["confidence"] is None:
        return ""
    return shown_probability(lesion["confidence"]) + (" (doubtful)" if _is_doubtful(lesion) else "")


def _lesions(lesions: Sequence[Mapping[str, Any]], volume: bool) -> dict[str, Any]:
    """The table of lesions: names of the columns that have values, rows, and words about them."""

    def both(lesion: Mapping[str, Any], long: str, short: str) -> str:
        return "" if lesion[long] is None else f"{lesion[long]:.1f} x {lesion[short]:.1f}"

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    columns = {
        "lesion": [str(x["number"]) for x in lesions],
        "confidence": [_lesion_confidence(x) for x in lesions],
        "volume, ml": [number(x["volume_ml"], 2) for x in lesions],
        "area, mm²": [number(x["area_mm2"], 0) for x in lesions],
        "area, pixels": [str(x["area_px"]) if x["area_mm2"] is None else "" for x in lesions],
        "diameters, mm": [both(x, "longest_diameter_mm", "perpendicular_diameter_mm") for x in lesions],
        "diameters, pixels": [
            both(x, "longest_diameter_px", "perpendicular_diameter_px") if x["longest_diameter_mm"] is None else ""
            for x in lesions
        ],
        "axial, mm": [both(x, "axial_longest_mm", "axial_perpendicular_mm") for x in lesions],
        "slice": [str(x["slice_index"]) if volume else "" for x in lesions],
        "side": [x["side"] or "" for x in lesions],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    about = (
        f"Confidence is the probability that it is a lesion; under {LOW_CONFIDENCE:g} it is doubtful. Area and "
        "diameters (the longest line, and the longest at a right angle to it) are of the slice in which it is largest."
    )
    if "axial, mm" in shown:
        about += " Axial diameters are the largest in any axial plane, as RANO measures them."
    if lesions and lesions[0]["area_mm2"] is None:
        about += " The size of a pixel is not known, so nothing is in mm."
    return {"names": list(shown), "rows": list(zip(*shown.values(), strict=True)), "about": about}


def _regions(content: Mapping[str, Any]) -> dict[str, Any]:
    """The table of regions, and words about them; without rows where there are none, or no lesion."""
    rows = content.get("regions", []) if content["lesions"] else []
    numbers = [lesion["number"] for lesion in content["lesions"]]
    sized = [row["volume_mm3"] is not None for row in rows]
    area = "area, pixels" if any(row["area_mm2"] is None for row in rows) else "area, mm²"
    each = len(numbers) > 1 and all(sized)
    names = ["region", *(["volume, ml"] if all(sized) else []), area]
    names += [f"in lesion {n}, ml" for n in numbers[:_MOST_OF_REGIONS] if each]
    cells = [
        [
            plain(row["name"]),
            *([f"{row['volume_mm3'] / 1000:.2f}"] if all(sized) else []),
            str(row["area_px"]) if row["area_mm2"] is None else f"{row['area_mm2']:.0f}",
            *(f"{part['volume_mm3'] / 1000:.2f}" for part in row["lesions"][:_MOST_OF_REGIONS] if each),
        ]
        for row in rows
    ]
    about = "Parts of the lesions, of which one may lie in another. "
    about += f"The area is that in slice {content['shown_slice']}." if content["scan"]["n_slices"] > 1 else ""
    return {"names": names, "rows": cells, "about": about}


def _scan(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    scan = content["scan"]
    rows = [("format", scan["format"]), ("size", " x ".join(map(str, scan["shape"])))]
    if scan["n_slices"] > 1:
        rows.append(("slices", f"{scan['n_slices']}{', ' + scan['plane'] if scan['plane'] else ''}"))
    spacing = scan["spacing_mm"]
    rows.append(("spacing", "not known" if spacing is None else f"{' x '.join(f'{s:.4g}' for s in spacing)} mm"))
    if content["sequence"] is not None:
        rows.append(
            (
                "sequence (as the picture looks)",
                f"{content['sequence']} ({shown_probability(content['sequence_probability'])})",
            )
        )
    facts = scan.get("dicom", {})
    for key in ("modality", "weighting", "contrast_agent", "n_files"):
        if facts.get(key) is not None:
            value = {True: "yes", False: "no"}.get(facts[key], facts[key]) if key == "contrast_agent" else facts[key]
            rows.append((f"{plain(key).replace('n files', 'files')}, by its header", str(value)))
    rows += [("note", note) for note in scan["notes"]]
    return rows + [(name, value) for name, value in scan.get("identifiers", {}).items()]


def _models(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "stage": stage,
            "network": ", ".join(str(card[key]) for key in ("architecture", "encoder") if card.get(key)),
            "date": str(card.get("date") or ""),
            "sha256": str(card.get("sha256") or ""),
        }
        for stage, card in models.items()
    ]


def _computed(content: Mapping[str, Any]) -> str:
    engine = content["engine"]
    seconds = sum(content["timings_s"].values())
    place = ", ".join(str(engine[key]) for key in ("name", "device", "precision") if engine.get(key))
    return f"Computed by {place or 'your own engine'} in {seconds:.1f} s. result.json holds every figure and version."


def _limits(content: Mapping[str, Any]) -> list[str]:
    """What the models have learned from, how well they did and what they do not know, with figures of their cards."""
    models, classes = content["models"], ClassList.from_card(content)
    others = (
        "A metastasis, an abscess, a stroke or another disease has no name here: it may be called one of these, or "
    )
    others += "be missed."
    known = "They know gliomas, meningiomas and pituitary tumors."
    if classes != SHIPPED_CLASSES:
        known = f"The classifier knows {', '.join(map(classes.prose, classes.tumors))}."
        others = "Any other disease may be called one of these, or be missed."
        if classes.binary:
            known, others = "The classifier says whether there is a tumor, not of which type.", "It may miss one."
    lines = [
        f"{known} {others}",
        "They do worse on scanners and sequences that they have not seen, on T1 without contrast agent, and after "
        "treatment.",
        "For research and teaching only: not for diagnosis, grading, treatment planning or measuring response.",
    ]
    classifier, segmenter = _shipped_cards()
    used = tuple(models.get(stage, {}).get("sha256") for stage in ("classification", "segmentation"))
    if used != (classifier["sha256"], segmenter["sha256"]):
        return [
            "The weights are not those that come with tumorlens. Their cards say what they have learned from.",
            *lines,
        ]
    gate, dice = classifier["metrics"]["validation"]["gate"], segmenter["metrics"]["validation"]["dice_tumor"]
    sets = sorted(
        {Path(text.partition("@")[0]).stem for card in (classifier, segmenter) for text in card["training"]["data"]}
    )
    return [
        f"They have learned from the data sets {', '.join(sets)}, which MODEL_CARD.md describes. Age, sex and scanner "
        "of most of the patients are not known.",
        f"On slices that were kept out of training, {_percent(gate['sensitivity'])} of the tumors were found and "
        f"{_percent(gate['specificity'])} of the slices without one called free. Masks of tumor slices had a mean Dice "
        f"of {dice:.2f}. These slices also chose the operating points, so the figures are a little too good.",
        *lines,
    ]


@cache
def _shipped_cards() -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (
        json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in (CLASSIFIER, SEGMENTER)
    )
    return first, second
