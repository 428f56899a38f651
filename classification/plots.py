"""The confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.atomic import whole_file
from data.labels import CLASSES


def plot_confusion(truth: NDArray[np.int64], guess: NDArray[np.int64], path: Path, title: str) -> None:
    """Counts of true (rows) against predicted (columns) classes, shaded by share of the row, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    labels = range(len(CLASSES))
    counts = confusion_matrix(truth, guess, labels=labels)
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = ConfusionMatrixDisplay(share, display_labels=[name.replace("_", " ") for name in CLASSES])
    shown.plot(ax=axes, cmap="Blues", colorbar=False, include_values=False, im_kw={"vmin": 0, "vmax": 1})
    for i in labels:
        for j in labels:
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "0.1")
    axes.set(title=f"{title}, n = {counts.sum()}", xlabel="predicted", ylabel="true")
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")
