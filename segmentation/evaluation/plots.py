"""Plots of masks: Dice against lesion size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.labels import ClassList
from tumorlens.data.plotting import new_figure, plain, save_figure
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation.evaluation.metrics import SliceScores, dice_scores

_BINS = 6
_PER_BIN = 5  # the mean of fewer slices is not worth drawing


def plot_dice(part: PreparedSet, masks_nhw: NDArray[np.uint8], path: Path, title: str) -> None:
    """Write a PNG with the Dice of each tumor slice over the lesion's share of the network's input; of regions, with
    that of each region over its own share, in its color.

    Args:
        part: The ``n`` slices. Those whose truth is boxes are left out.
        masks_nhw: ``(n, size, size)`` predicted masks, 0 and 1, or the bits of regions.
        path: Where to write.
        title: Above the axes.
    """
    outlined = [i for i, sample in enumerate(part.samples) if not sample.weak]
    part, masks_nhw = part.subset(outlined), masks_nhw[outlined]
    regions, patients = part.regions, [s.patient for s in part.samples]
    guesses = regions.planes(masks_nhw) if regions else masks_nhw[None]
    dice = np.concatenate([dice_scores(guess, truth) for guess, truth in zip(guesses, part.planes, strict=True)])
    share = part.planes.mean(axis=(2, 3)).ravel()
    if not regions:
        _plot(dice, share, [s.label for s in part.samples], patients, path, title)
        return
    names = [name for name in regions.names for _ in patients]
    colors = {row.name: row.color for row in regions.rows}
    _plot(dice, share, names, patients * len(regions), path, title, colors)


def plot_dice_by_size(
    scores: Sequence[SliceScores],
    labels: Sequence[str],
    path: Path,
    title: str,
    patients: Sequence[str] | None = None,
) -> None:
    """Write a PNG with the Dice of each tumor slice over the lesion's share of the picture.

    Args:
        scores: Of each slice.
        labels: Class name of each slice.
        path: Where to write.
        title: Above the axes.
        patients: Patient of each slice, for the intervals; without them, intervals are over slices.
    """
    dice = np.array([score.dice for score in scores], float)
    share = np.array([score.truth_px / score.picture_px for score in scores], float)
    _plot(dice, share, labels, [str(i) for i in range(len(scores))] if patients is None else patients, path, title)


def _plot(
    dice_n: NDArray[np.float64],
    share_n: NDArray[np.float64],
    labels: Sequence[str],
    patients: Sequence[str],
    path: Path,
    title: str,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Points by class, or by region with its `colors`; and the mean of slices of similar size with its interval over
    patients."""
    from matplotlib.ticker import LogLocator, NullFormatter

    sick = np.flatnonzero(share_n > 0).tolist()
    dice, percent = dice_n[sick], 100 * share_n[sick]
    names = np.array([labels[i] or "tumor" for i in sick])
    figure = new_figure(6.4, 4.8)
    axes = figure.add_subplot()
    classes = ClassList.of_labels([] if colors else names.tolist())
    shown = colors or {name: classes.color(name) for name in sorted(set(names))}
    for name in (name for name in shown if name in names):
        chosen = names == name
        text = f"{plain(name)}, n = {chosen.sum()}, mean {dice[chosen].mean():.3f}"
        rim = {"s": 16, "alpha": 0.8, "edgecolors": "black", "linewidths": 0.4} if colors else {"s": 9, "linewidths": 0}
        axes.scatter(percent[chosen], dice[chosen], color=shown[name], label=text, **({"alpha": 0.5} | rim))
    bins = _bin_means(percent, dice, [patients[i] for i in sick])
    if bins:
        x, y, low, high = np.array(bins).T
        spread = np.stack([y - low, high - y]).clip(min=0)
        text = "mean of slices of similar size, 95 % interval"
        axes.errorbar(x, y, spread, fmt="o-", color="black", ms=4, lw=1.2, capsize=3, zorder=3, label=text)
    axes.set(
        xlabel=f"{'region' if colors else 'lesion'}, % of the picture", ylabel="Dice", ylim=(-0.02, 1.02), title=title
    )
    axes.grid(alpha=0.3)
    if len(sick):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    else:
        axes.text(0.5, 0.5, "no slice with a tumor", ha="center", va="center", transform=axes.transAxes)
    save_figure(figure, path)


def _bin_means(
    percent: NDArray[np.float64], dice: NDArray[np.float64], patients: list[str]
) -> list[tuple[float, float, float, float]]:
    """Middle size, mean Dice and its interval (of one patient: no width) of up to six bins of equally many slices."""
    order = np.argsort(percent, kind="stable")
    bins = []
    for members in np.array_split(order, max(1, min(_BINS, len(order) // _PER_BIN))):
        mean = weighted_mean(dice[members], np.ones(len(members)), [patients[i] for i in members])
        if mean is not None:
            value, low, high = mean["value"], mean["low"], mean["high"]
            bounds = (value, value) if low is None else (low, high)
            bins.append((float(np.median(percent[members])), value, *bounds))
    return bins
