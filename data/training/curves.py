"""The learning curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from tumorlens.data.plotting import new_figure, plain, save_figure


def plot_learning_curves(table: list[dict[str, str]], path: Path) -> None:
    """Write a PNG with the losses on the left and the validation scores on the right, over epochs.

    Args:
        table: Rows of ``metrics.csv``.
        path: Where to write.
    """
    figure = new_figure(9, 3.6)
    loss_axes, score_axes = figure.subplots(1, 2)
    names = dict.fromkeys(name for row in table for name in row)
    for name in names:
        points = [(int(row["epoch"]) + 1, float(row[name])) for row in table if row.get(name)]
        if name == "epoch" or name.startswith("lr-") or not points:
            continue
        axes = loss_axes if name.endswith("loss") else score_axes
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=plain(name))
    loss_axes.set(xlabel="epoch", ylabel="loss", title="loss")
    score_axes.set(xlabel="epoch", ylabel="score", title="validation scores")
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    save_figure(figure, path)
