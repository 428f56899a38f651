"""A result in words and tables, for pages: every text from a file is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tumorlens.data.labels import TUMOR_FREE, ClassList
from tumorlens.data.plotting import plain, shown_probability
from tumorlens.pipeline.measurements.lesions import Lesion
from tumorlens.pipeline.result import MALIGNANCY_NOTE, Result
from tumorlens.pipeline.services.jobs import CANCELLED, CLASSIFYING, DONE, FAILED, RUNNING, SEGMENTING, QueuedJob

_SEQUENCES = {"t1": "T1", "t1c": "T1 with contrast agent", "t2": "T2", "flair": "FLAIR"}
_MOST_LESIONS = 20
_CHOICE = re.compile(r"choose one with --frame 0 to (\d+)")  # as `data.formats` and `data.dicom` ask for a frame


def answer_of(result: Result) -> str:
    """The label with its probability, or that the scan was refused."""
    if result.confidence is None:
        return "refused"
    return f"{result.classes.prose(result.label)} {shown_probability(result.confidence)}"


def progress_of(job: QueuedJob, position: int, ready: bool) -> str:
    """What a scan in the queue is doing, or what became of it.

    Args:
        job: The scan.
        position: How many run before it.
        ready: Whether the models are loaded.
    """
    if job.state == DONE:
        label, confidence = job.content["label"], job.content["confidence"]
        if confidence is None:
            return "refused"
        return f"{ClassList.from_card(job.content).prose(label)} {shown_probability(confidence)}"
    if job.state == FAILED:
        return _for_pages(job.error.removeprefix(f"{job.name}: "))
    if job.state == CANCELLED:
        return "cancelled"
    if job.state != RUNNING:
        return f"waiting, {position} before it" if position else "waiting" if ready else "waiting for the models"
    if job.step in (CLASSIFYING, SEGMENTING) and job.n_all > 1:
        return f"{job.step}, {job.n_done} of {job.n_all} slices"
    return job.step


def n_frames_of(job: QueuedJob) -> int:
    """How many frames there are to choose from, for a scan that failed because none was chosen; else 0."""
    found = _CHOICE.search(job.error) if job.state == FAILED else None
    return int(found[1]) + 1 if found else 0


def probabilities_html(result: Result) -> str:
    """A table with a bar for each class, and the classes that remain possible; empty for a refused scan."""
    if result.refused:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(result.classes.prose(name))}</th><td><span class="tl-track">'
        f'<span class="tl-fill" style="width:{100 * p:.1f}%;background:{result.classes.color(name)}"></span></span>'
        "</td>"
        f"<td>{escape(shown_probability(p))}</td></tr>"
        for name, p in result.probabilities.items()
    )
    table = f'<table class="tl-bars"><caption class="tl-quiet">Calibrated probability</caption>{rows}</table>'
    return table + "".join(f"<p>{escape(sentence)}</p>" for sentence in _meaning(result))


def doubts_of(result: Result) -> str:
    """A list of all reasons why a person should look at the scan; empty where there are none."""
    notes = [_for_pages(note) for note in result.review]
    if not notes:
        return ""
    title = "Why it was refused" if result.refused else "A person should look at this"
    return f'<h3>{title}</h3><ul class="tl-alert tl-notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def measurements_html(result: Result) -> str:
    """Tables with the size of the mask and of each lesion; empty where there is no mask."""
    if not result.lesions:
        return ""
    volume = result.tumor_volume_mm3
    area = _both(result.tumor_area_px, result.tumor_area_mm2)
    total = [("Volume", f"{volume / 1000:.2f} ml")] if volume is not None else []
    total.append((f"Area in slice {result.shown_slice}" if result.scan.n_slices > 1 else "Area", area))
    total.append(("Lesions", str(len(result.lesions))))
    shown = result.lesions[:_MOST_LESIONS]
    heads = ("Lesion", "Diameters", "Side", "Confidence")
    sized = result.scan.volume and volume is not None
    rows = [_lesion_row(lesion, sized) for lesion in shown]
    table = _table((heads[0], "Volume" if sized else "Area", *heads[1:]), rows)
    regions = _regions_table(result, sized)
    more = f"<p>The {len(shown)} largest are shown.</p>" if len(shown) < len(result.lesions) else ""
    return f"<h3>Measurements</h3>{_pairs(total)}<div class='tl-scroll' tabindex='0'>{table}</div>{more}{regions}"


def stored_sizes_html(content: Mapping[str, Any]) -> str:
    """Tables with the size of each lesion and of each region of a ``result.json``; empty where there is no lesion."""
    lesions, regions = content.get("lesions") or [], content.get("regions") or []
    if not lesions:
        return ""
    rows = []
    for lesion in lesions:
        ml, longest, confidence = (lesion.get(k) for k in ("volume_ml", "longest_diameter_mm", "confidence"))
        size = f"{ml:.1f} ml" if isinstance(ml, float) else f"{lesion['voxels']} pixels"
        across = f"{longest:.0f} mm" if isinstance(longest, float) else ""
        sure = f"{confidence:.2f}" if isinstance(confidence, float) else ""
        rows.append((str(lesion["number"]), size, across, sure, str(lesion["slice_index"])))
    table = _table(("Lesion", "Size", "Longest", "Confidence", "Slice"), rows)
    if not regions:
        return table
    sized = []
    for row in regions:
        mm3, pixels = row.get("volume_mm3"), row.get("voxels") or row.get("area_px") or 0
        size = f"{mm3 / 1000:.1f} ml" if isinstance(mm3, float) else f"{pixels} pixels"
        sized.append((plain(str(row["name"])), size))
    return table + _table(("Region", "Size"), sized)


def facts_html(result: Result, seconds: float) -> str:
    """Facts about the scan and the run."""
    scan = result.scan
    shape = " × ".join(str(n) for n in scan.source_shape or scan.voxels.shape)
    spacing = "unknown" if scan.spacing_mm is None else " × ".join(f"{s:.3g}" for s in scan.spacing_mm) + " mm"
    facts = [("Format", f"{scan.format}, {shape}"), ("Spacing", spacing)]
    if scan.plane:
        facts.append(("Plane", str(scan.plane)))
    if scan.frame is not None:
        facts.append(("Frame", str(scan.frame)))
    facts += [("Note", note) for note in scan.notes]
    engine = result.engine
    facts.append(("Computed", f"in {seconds:.1f} s by {engine.get('name')} on {engine.get('device')}"))
    return f"<h3>Scan</h3>{_pairs(facts)}"


def _meaning(result: Result) -> list[str]:
    """What label and prediction set mean."""
    sentences = []
    others = [result.classes.prose(name) for name in result.prediction_set if name != result.label]
    uncertain = result.classes.is_uncertain(result.label)
    if uncertain:
        sentences.append(f"A tumor whose type is uncertain: {_list(others)}." if others else "The type is uncertain.")
    elif others:
        sentences.append(f"At 95 % coverage, {_list(others)} cannot be ruled out.")
    elif result.prediction_set:
        sentences.append("At 95 % coverage, no other class remains possible.")
    if result.sequence is not None:
        name, probability = result.sequence
        sentences.append(f"The picture looks like {_SEQUENCES.get(name, name)} ({shown_probability(probability)}).")
    if result.positive and not uncertain and result.malignancy != "unknown":
        sentences.append(f"Typical behavior: {result.malignancy}. {MALIGNANCY_NOTE}")
    if result.label == TUMOR_FREE:
        sentences.append("This does not rule out a tumor.")
    return sentences


def _for_pages(note: str) -> str:
    """A note without the words of the command line."""
    note = note.removeprefix("refused: ").replace("; --force judges it all the same", "")
    return _CHOICE.sub(r"choose frame 0 to \1", note.replace("as --force asked", "as you asked"))


def _regions_table(result: Result, sized: bool) -> str:
    """The size of each region as a table; empty where there are none."""
    if not result.regions:
        return ""
    rows = [
        (plain(name), f"{(size.volume_mm3 or 0) / 1000:.2f} ml" if sized else _both(size.area_px, size.area_mm2))
        for name, size in zip(result.regions.names, result.region_sizes, strict=True)
    ]
    return _table(("Region", "Volume" if sized else "Area"), rows)


def _lesion_row(lesion: Lesion, sized: bool) -> tuple[str, ...]:
    size = f"{lesion.volume_ml:.2f} ml" if sized and lesion.volume_ml is not None else ""
    if lesion.longest_diameter_mm is not None and lesion.perpendicular_diameter_mm is not None:
        diameters = f"{lesion.longest_diameter_mm:.0f} × {lesion.perpendicular_diameter_mm:.0f} mm"
    else:
        diameters = f"{lesion.longest_diameter_px:.0f} × {lesion.perpendicular_diameter_px:.0f} px"
    confidence = "" if lesion.confidence is None else shown_probability(lesion.confidence)
    doubt = ", doubtful" if lesion.doubtful else ""
    area = _both(lesion.area_px, lesion.area_mm2)
    return str(lesion.number), size or area, diameters, lesion.side or "unknown", confidence + doubt


def _both(pixels: int | None, mm2: float | None) -> str:
    return f"{pixels or 0} px" if mm2 is None else f"{mm2:.0f} mm²"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in pairs)
    return f'<table class="tl-facts"><tbody>{rows}</tbody></table>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="tl-facts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
