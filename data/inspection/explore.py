"""The data report: what a data set holds, in numbers, pictures and one HTML page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.datasets.duplicates import copy_pairs
from tumorlens.data.datasets.index import find_index
from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file, write_text
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.inspection.page import GENERATOR, Picture, page
from tumorlens.data.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tumorlens.data.inspection.survey import Survey

PAGE, NUMBERS, FIGURES = "index.html", "report.json", "figures"
KIND = "tumorlens data report"

_ALT = {
    "balance": "Slices and patients of each class, slices per patient",
    "samples": "Examples of each class as stored",
    "masks": "The same examples prepared, with the outlines of their masks",
    "means": "Mean prepared slice of each class",
    "sizes": "Sizes, aspect and the head's share of the picture by class",
    "intensities": "Intensity histograms by class, as stored and prepared",
    "lesion_sizes": "Histogram of the lesion's share of the head by class",
    "locations": "How often lesions cover each place, by class",
    "folds": "Slices and patients of each class in each fold",
    "split": "Slices and patients of each class in each part of the official split",
    "pairs": "Slices that look alike, side by side",
    "augmentation": "A slice of each class and augmented versions of it",
}


def explore(
    source: str | Path,
    out: Path,
    label_map: Mapping[str, str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    channel: int | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a data set and write ``index.html``, ``report.json`` and ``figures/*.png``.

    Args:
        source: As in `data.datasets.load.load_samples`.
        out: The report's folder.
        label_map: The user's own label names -> classes.
        seed: Another seed, other examples.
        overwrite: Replace a report that is there; files of others are never replaced.
        channel: Which channel of colour pictures to take, as in `load_samples`.
        command: What the user typed.
        progress: Called with the number of slices done and of all.

    Returns:
        The content of ``report.json``.

    Raises:
        InputError: An unusable set, no slice that can be read, or a folder that must not be written to.
    """
    from tumorlens.data.inspection.numbers import folds_of, numbers_of, remarks
    from tumorlens.data.inspection.survey import survey

    index, root = find_index(source)
    check_out(out, root if index is None else None, overwrite)
    samples = load_samples(source, label_map, channel)
    preprocess = Preprocess()
    found = survey(samples, preprocess, seed=seed, progress=progress)
    if not found.samples:
        raise InputError(f"{source}: none of {len(samples)} slices can be read; the first: {found.failures[0]}")
    pairs = copy_pairs(found.samples, found.marks)
    folds = folds_of(found)
    numbers = {
        "kind": KIND,
        "tumorlens": _version(),
        "date": date.today().isoformat(),
        "command": command,
        "data": str(source),
        "size": preprocess.size,
        **numbers_of(found, pairs, folds),
    }
    numbers["remarks"] = remarks(numbers)
    pictures = _pictures(found, numbers, pairs, preprocess, seed)
    numbers["figures"] = [f"{FIGURES}/{name}.png" for name in pictures]
    _write(out, numbers, pictures)
    return numbers


def check_out(out: Path, root: Path | None, overwrite: bool = False) -> None:
    """Raise an `InputError` unless a report may be written to a folder.

    It may if none of the report's files is there, or if they are of a report and `overwrite` is set. It may never lie
    below `root`, the folder of a set without an index, where its pictures would be taken for scans.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; -o takes a folder")
    if root is not None and out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: the report cannot lie inside the data, where its pictures would be taken for scans")
    there = [name for name in _names() if (out / name).exists()]
    if not there:
        return
    strange = _strange(out)
    if strange:
        raise InputError(
            f"{out / strange}: this file is no report of this command and is left alone; choose another -o"
        )
    if not overwrite:
        raise InputError(f"{out}: a report is here already; give --overwrite to replace it, or another -o")


def _names() -> list[str]:
    return [NUMBERS, PAGE, *(f"{FIGURES}/{name}.png" for name in _ALT)]


def _strange(out: Path) -> str:
    """A file in the report's place that is none of a report, or nothing."""
    figures: list[str] = []
    if (out / NUMBERS).exists():
        try:
            said = json.loads((out / NUMBERS).read_text(encoding="utf-8"))
            figures = said["figures"] if said["kind"] == KIND else []
        except (ValueError, KeyError, TypeError, OSError):
            return NUMBERS
        if said["kind"] != KIND:
            return NUMBERS
    if (out / PAGE).exists():
        with (out / PAGE).open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                return PAGE
    return next((name for name in _names()[2:] if (out / name).exists() and name not in figures), "")


def _pictures(
    found: Survey, numbers: dict[str, Any], pairs: list[Any], preprocess: Preprocess, seed: int
) -> dict[str, Picture]:
    """Every figure that this set has, by name."""
    from tumorlens.data.inspection.charts import (
        draw_balance,
        draw_intensities,
        draw_lesion_sizes,
        draw_parts,
        draw_sizes,
    )
    from tumorlens.data.inspection.grids import (
        draw_augmentation,
        draw_locations,
        draw_masks,
        draw_means,
        draw_pairs,
        draw_samples,
    )

    folds, split = numbers["folds"]["table"], numbers["official_split"]
    figures = {
        "balance": draw_balance(found, numbers),
        "samples": draw_samples(found),
        "masks": draw_masks(found),
        "means": draw_means(found),
        "sizes": draw_sizes(found, numbers),
        "intensities": draw_intensities(found),
        "lesion_sizes": draw_lesion_sizes(found),
        "locations": draw_locations(found),
        "folds": draw_parts(found, folds, "fold") if folds else None,
        "split": draw_parts(found, split, "") if split else None,
        "pairs": draw_pairs(found.samples, pairs, preprocess),
        "augmentation": draw_augmentation(found, seed),
    }
    return {name: Picture(name, _ALT[name], _png(f)) for name, f in figures.items() if f is not None}


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    return drawn.getvalue()


def _write(out: Path, numbers: dict[str, Any], pictures: Mapping[str, Picture]) -> None:
    """The numbers first: they mark the folder as a report's, should the rest be cut off."""
    write_text(out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    for name in _ALT:
        path = out / FIGURES / f"{name}.png"
        if name not in pictures:
            path.unlink(missing_ok=True)  # of an earlier report, which `check_out` has seen
            continue
        with whole_file(path) as part:
            part.write_bytes(pictures[name].png)
    write_text(out / PAGE, page(numbers, numbers["remarks"], pictures))


def _version() -> str:
    try:
        return version("tumorlens")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
