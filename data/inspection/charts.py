"""The charts of a data report: counts, sizes, intensities, lesions, folds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.inspection.survey import BINS, UNLABELED, Survey
from tumorlens.data.plotting import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which people with any color vision can tell apart.
COLORS = {
    "no_tumor": "#009E73",
    "glioma": "#D55E00",
    "meningioma": "#0072B2",
    "pituitary": "#CC79A7",
    UNLABELED: "#777777",
}

_MOST_SIZES = 8


def draw_balance(found: Survey, numbers: dict[str, Any]) -> Figure:
    """Slices of each class, patients of each class, slices of each patient."""
    figure = new_figure(9, 3.2)
    slices, patients, each = figure.subplots(1, 3)
    for axes, key, title in ((slices, "slices", "slices"), (patients, "patients", "patients")):
        values = [numbers["classes"][name][key] for name in found.classes]
        _bars(axes, found.classes, values)
        axes.set_title(title)
    if not numbers["patients"]["n"]:
        _say(patients, "the set names no patients")
        _say(each, "the set names no patients")
    else:
        counts = Counter(sample.patient for sample in found.samples if sample.patient)
        most = max(counts.values())
        each.hist(list(counts.values()), bins=list(np.linspace(0.5, most + 0.5, min(30, most) + 1)), color="0.45")
        each.set(xlabel="slices of a patient", ylabel="patients")
        each.xaxis.get_major_locator().set_params(integer=True)
        each.yaxis.get_major_locator().set_params(integer=True)
    each.set_title("slices per patient")
    return figure


def draw_sizes(found: Survey, numbers: dict[str, Any]) -> Figure:
    """The most frequent sizes, the aspect and the head's share of the picture, by class."""
    figure = new_figure(9, 3.4)
    sizes, aspect, share = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    table = numbers["sizes"][:_MOST_SIZES]
    names = [f"{row['columns']} x {row['rows']}" for row in table]
    left = np.zeros(len(table))
    for name in found.classes:
        values = np.array([row["classes"][name] for row in table])
        sizes.barh(names, values, left=left, color=COLORS[name])
        left += values
    sizes.invert_yaxis()
    rest = len(numbers["sizes"]) - len(table)
    sizes.set(title="sizes, columns x rows" + (f" ({rest} more)" if rest else ""), xlabel="slices")
    _steps(aspect, found, found.aspect, "width / height")
    _steps(share, found, found.head_fraction, "head / picture")
    aspect.set_title("aspect")
    share.set_title("head's share")
    _legend(figure, found)
    return figure


def draw_intensities(found: Survey) -> Figure:
    """Mean histogram of each class as the files have it and as the networks see it."""
    figure = new_figure(9, 3.4)
    stored, prepared = figure.subplots(1, 2)
    centers = (np.arange(BINS) + 0.5) * 256 / BINS
    for name in found.classes:
        sums = found.sums[name]
        stored.plot(centers, 100 * sums.stored / sums.n, color=COLORS[name])
        prepared.plot(centers, 100 * sums.prepared / sums.n, color=COLORS[name])
    stored.set(title="as stored, whole picture", yscale="symlog", ylim=(0, None))
    prepared.set(title="prepared, inside the head", ylim=(0, None))
    stored.yaxis.set_major_formatter("{x:g}")
    for axes in (stored, prepared):
        axes.set(xlabel="intensity", ylabel="share of pixels, %", xlim=(0, 256))
        axes.grid(alpha=0.3)
    _legend(figure, found)
    return figure


def draw_lesion_sizes(found: Survey) -> Figure | None:
    """Histogram of the lesion's share of the head for each class; none without masks."""
    drawn = found.lesion_px > 0
    if not drawn.any():
        return None
    share = 100 * found.lesion_px / found.head_px
    names = [name for name in found.classes if (drawn & (found.labels == name)).any()]
    edges = np.geomspace(max(0.02, share[drawn].min() * 0.9), max(1.0, share[drawn].max() * 1.1), 33)
    figure = new_figure(9, 1.1 + 1.25 * len(names))
    rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        values = share[drawn & (found.labels == name)]
        axes.hist(values, bins=edges, color=COLORS[name])
        axes.axvline(float(np.median(values)), color="black", linewidth=1)
        axes.set(ylabel="slices", xscale="log")
        axes.set_title(f"{plain(name)}: n = {len(values)}, median {np.median(values):.2g} %", fontsize=10, loc="left")
    rows[-1].set_xlabel("lesion's share of the head in the slice, %")
    ticks = [n * 10.0**power for power in range(-2, 3) for n in (1, 2, 5) if edges[0] <= n * 10.0**power <= edges[-1]]
    rows[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    rows[-1].set_xticks([], minor=True)
    return figure


def draw_parts(found: Survey, table: dict[str, Any], noun: str) -> Figure:
    """Slices and patients of each class in each fold, or in each part of the official split."""
    figure = new_figure(9, 3.2)
    slices, patients = figure.subplots(1, 2)
    names = [f"{noun} {part}".strip() for part in table]
    for axes, key, title in ((slices, "classes", "slices"), (patients, "patients_of_class", "patients")):
        totals = [row[title] for row in table.values()]
        bottom = np.zeros(len(names))
        for name in found.classes:
            values = np.array([row[key][name] for row in table.values()])
            axes.bar(names, values, bottom=bottom, color=COLORS[name])
            bottom += values
        for x, total in enumerate(totals):  # a patient with slices of two classes is in both, and in the total once
            axes.text(x, bottom[x], str(total), ha="center", va="bottom", fontsize=9)
        axes.set_title(title)
        axes.set_ylim(0, max(1.0, bottom.max() * 1.12))
        if not bottom.any():
            _say(axes, "the set names no patients")
    _legend(figure, found)
    return figure


def _bars(axes: Axes, classes: list[str], values: list[int]) -> None:
    bars = axes.barh([plain(name) for name in classes], values, color=[COLORS[name] for name in classes])
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1, max(values)) * 1.25)


def _steps(axes: Axes, found: Survey, values: NDArray[np.float64], label: str) -> None:
    low, high = float(values.min()), float(values.max())
    rim = 0.05 * (high - low) or 0.05
    edges = np.linspace(low - rim, high + rim, 25)
    labels = found.labels
    for name in found.classes:
        counts, _ = np.histogram(values[labels == name], edges)
        axes.stairs(100 * counts / counts.sum(), edges, color=COLORS[name], linewidth=1.6)
    axes.set(xlabel=label, ylabel="slices of the class, %", ylim=(0, None))
    axes.grid(alpha=0.3)


def _legend(figure: Figure, found: Survey) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLORS[name], label=plain(name)) for name in found.classes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _say(axes: Axes, text: str) -> None:
    axes.clear()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axes.transAxes, wrap=True)
