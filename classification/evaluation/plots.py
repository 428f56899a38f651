"""Plots of a classifier: confusion matrix, ROC curves, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.evaluation.metrics import expected_calibration_error, reliability
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES, ClassList
from tumorlens.data.plotting import new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER = "#999999", "#0072B2"  # calibration


def plot_confusion(
    truth: NDArray[np.int64],
    guess: NDArray[np.int64],
    path: Path,
    title: str,
    classes: ClassList = SHIPPED_CLASSES,
) -> None:
    """Write a PNG with the counts of true (rows) against predicted (columns) classes, shaded by share of the row.

    Tumors of unknown type, and answers that name no type, have no row or column and are left out.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    names = classes.outputs
    labels = range(len(names))
    counts = np.zeros((len(names), len(names)), int)
    known = (truth < classes.untyped) & (guess < classes.untyped)
    np.add.at(counts, (truth[known] - classes.offset, guess[known] - classes.offset), 1)
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    many = max(0, len(names) - len(CLASSES))
    figure = new_figure(5.2 + 0.6 * many, 4.6 + 0.55 * many)
    axes = figure.add_subplot()
    shown = ConfusionMatrixDisplay(share, display_labels=[plain(name) for name in names])
    turned = "vertical" if many else "horizontal"
    shown.plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=False,
        im_kw={"vmin": 0, "vmax": 1},
        xticks_rotation=turned,
    )
    for i in labels:
        for j in labels:
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "0.1")
    axes.set(title=f"{title}, n = {counts.sum()}", xlabel="predicted", ylabel="true")
    save_figure(figure, path)


def plot_roc(
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    path: Path,
    title: str,
    classes: Sequence[str] = CLASSES,
    class_list: ClassList = SHIPPED_CLASSES,
) -> None:
    """Write a PNG with the ROC curve of each class against the rest, and its area.

    A class has no curve if no slice shows it, or if all do. The legend says so.

    Args:
        labels: ``(n,)`` columns of the probabilities.
        probabilities: ``(n, c)``.
        path: The PNG.
        title: Above the plot. The number of slices or patients is added.
        classes: ``(c,)`` names of the columns.
        class_list: Gives their colors.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = new_figure(5.0, 5.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="chance 0.500")
    for c, name in enumerate(classes):
        positive, color = labels == c, class_list.color(name)
        if positive.all() or not positive.any():
            axes.plot([], [], color=color, label=f"{plain(name)} -")
            continue
        false, true, _ = roc_curve(positive, probabilities[:, c])
        area = roc_auc_score(positive, probabilities[:, c])
        axes.plot(false, true, color=color, label=f"{plain(name)} {area:.3f} (n = {positive.sum()})")
    axes.set(title=f"{title}, n = {len(labels)}", xlabel="false positive rate", ylabel="true positive rate")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title="AUC, one against rest")
    save_figure(figure, path)


def plot_reliability(
    labels: NDArray[np.int64],
    before_nc: NDArray[Any],
    after_nc: NDArray[Any],
    path: Path,
    title: str,
) -> None:
    """Write a PNG with accuracy against confidence before and after calibration, and a histogram of the confidence.

    Args:
        labels: ``(n,)`` columns of the probabilities.
        before_nc: ``(n, c)`` probabilities as the network gives them.
        after_nc: ``(n, c)`` probabilities after calibration.
        path: The PNG.
        title: Above the plot. The number of slices or patients is added.
    """
    figure = new_figure(5.2, 6.2)
    diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    diagram.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="perfect")
    for name, shares, color in (("before", before_nc, _BEFORE), ("after", after_nc, _AFTER)):
        _add_reliability(diagram, histogram, labels, shares, name, color)
    start = max(0.0, min(1 / before_nc.shape[1], 1.0) - 0.05)  # no largest of c probabilities is below 1 / c
    diagram.set(title=f"{title}, n = {len(labels)}", ylabel="accuracy", xlim=(start, 1.01), ylim=(-0.02, 1.02))
    histogram.set(xlabel="confidence (largest probability)", ylabel="share")
    for axes in (diagram, histogram):
        axes.grid(alpha=0.3)
    diagram.legend(loc="upper left")
    save_figure(figure, path)


def _add_reliability(
    diagram: Axes, histogram: Axes, labels: NDArray[np.int64], shares_nc: NDArray[Any], name: str, color: str
) -> None:
    rows = reliability(labels, shares_nc)
    filled = [row for row in rows if row["count"]]
    share = np.array([row["count"] for row in rows]) / max(len(labels), 1)
    error = f"{expected_calibration_error(labels, shares_nc):.3f}" if len(labels) else "-"
    confidence, accuracy = ([row[key] for row in filled] for key in ("confidence", "accuracy"))
    diagram.plot(confidence, accuracy, color=color, label=f"{name}, ECE {error}")
    # A point's area grows with its number of slices.
    area = [12 + 160 * row["count"] / len(labels) for row in filled]
    diagram.scatter(confidence, accuracy, s=area, color=color, zorder=3)
    edges = [row["low"] for row in rows] + [1.0]
    histogram.stairs(share, edges, color=color, fill=name == "before", alpha=0.5 if name == "before" else 1)
