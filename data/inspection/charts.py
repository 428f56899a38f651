"""The charts of a data report: counts, sizes, intensities, lesions, folds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.inspection.statistics import BINS, Statistics
from tumorlens.data.plotting import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SIZES = 8


def draw_balance(stats: Statistics, numbers: dict[str, Any]) -> Figure:
    """Slices of each class, patients of each class, slices of each patient."""
    figure = new_figure(9, 3.2)
    slices, patients, each = figure.subplots(1, 3)
    for axes, key, title in ((slices, "slices", "slices"), (patients, "patients", "patients")):
        values = [numbers["classes"][name][key] for name in stats.classes]
        _bars(axes, stats, values)
        axes.set_title(title)
    if not numbers["patients"]["n"]:
        _write_in(patients, "the set names no patients")
        _write_in(each, "the set names no patients")
    else:
        counts = Counter(sample.patient for sample in stats.samples if sample.patient)
        most = max(counts.values())
        each.hist(list(counts.values()), bins=list(np.linspace(0.5, most + 0.5, min(30, most) + 1)), color="0.45")
        each.set(xlabel="slices of a patient", ylabel="patients")
        each.xaxis.get_major_locator().set_params(integer=True)
        each.yaxis.get_major_locator().set_params(integer=True)
    each.set_title("slices per patient")
    return figure


def draw_sizes(stats: Statistics, numbers: dict[str, Any]) -> Figure:
    """The most frequent sizes, the aspect and the head's share of the picture, by class."""
    figure = new_figure(9, 3.4)
    sizes, aspect, share = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    table = numbers["sizes"][:_MOST_SIZES]
    names = [f"{row['columns']} x {row['rows']}" for row in table]
    left = np.zeros(len(table))
    for name in stats.classes:
        values = np.array([row["classes"][name] for row in table])
        sizes.barh(names, values, left=left, color=stats.color_of(name))
        left += values
    sizes.invert_yaxis()
    rest = len(numbers["sizes"]) - len(table)
    sizes.set(title="sizes, columns x rows" + (f" ({rest} more)" if rest else ""), xlabel="slices")
    _steps(aspect, stats, stats.aspect, "width / height")
    _steps(share, stats, stats.head_fraction, "head / picture")
    aspect.set_title("aspect")
    share.set_title("head's share")
    _legend(figure, stats)
    return figure


def draw_intensities(stats: Statistics) -> Figure:
    """Mean histogram of each class as the files have it and as the networks see it."""
    figure = new_figure(9, 3.4)
    stored, prepared = figure.subplots(1, 2)
    centers = (np.arange(BINS) + 0.5) * 256 / BINS
    for name in stats.classes:
        sums = stats.sums[name]
        stored.plot(centers, 100 * sums.stored / sums.n, color=stats.color_of(name))
        prepared.plot(centers, 100 * sums.prepared / sums.n, color=stats.color_of(name))
    stored.set(title="as stored, whole picture", yscale="symlog", ylim=(0, None))
    prepared.set(title="prepared, inside the head", ylim=(0, None))
    stored.yaxis.set_major_formatter("{x:g}")
    for axes in (stored, prepared):
        axes.set(xlabel="intensity", ylabel="share of pixels, %", xlim=(0, 256))
        axes.grid(alpha=0.3)
    _legend(figure, stats)
    return figure


def draw_lesion_sizes(stats: Statistics) -> Figure | None:
    """Histogram of the lesion's share of the head for each class; None without masks."""
    has_lesion = stats.lesion_px > 0
    if not has_lesion.any():
        return None
    share = 100 * stats.lesion_px / stats.head_px
    names = [name for name in stats.classes if (has_lesion & (stats.labels == name)).any()]
    edges = np.geomspace(max(0.02, share[has_lesion].min() * 0.9), max(1.0, share[has_lesion].max() * 1.1), 33)
    figure = new_figure(9, 1.1 + 1.25 * len(names))
    rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        values = share[has_lesion & (stats.labels == name)]
        axes.hist(values, bins=edges, color=stats.color_of(name))
        axes.axvline(float(np.median(values)), color="black", linewidth=1)
        axes.set(ylabel="slices", xscale="log")
        axes.set_title(f"{plain(name)}: n = {len(values)}, median {np.median(values):.2g} %", fontsize=10, loc="left")
    rows[-1].set_xlabel("lesion's share of the head in the slice, %")
    ticks = [n * 10.0**power for power in range(-2, 3) for n in (1, 2, 5) if edges[0] <= n * 10.0**power <= edges[-1]]
    rows[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    rows[-1].set_xticks([], minor=True)
    return figure


def draw_parts(stats: Statistics, table: dict[str, Any], noun: str) -> Figure:
    """Slices and patients of each class in each fold, or in each part of the official split."""
    figure = new_figure(9, 3.2)
    slices, patients = figure.subplots(1, 2)
    names = [f"{noun} {part}".strip() for part in table]
    for axes, key, title in ((slices, "classes", "slices"), (patients, "patients_of_class", "patients")):
        totals = [row[title] for row in table.values()]
        bottom = np.zeros(len(names))
        for name in stats.classes:
            values = np.array([row[key][name] for row in table.values()])
            axes.bar(names, values, bottom=bottom, color=stats.color_of(name))
            bottom += values
        for x, total in enumerate(totals):  # a patient with two classes is in two bars, but once in the total
            axes.text(x, bottom[x], str(total), ha="center", va="bottom", fontsize=9)
        axes.set_title(title)
        axes.set_ylim(0, max(1.0, bottom.max() * 1.12))
        if not bottom.any():
            _write_in(axes, "the set names no patients")
    _legend(figure, stats)
    return figure


def _bars(axes: Axes, stats: Statistics, values: list[int]) -> None:
    bars = axes.barh(
        [plain(name) for name in stats.classes], values, color=[stats.color_of(name) for name in stats.classes]
    )
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1, max(values)) * 1.25)


def _steps(axes: Axes, stats: Statistics, values: NDArray[np.float64], label: str) -> None:
    low, high = float(values.min()), float(values.max())
    rim = 0.05 * (high - low) or 0.05
    edges = np.linspace(low - rim, high + rim, 25)
    labels = stats.labels
    for name in stats.classes:
        counts, _ = np.histogram(values[labels == name], edges)
        axes.stairs(100 * counts / counts.sum(), edges, color=stats.color_of(name), linewidth=1.6)
    axes.set(xlabel=label, ylabel="slices of the class, %", ylim=(0, None))
    axes.grid(alpha=0.3)


def _legend(figure: Figure, stats: Statistics) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=stats.color_of(name), label=plain(name)) for name in stats.classes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _write_in(axes: Axes, text: str) -> None:
    axes.clear()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axes.transAxes, wrap=True)
