"""Writes the data report: what a data set holds, in numbers, pictures and one HTML page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.datasets.duplicates import Pair, copy_pairs
from tumorlens.data.datasets.index import find_index
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, whole_file, write_text
from tumorlens.data.inspection.page import GENERATOR, Picture, page
from tumorlens.data.plotting import save_figure
from tumorlens.data.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tumorlens.data.inspection.statistics import Statistics

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
        overwrite: Replace a report that is there. Files that tumorlens did not write are never replaced.
        channel: The channel of color pictures to take, as in `load_samples`.
        command: The command that the user typed.
        progress: Called with the number of slices done and of all.

    Returns:
        The content of ``report.json``.

    Raises:
        InputError: The set cannot be used, no slice can be read, or the folder must not be written to.
    """
    from tumorlens.data.inspection.numbers import folds_of, numbers_of, remarks
    from tumorlens.data.inspection.statistics import measure

    index, root = find_index(source)
    _check_place(out, root if index is None else None, overwrite)
    samples = load_samples(source, label_map, channel)
    preprocess = Preprocess()
    stats = measure(samples, preprocess, seed=seed, progress=progress)
    if not stats.samples:
        raise InputError(f"{source}: none of {len(samples)} slices can be read; the first: {stats.failures[0]}")
    pairs = copy_pairs(stats.samples, stats.signatures)
    folds = folds_of(stats)
    numbers = {
        "kind": KIND,
        "tumorlens": _version(),
        "date": date.today().isoformat(),
        "command": command,
        "data": str(source),
        "size": preprocess.size,
        **numbers_of(stats, pairs, folds),
    }
    numbers["remarks"] = remarks(numbers)
    pictures = _pictures(stats, numbers, pairs, preprocess, seed)
    numbers["figures"] = [f"{FIGURES}/{name}.png" for name in pictures]
    _write(out, numbers, pictures)
    return numbers


def _check_place(out: Path, root: Path | None, overwrite: bool) -> None:
    """Raise an `InputError` unless a report may be written to a folder, see `data.files.claim`.

    It may never lie below `root`, the folder of a set without an index, where its pictures would be taken for scans.
    """
    if root is not None and out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: the report cannot lie inside the data, where its pictures would be taken for scans")
    files = [out / NUMBERS, out / PAGE, *(out / FIGURES / f"{name}.png" for name in _ALT)]
    claim(files, "a report", lambda path: _is_ours(path, out), overwrite)


def _is_ours(path: Path, out: Path) -> bool:
    """Whether a file in the report's folder was written with a report."""
    if path.name == PAGE:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(1000)
    try:
        numbers = json.loads((out / NUMBERS).read_text(encoding="utf-8"))
        return bool(numbers["kind"] == KIND) and (
            path.name == NUMBERS or path.relative_to(out).as_posix() in numbers["figures"]
        )
    except (ValueError, KeyError, TypeError, OSError):
        return False


def _pictures(
    stats: Statistics, numbers: dict[str, Any], pairs: list[Pair], preprocess: Preprocess, seed: int
) -> dict[str, Picture]:
    """Every figure of this set, by name."""
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
        "balance": draw_balance(stats, numbers),
        "samples": draw_samples(stats),
        "masks": draw_masks(stats),
        "means": draw_means(stats),
        "sizes": draw_sizes(stats, numbers),
        "intensities": draw_intensities(stats),
        "lesion_sizes": draw_lesion_sizes(stats),
        "locations": draw_locations(stats),
        "folds": draw_parts(stats, folds, "fold") if folds else None,
        "split": draw_parts(stats, split, "") if split else None,
        "pairs": draw_pairs(stats.samples, pairs, preprocess),
        "augmentation": draw_augmentation(stats, seed),
    }
    return {name: Picture(name, _ALT[name], _png(f)) for name, f in figures.items() if f is not None}


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    save_figure(figure, stream)
    return stream.getvalue()


def _write(out: Path, numbers: dict[str, Any], pictures: Mapping[str, Picture]) -> None:
    """Write all files, the numbers first: they mark the folder as ours if the rest is cut off."""
    write_text(out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    for name in _ALT:
        path = out / FIGURES / f"{name}.png"
        if name not in pictures:
            path.unlink(missing_ok=True)  # of an earlier report, see `_check_place`
            continue
        with whole_file(path) as part:
            part.write_bytes(pictures[name].png)
    write_text(out / PAGE, page(numbers, pictures))


def _version() -> str:
    try:
        return version("tumorlens")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
