"""The learning curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from tumorlens.data.plotting import new_figure, plain, save_figure

_PARTS = {"train": ("training", "--", "o"), "val": ("validation", "-", "s")}  # name, line, marker


def plot_learning_curves(table: list[dict[str, str]], path: Path) -> None:
    """Write a PNG with the losses on the left and the scores on the right, training against validation, over epochs.

    Args:
        table: Rows of ``metrics.csv``.
        path: Where to write.
    """
    figure = new_figure(9, 3.6)
    axes = dict(zip(("loss", "score"), figure.subplots(1, 2), strict=True))
    colors: dict[str, str] = {}
    for column in sorted({name for row in table for name in row}):
        part, _, name = column.partition("_")
        points = [(int(row["epoch"]) + 1, float(row[column])) for row in table if row.get(column)]
        if part not in _PARTS or not points:
            continue
        words, line, marker = _PARTS[part]
        color = colors.setdefault(name, f"C{len(colors)}")
        axes["loss" if name == "loss" else "score"].plot(
            *zip(*points, strict=True), line, color=color, marker=marker, markersize=3, label=f"{plain(name)}, {words}"
        )
    for name, each in axes.items():
        each.set(xlabel="epoch", ylabel=name, title=name)
        each.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        each.grid(alpha=0.3)
        if each.lines:
            each.legend(fontsize="small")
    save_figure(figure, path)
