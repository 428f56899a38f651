"""The data report as one HTML file: pictures inside, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

GENERATOR = "tumorlens data explore"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
p { margin: .5rem 0; max-width: 46rem; }
img { display: block; max-width: 100%; height: auto; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.remarks { background: #fff6e0; border-left: 4px solid #d98e00; padding: .25rem 1rem; }
.small { color: #555; font-size: .85rem; }
@media print { body { font-size: 11pt; max-width: none; padding: 0; } h2 { break-after: avoid; }
  img, table, .remarks { break-inside: avoid; } .wide { overflow: visible; } }
"""


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Its file's stem.
        alt: What it shows, for those who cannot see it.
        png: The file.
    """

    name: str
    alt: str
    png: bytes


def page(numbers: Mapping[str, Any], remarks: Sequence[str], pictures: Mapping[str, Picture]) -> str:
    """The whole page.

    Args:
        numbers: The content of ``report.json``.
        remarks: What stands out, in sentences.
        pictures: By name; a section without its picture is left out or says why.
    """
    show = {name: _image(picture) for name, picture in pictures.items()}
    body = [
        f"<h1>Data report: {escape(numbers['data'])}</h1>",
        f'<p class="small">tumorlens {escape(numbers["tumorlens"])}, {escape(numbers["date"])}; '
        f"prepared at {numbers['size']} pixels; <code>{escape(numbers['command'])}</code></p>",
        _list("remarks", remarks) if remarks else "",
        _section("Classes", _classes(numbers), show.get("balance")),
        _section("Examples, as stored", show.get("samples")),
        _section("Masks, on the prepared slices", show.get("masks") or "<p>The set has no masks.</p>"),
        _section("Mean slice of each class, prepared", show.get("means")),
        _section("Sizes and frames", show.get("sizes"), _betrayal(numbers["betrayal"])),
        _section("Intensities", show.get("intensities"), _INTENSITIES),
        _section("Lesions", _lesions(numbers), show.get("lesion_sizes"), show.get("locations")),
        _section("Patients and folds", _folds(numbers["folds"]), show.get("folds")),
        _section("Official split", _parts(numbers["official_split"], ""), show.get("split")),
        _section("Copies and mirror images", _copies(numbers["copies"]), show.get("pairs")),
        _section("Augmentation, as training draws it", show.get("augmentation")),
        _section("Left out", _list("", numbers["left_out"])) if numbers["left_out"] else "",
    ]
    return _FRAME.format(
        title=escape(f"Data report: {numbers['data']}"),
        generator=GENERATOR,
        style=_STYLE,
        body="\n".join(part for part in body if part),
    )


_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{generator}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_INTENSITIES = (
    '<p class="small">Mean over the slices of a class, each slice counting the same. Pictures with 8 bits as they are, '
    "others stretched from their minimum to their maximum. The left scale is logarithmic above 1 %.</p>"
)


def _section(title: str, *parts: str | None) -> str:
    """A section; none of it where all its parts are missing."""
    there = [part for part in parts if part]
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *there, "</section>"]) if there else ""


def _image(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'


def _list(kind: str, items: Sequence[str]) -> str:
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="{kind}"><ul>{listed}</ul></div>' if kind else f"<ul>{listed}</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _classes(numbers: Mapping[str, Any]) -> str:
    rows: list[list[object]] = [
        [
            _plain(name),
            c["slices"],
            f"{100 * c['share']:.1f} %",
            c["patients"] or None,
            c["masks"],
            c["color_slices"],
            _range(c["columns"]),
            _range(c["rows"]),
        ]
        for name, c in numbers["classes"].items()
    ]
    known = numbers["patients"]["n"] or None
    masks, color = (sum(c[key] for c in numbers["classes"].values()) for key in ("masks", "color_slices"))
    rows.append(["all", numbers["slices"], "", known, masks, color, "", ""])
    return _table(["class", "slices", "share", "patients", "masks", "in color", "columns", "rows"], rows)


def _range(spread: Mapping[str, float] | None) -> str | None:
    """Median, and the range around it if there is one."""
    if spread is None:
        return None
    low, middle, high = (f"{spread[key]:.4g}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _betrayal(areas: Mapping[str, float] | None) -> str:
    if areas is None:
        return ""
    said = "How well one plain fact of the stored picture tells healthy from sick: area under the ROC curve, 0.5 to 1."
    rows = [[name, f"{area:.3f}"] for name, area in sorted(areas.items(), key=lambda item: -item[1])]
    return f'<p class="small">{said}</p>' + _table(["fact", "AUC"], rows)


def _lesions(numbers: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    for name, c in numbers["classes"].items():
        spread = c["lesion_share_of_head"]
        if spread is None and not c["masks_empty_at_this_size"]:
            continue
        shares = [
            None if spread is None else f"{100 * spread[k]:.2g} %" for k in ("min", "q25", "median", "q75", "max")
        ]
        rows.append([_plain(name), c["masks"], c["masks_empty_at_this_size"], *shares])
    if not rows:
        return "<p>The set has no masks.</p>"
    said = '<p class="small">Share of the head in the slice, on the prepared grid.</p>'
    return said + _table(
        ["class", "masks", "empty at this size", "least", "quarter", "median", "three quarters", "most"], rows
    )


def _folds(folds: Mapping[str, Any]) -> str:
    if folds["table"] is None:
        return f"<p>{escape(str(folds['reason']))}.</p>"
    whose = "The set's own folds." if folds["origin"] == "given" else "The set names none; training would make these."
    return f"<p>{whose}</p>" + _parts(folds["table"], "fold ")


def _parts(table: Mapping[str, Any] | None, noun: str) -> str:
    if table is None:
        return ""
    classes = list(next(iter(table.values()))["classes"])
    rows = [
        [noun + part, row["slices"], row["patients"] or None, *(row["classes"][name] for name in classes)]
        for part, row in table.items()
    ]
    return _table(["", "slices", "patients", *(_plain(name) for name in classes)], rows)


_COPIES = {
    "equal_files": "files with the same bytes as another",
    "alike_slices": "slices that look like another, as they are or mirrored",
    "alike_pairs": "pairs of look-alikes",
    "mirrored_pairs": "of these mirrored",
    "pairs_of_two_patients": "of two patients",
    "pairs_without_patient": "without a known patient",
    "pairs_of_two_labels": "with labels that contradict each other",
    "pairs_across_folds": "in two folds",
    "pairs_across_official_split": "on both sides of the official split",
    "test_slices_with_a_copy_in_training": "test slices of the official split with a copy in another part",
    "patients_across_folds": "patients in two folds",
    "patients_across_official_split": "patients on both sides of the official split",
}


def _copies(found: Mapping[str, Any]) -> str:
    return _table(["what", "n"], [[text, found[key]] for key, text in _COPIES.items()])


def _plain(name: str) -> str:
    return name.replace("_", " ")
