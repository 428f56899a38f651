"""The reviewers' decisions -> a table, and a data set of the corrected cases that `tumorlens train` takes as it is."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.patients import patient_in_file
from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, safe_cell, whole_file
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.labels import TUMOR_FREE
from tumorlens.data.masks.write import set_forms, write_mask_nifti, write_mask_png
from tumorlens.data.scan import Scan
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.batch.studies import study_of
from tumorlens.pipeline.services.reviews.desk import OPEN, Desk, describe_progress
from tumorlens.pipeline.services.reviews.state import decisions_about, final_decision
from tumorlens.pipeline.services.reviews.store import ACCEPT, CORRECT, RELABEL, Decision

DECISIONS, INDEX = "decisions.csv", "index.csv"
_COLUMNS = (
    *("number", "at", "scan", "reviewer", "action", "label_before", "label_after", "mask_voxels_before"),
    *("mask_voxels_after", "comment", "classifier_sha256", "segmenter_sha256"),
)
_INDEX_COLUMNS = ("image", "mask", "label", "patient", "sequence", "scan", "reviewer", "action")


@dataclass
class Exported:
    """What was written.

    Attributes:
        decisions: Rows of the table of decisions.
        cases: Rows of the index.
        left_out: Reasons why decided scans are not in the index.
    """

    decisions: int = 0
    cases: int = 0
    left_out: list[str] = field(default_factory=list)


def export_reviews(
    desk: Desk, folder: Path, reviewer: str = "", accepted: bool = False, overwrite: bool = False
) -> Exported:
    """Write ``decisions.csv``, and ``index.csv`` with the images and masks of corrected and relabeled scans.

    Pixels are copied without any header that may name the patient; ``patient`` is a pseudonym.

    Args:
        desk: The reviewed output folder.
        folder: Where to write.
        reviewer: Take the decisions of this reviewer only; by default the last decision on each scan holds.
        accepted: Add accepted scans to the index, too.
        overwrite: Replace an earlier export.

    Raises:
        InputError: Nobody has decided yet, or the folder holds files that must not be replaced.
    """
    decisions = [d for d in desk.store.decisions() if reviewer in ("", d.reviewer)]
    if not decisions:
        whose = f" by {reviewer}" if reviewer else ""
        raise InputError(f"{desk.out}: no decisions{whose} yet; review with `tumorlens serve {desk.out}`")
    kinds = (CORRECT, RELABEL, *((ACCEPT,) if accepted else ()))
    chosen = []
    for result in desk.results():
        last = final_decision(decisions_about(result, decisions))
        if last is not None and last.action in kinds:
            chosen.append((result, last))
    earlier = _files_of_earlier(folder)
    names = {name for result, _ in chosen for name in _names(desk, result)}
    claim(
        [folder / DECISIONS, folder / INDEX, *(folder / name for name in sorted(names))],
        "an export",
        lambda path: path.relative_to(folder).as_posix() in earlier,
        overwrite,
    )
    exported, rows = Exported(len(decisions)), []
    for result, last in chosen:
        try:
            rows.append(_write_case(desk, result, last, folder))
        except InputError as error:
            exported.left_out.append(f"{result.name}: {error}")
    _write_csv(folder / DECISIONS, _COLUMNS, [_row(decision) for decision in decisions])
    if rows:
        _write_csv(folder / INDEX, _INDEX_COLUMNS, rows)
    written = {DECISIONS, *((INDEX,) if rows else ()), *(row[name] for row in rows for name in ("image", "mask"))}
    for name in earlier - written:  # what an earlier export wrote and this one does not
        (folder / name).unlink(missing_ok=True)
    exported.cases = len(rows)
    return exported


def _names(desk: Desk, result: StoredResult) -> list[str]:
    """The files that a scan may have in an export, below its folder."""
    stem = result.folder.relative_to(desk.out).as_posix()
    return [f"{kind}/{stem}{suffix}" for kind in ("images", "masks") for suffix in (".png", ".nii.gz")]


def _write_case(desk: Desk, result: StoredResult, decision: Decision, folder: Path) -> dict[str, Any]:
    """Write image and mask of a decided scan and return its row of the index."""
    about = decisions_about(result, desk.store.decisions(result.name))
    seen = [d for d in about if d.number <= decision.number]  # what the reviewer saw, not what others drew later
    label = next((d.label for d in reversed(seen) if d.label), result.label)  # an imported mask has no label
    if label not in result.classes.known:
        raise InputError(f"called {label}, which is not a class to train on")
    scan = desk.read_scan(result)
    mask = desk.mask_on(scan, result, seen)
    stem, suffix = result.folder.relative_to(desk.out).as_posix(), ".nii.gz" if scan.volume else ".png"
    image, drawn = folder / "images" / f"{stem}{suffix}", folder / "masks" / f"{stem}{suffix}"
    _write_image(image, scan)
    if label == TUMOR_FREE or not mask.any():
        drawn.unlink(missing_ok=True)
    elif scan.volume:
        write_mask_nifti(drawn, mask, replace(scan, header=None, source_shape=scan.voxels.shape))
    else:
        drawn.parent.mkdir(parents=True, exist_ok=True)
        write_mask_png(drawn, mask)
    return {
        "image": image.relative_to(folder).as_posix(),
        "mask": drawn.relative_to(folder).as_posix() if drawn.is_file() else "",
        "label": label,
        "patient": safe_cell(patient_in_file(scan) or _patient_of(desk.source_of(result.name), result)),
        "sequence": result.content.get("sequence") or "",
        "scan": safe_cell(result.name),
        "reviewer": safe_cell(decision.reviewer),
        "action": decision.action,
    }


def _patient_of(job: Job | None, result: StoredResult) -> str:
    """A pseudonym for the patient of a scan whose file names none: scans of one study share it."""
    key = (study_of(job) if job else "") or f"{result.content.get('place_sha256')} {result.name}"
    return f"review-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _write_image(path: Path, scan: Scan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if scan.volume:
        import nibabel as nib

        image = nib.Nifti1Image(_saved(scan.voxels), np.diag([*(scan.spacing_mm or (1.0, 1.0, 1.0))[:3], 1.0]))
        if scan.affine is not None:
            set_forms(image, scan.affine)
        with whole_file(path) as part:
            nib.save(image, part)
    else:
        write_png(path, _as_picture(scan.voxels))


def _saved(voxels: NDArray[Any]) -> NDArray[Any]:
    """The voxels in a type that NIfTI readers know."""
    kinds = {"int64": np.float64, "uint64": np.float64, "float16": np.float32, "bool": np.uint8}
    return voxels.astype(kinds.get(str(voxels.dtype), voxels.dtype))


def _as_picture(voxels: NDArray[Any]) -> NDArray[Any]:
    """The pixels as they are where PNG can hold them, else scaled to 16 bits."""
    if voxels.dtype in (np.uint8, np.uint16):
        return voxels
    low, high = float(voxels.min()), float(voxels.max())
    return np.rint((voxels.astype(np.float64) - low) / max(high - low, 1e-12) * 65535).astype(np.uint16)


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "number": decision.number,
        "at": decision.at,
        "scan": safe_cell(decision.scan),
        "reviewer": safe_cell(decision.reviewer),
        "action": decision.action,
        "label_before": decision.before.get("label", ""),
        "label_after": decision.label or "",
        "mask_voxels_before": decision.before.get("mask_voxels", ""),
        "mask_voxels_after": decision.after.get("mask_voxels", ""),
        "comment": safe_cell(decision.comment),
        "classifier_sha256": decision.models.get("classification", ""),
        "segmenter_sha256": decision.models.get("segmentation", ""),
    }


def _write_csv(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _files_of_earlier(folder: Path) -> set[str]:
    """The files of an export that is in the folder already."""
    try:
        with (folder / DECISIONS).open(newline="", encoding="utf-8") as file:
            if tuple(next(csv.reader(file), ())) != _COLUMNS:
                return set()
        rows: list[dict[str, str]] = []
        if (folder / INDEX).is_file():
            with (folder / INDEX).open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != _INDEX_COLUMNS:
                    return {DECISIONS}
                rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
    inside = {row[name] for row in rows for name in ("image", "mask") if row[name] and ".." not in row[name]}
    return {DECISIONS, *((INDEX,) if rows else ()), *inside}


def describe_reviews(desk: Desk) -> str:
    """Progress and agreement in words, one line each."""
    from tumorlens.pipeline.services.reviews.agreement import measure_agreement

    lines = [describe_progress(desk.worklist())]
    for each in measure_agreement(desk.results(), desk.store):
        kappa = "" if each.kappa is None else f", kappa {each.kappa:.2f}"
        dice = "" if each.dice is None else f", Dice {each.dice:.2f} on {each.n_masks}"
        rejected = f", {each.rejected} rejected" if each.rejected else ""
        labels = f"{each.same} of {each.n} labels agree" if each.n else "no labels given"
        lines.append(f"{each.first} and {each.second}: {labels}{kappa}{dice}{rejected}")
    return "\n".join(lines)


def agreement_json(desk: Desk) -> str:
    """Progress and agreement as JSON."""
    from tumorlens.pipeline.services.reviews.agreement import measure_agreement

    items = desk.worklist()
    return json.dumps(
        {
            "scans": len(items),
            "decided": sum(item.state != OPEN for item in items),
            "agreement": [each.to_dict() for each in measure_agreement(desk.results(), desk.store)],
        }
    )
