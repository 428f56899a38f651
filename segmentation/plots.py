"""Dice against lesion size as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.atomic import whole_file
from data.loaders import PreparedSet
from segmentation.evaluate import dice_scores


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
