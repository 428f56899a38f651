"""What masks are worth, as pictures: Dice against lesion size, and a gallery of the worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import weighted_mean
from tumorlens.data.files import whole_file
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation.evaluation.metrics import SliceScores, dice_scores

# Okabe and Ito's palette (2008), which all kinds of colour vision tell apart.
_COLORS = {"glioma": "#0072B2", "meningioma": "#D55E00", "pituitary": "#009E73"}
_BINS = 6
_PER_BIN = 5  # fewer slices make no mean worth drawing


def plot_dice(part: PreparedSet, masks_nhw: NDArray[np.uint8], path: Path, title: str) -> None:
    """Dice of each tumor slice over the lesion's share of the input square, by class, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = dice_scores(masks_nhw, part.masks)
    share = part.masks.mean(axis=(1, 2)) * 100
    labels = np.array([s.label or "tumor" for s in part.samples])
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in sorted(set(labels[share > 0])):
        chosen = (labels == name) & (share > 0)
        axes.scatter(share[chosen], scores[chosen], s=9, alpha=0.6, label=f"{name}, mean {scores[chosen].mean():.3f}")
    axes.set(xscale="log", xlabel="lesion, % of the input", ylabel="Dice", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    if (share > 0).any():
        axes.legend(loc="lower right")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def plot_dice_by_size(
    scores: Sequence[SliceScores],
    labels: Sequence[str],
    path: Path,
    title: str,
    patients: Sequence[str] | None = None,
) -> None:
    """Dice of each tumor slice over the lesion's share of the picture, and the mean of slices of like size, as PNG.

    Args:
        scores: Of each slice; those without a true lesion are not drawn.
        labels: Class name of each slice.
        path: Where to write.
        title: Above the axes.
        patients: Patient of each slice, over whom the means' 95 % intervals are drawn; else over slices.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    who = [str(i) for i in range(len(scores))] if patients is None else list(patients)
    sick = [i for i, s in enumerate(scores) if s.truth_px > 0]
    dice = np.array([scores[i].dice for i in sick])
    share = np.array([100 * scores[i].truth_px / scores[i].picture_px for i in sick])
    names = np.array([labels[i] or "tumor" for i in sick])
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in sorted(set(names)):
        chosen = names == name
        text = f"{name}, n = {chosen.sum()}, mean {dice[chosen].mean():.3f}"
        axes.scatter(
            share[chosen], dice[chosen], s=9, alpha=0.5, color=_COLORS.get(name, "0.45"), linewidths=0, label=text
        )
    bins = _bin_means(share, dice, [who[i] for i in sick])
    if bins:
        x, y, low, high = np.array(bins).T
        spread = np.stack([y - low, high - y]).clip(min=0)
        axes.errorbar(
            x,
            y,
            spread,
            fmt="o-",
            color="black",
            ms=4,
            lw=1.2,
            capsize=3,
            zorder=3,
            label="mean of slices of like size, 95 % interval",
        )
    axes.set(xlabel="lesion, % of the picture", ylabel="Dice", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    if sick:
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
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _bin_means(
    share: NDArray[np.float64], dice: NDArray[np.float64], patients: list[str]
) -> list[tuple[float, float, float, float]]:
    """Of up to six equally filled bins: middle share, mean Dice, its interval."""
    order = np.argsort(share, kind="stable")
    found = []
    for members in np.array_split(order, max(1, min(_BINS, len(order) // _PER_BIN))):
        mean = weighted_mean(dice[members], np.ones(len(members)), [patients[i] for i in members])
        if mean is not None:
            found.append((float(np.median(share[members])), mean["value"], mean["low"], mean["high"]))
    return found
