"""The worst cases: kept while a set is measured, and the classifier's most confident mistakes as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.files import whole_file
from tumorlens.data.preprocessing.preprocess import to_gray

T = TypeVar("T")
_SHOWN = 12


class Worst(Generic[T]):
    """The few cases with the lowest keys; the others, and their pictures, are let go.

    Args:
        n: How many to keep.
    """

    def __init__(self, n: int = _SHOWN) -> None:
        self.n = n
        self._kept: list[tuple[tuple[float, ...], int, T]] = []
        self._offered = 0

    def offer(self, key: tuple[float, ...], case: T) -> None:
        """Keep a case if it is among the lowest; of equal keys the first one stays."""
        self._offered += 1
        self._kept.append((key, self._offered, case))
        self._kept = sorted(self._kept, key=lambda entry: entry[:2])[: self.n]

    @property
    def items(self) -> list[T]:
        """Lowest key first."""
        return [case for _, _, case in self._kept]


@dataclass(frozen=True)
class Mistake:
    """A slice that the classifier got wrong.

    Attributes:
        image_hw: ``(size, size)`` the prepared slice.
        label: The true class.
        guess: The classifier's.
        confidence: Its probability.
        patient: The patient's pseudonym.
    """

    image_hw: NDArray[Any]
    label: str
    guess: str
    confidence: float
    patient: str


def plot_mistakes(mistakes: Sequence[Mistake], path: Path, title: str) -> None:
    """Slices with true and predicted class, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, max(len(mistakes), 2))
    rows = max(1, -(-len(mistakes) // columns))
    figure = Figure(figsize=(2.4 * columns, 2.9 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        axes.imshow(mistake.image_hw, cmap="gray", vmin=0, vmax=max(1, int(np.max(mistake.image_hw))))
        true, guess = mistake.label.replace("_", " "), mistake.guess.replace("_", " ")
        axes.set_title(f"true: {true}\n{guess} {mistake.confidence:.2f}\n{mistake.patient[-28:]}", fontsize=8)
    if not mistakes:
        figure.text(0.5, 0.4, "no mistake", ha="center", va="center")
    figure.suptitle(title)
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


_TRUTH, _GUESS = "#56B4E9", "#E69F00"
_GALLERY = 12


@dataclass(frozen=True)
class GalleryCase:
    """A slice to show.

    Attributes:
        image_hw: The scan, ``(rows, columns)`` or with colours.
        truth_hw: True mask, ``(rows, columns)``, non-zero is lesion.
        guess_hw: Predicted mask, likewise.
        label: The true class.
        patient: The patient's pseudonym.
        dice: Of the two masks.
        aspect: Height of a pixel over its width.
    """

    image_hw: NDArray[Any]
    truth_hw: NDArray[Any]
    guess_hw: NDArray[Any]
    label: str
    patient: str
    dice: float
    aspect: float = 1.0


def plot_worst(cases: Sequence[GalleryCase], path: Path, title: str) -> None:
    """The slices with the lowest Dice, twelve at most, each with the true and the predicted border, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = sorted(cases, key=lambda case: case.dice)[:_GALLERY]
    columns = min(4, max(len(shown), 2))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.4 * columns, 2.75 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, case in zip(grid.flat, shown, strict=False):
        gray = to_gray(case.image_hw)
        low, high = np.percentile(gray, (1, 99.5))
        axes.imshow(gray, cmap="gray", vmin=low, vmax=high if high > low else low + 1, aspect=case.aspect)
        _draw_border(axes, case.truth_hw, _TRUTH, 1.8)
        _draw_border(axes, case.guess_hw, _GUESS, 1.0)  # thinner, so that the truth shows beneath
        name = (case.label or "tumor").replace("_", " ")
        axes.set_title(f"{name}, Dice {case.dice:.2f}\n{_short(case.patient)}", fontsize=8)
    if not shown:
        grid.flat[0].text(0.5, 0.5, "no slice", ha="center", va="center")
    figure.suptitle(title)
    figure.legend(
        handles=[
            Line2D([], [], color=_TRUTH, lw=1.8, label="true"),
            Line2D([], [], color=_GUESS, lw=1, label="predicted"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _draw_border(axes: Any, mask_hw: NDArray[Any], color: str, width: float) -> None:
    if not np.any(mask_hw):
        return
    framed = np.pad(np.asarray(mask_hw) != 0, 1).astype(float)  # closes a border that runs along the picture's edge
    rows, columns = (np.arange(-1, n - 1) for n in framed.shape)
    axes.contour(columns, rows, framed, [0.5], colors=[color], linewidths=width)


def _short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit // 2 - 1) :]}"
