"""The picture grids of a data report: examples, masks, means, places of lesions, look-alikes, augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.duplicates import Pair, labels_contradict, of_one_volume
from tumorlens.data.datasets.sample import Sample, read_sample
from tumorlens.data.inspection.statistics import Example, Statistics
from tumorlens.data.plotting import new_figure, plain
from tumorlens.data.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 1.5  # inches a picture
_OUTLINE = "#ffd000"  # of a mask; visible on black and on white
_MOST_PAIRS = 6
_DRAWS = 5  # augmented versions of a slice


def draw_samples(stats: Statistics) -> Figure:
    """Examples as the files have them, a row a class."""
    return _grid(stats, lambda axes, example: _show(axes, example.stored))


def draw_masks(stats: Statistics) -> Figure | None:
    """The same examples as the networks see them, with the outline of their masks; None without masks."""
    if not any(_has_lesion(example) for row in stats.examples.values() for example in row):
        return None
    return _grid(stats, lambda axes, example: _show(axes, example.prepared, example.mask))


def draw_means(stats: Statistics) -> Figure:
    """The mean of the prepared slices of each class."""
    figure, cells = _row(len(stats.classes))
    for axes, name in zip(cells, stats.classes, strict=True):
        sums = stats.sums[name]
        _show(axes, sums.image / sums.n)
        axes.set_title(f"{plain(name)}, n = {sums.n}", fontsize=10)
    return figure


def draw_locations(stats: Statistics) -> Figure | None:
    """The share of lesions that covers each pixel, over the mean slice of each class; None without masks."""
    names = [name for name in stats.classes if stats.sums[name].masked]
    if not names:
        return None
    figure, cells = _row(len(names), extra=0.8)
    share = {name: 100 * stats.sums[name].lesion / stats.sums[name].masked for name in names}
    top = max(float(values.max()) for values in share.values())
    for axes, name in zip(cells, names, strict=True):
        sums = stats.sums[name]
        _show(axes, sums.image / sums.n)
        heat = axes.imshow(share[name], cmap="inferno", vmin=0, vmax=top, alpha=np.clip(share[name] / top * 3, 0, 0.85))
        axes.set_title(f"{plain(name)}, n = {sums.masked}", fontsize=10)
    bar = figure.colorbar(heat, ax=list(cells), location="bottom", shrink=0.5, aspect=40)
    bar.set_label("lesions that cover the pixel, %")
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    return figure


def draw_pairs(samples: Sequence[Sample], pairs: Sequence[Pair], preprocess: Preprocess) -> Figure | None:
    """Look-alikes side by side, the worst first: two labels, two patients, mirrored; None where nothing looks alike."""
    apart = [pair for pair in pairs if not of_one_volume(samples[pair.first], samples[pair.second])]
    if not apart:
        return None
    worst = sorted(apart, key=lambda pair: _harmlessness(samples, pair))[:_MOST_PAIRS]
    rows = -(-len(worst) // 2)
    figure = new_figure(9, rows * 2.75)
    cells = figure.subplots(rows, 4, squeeze=False).reshape(-1)
    for axes in cells:
        axes.set_axis_off()
    for n, pair in enumerate(worst):
        for side, i in enumerate((pair.first, pair.second)):
            reading = read_sample(samples[i])
            _show(cells[2 * n + side], preprocess(reading.image, reading.aspect).image)
            cells[2 * n + side].set_title(_caption(samples[i]), fontsize=8, loc="left")
        how = "mirrored" if pair.mirrored else "alike"
        cells[2 * n].set_xlabel(f"{how}, correlation {pair.likeness:.4f}", fontsize=8, loc="left")
    return figure


def draw_augmentation(stats: Statistics, seed: int = 0) -> Figure:
    """A slice of each class, followed by augmented versions of it."""
    from tumorlens.data.augmentation.augment import Augment

    augment = Augment()
    names = [name for name in stats.classes if name in stats.examples]
    figure = new_figure(9, _CELL * len(names) + 0.3)
    cells = figure.subplots(len(names), 1 + _DRAWS, squeeze=False)
    for number, (row, name) in enumerate(zip(cells, names, strict=True)):
        example = next(filter(_has_lesion, stats.examples[name]), stats.examples[name][0])
        mask = np.zeros_like(example.prepared) if example.mask is None else example.mask
        _show(row[0], example.prepared, mask)
        _name_row(row[0], name)
        for draw, axes in enumerate(row[1:]):
            _show(axes, *augment(example.prepared, mask, (seed * 10 + number) * _DRAWS + draw))
    cells[0, 0].set_title("as it is", fontsize=10)
    cells[0, 1].set_title("augmented", fontsize=10)
    return figure


def _has_lesion(example: Example) -> bool:
    return example.mask is not None and bool(example.mask.any())


def _grid(stats: Statistics, show: Callable[[Axes, Example], None]) -> Figure:
    names = [name for name in stats.classes if name in stats.examples]
    columns = max(len(stats.examples[name]) for name in names)
    figure = new_figure(9, max(1.0, 9 / max(columns, 4)) * len(names))
    cells = figure.subplots(len(names), columns, squeeze=False)
    for row, name in zip(cells, names, strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, example in zip(row, stats.examples[name], strict=False):
            show(axes, example)
        _name_row(row[0], name)
    return figure


def _row(n: int, extra: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    columns = max(n, 3)  # a single class would fill the page
    figure = new_figure(9, 9 / columns + 0.3 + extra)
    cells = figure.subplots(1, columns, squeeze=False)[0]
    for axes in cells[n:]:
        axes.set_axis_off()
    return figure, cells[:n]


def _show(axes: Axes, image_hw: NDArray[Any], mask_hw: NDArray[np.uint8] | None = None) -> None:
    axes.imshow(image_hw, cmap="gray", vmin=0, vmax=255)
    if mask_hw is not None and mask_hw.any():
        axes.contour(mask_hw, levels=[0.5], colors=_OUTLINE, linewidths=1.1)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _name_row(axes: Axes, name: str) -> None:
    axes.set_ylabel(plain(name), fontsize=10)


def _harmlessness(samples: Sequence[Sample], pair: Pair) -> tuple[bool, bool, bool, float]:
    first, second = samples[pair.first], samples[pair.second]
    two_patients = bool(first.patient and second.patient and first.patient != second.patient)
    return not labels_contradict(first, second, pair), not two_patients, not pair.mirrored, -pair.likeness


def _caption(sample: Sample) -> str:
    name = sample.image.name if sample.slice_index is None else f"{sample.image.name}[{sample.slice_index}]"
    name = name if len(name) <= 30 else "..." + name[-27:]
    whose = f"patient {sample.patient}" if sample.patient and sample.patient != str(sample.image) else "no patient"
    return f"{name}\n{plain(sample.label) or 'no label'}, {whose[:28]}"
