"""The worst cases: kept while a set is measured, then drawn as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.plotting import new_figure, save_figure
from tumorlens.data.preprocessing.preprocess import to_gray

_SHOWN = 12
_TRUTH, _GUESS = "#56B4E9", "#E69F00"  # Okabe and Ito's blue and orange, neither of which stands for a class
_SHORT = 28  # letters of a patient's name that fit above a slice


@dataclass(frozen=True)
class WorstCase:
    """A slice to show.

    Attributes:
        image_hw: ``(rows, columns)``, or with colors.
        title: The model's answer, in one or two lines.
        patient: The patient's pseudonym, the last line above the slice.
        truth_hw: True mask, ``(rows, columns)``, non-zero is lesion; None where no masks are compared.
        guess_hw: The same of the predicted mask.
        aspect: Height of a pixel over its width.
    """

    image_hw: NDArray[Any]
    title: str
    patient: str
    truth_hw: NDArray[Any] | None = None
    guess_hw: NDArray[Any] | None = None
    aspect: float = 1.0


class Worst:
    """The few cases with the lowest keys. The others are not held in memory.

    Args:
        n: How many to keep.
    """

    def __init__(self, n: int = _SHOWN) -> None:
        self.n = n
        self._cases: list[tuple[tuple[float, ...], WorstCase]] = []

    def offer(self, key: tuple[float, ...], case: WorstCase) -> None:
        """Keep a case if it is among the lowest; of equal keys the first one stays."""
        self._cases = sorted([*self._cases, (key, case)], key=lambda entry: entry[0])[: self.n]

    @property
    def items(self) -> list[WorstCase]:
        """Lowest key first."""
        return [case for _, case in self._cases]


def plot_worst(cases: Sequence[WorstCase], path: Path, title: str) -> None:
    """The cases, at least one, as a picture, PNG, with the true and the predicted borders."""
    from matplotlib.lines import Line2D

    columns = min(4, max(len(cases), 2))
    rows = max(1, -(-len(cases) // columns))
    figure = new_figure(2.4 * columns, 2.9 * rows + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, case in zip(grid.flat, cases, strict=False):
        gray = to_gray(case.image_hw)
        low, high = np.percentile(gray, (1, 99.5))
        axes.imshow(gray, cmap="gray", vmin=low, vmax=high if high > low else low + 1, aspect=case.aspect)
        _draw_border(axes, case.truth_hw, _TRUTH, 1.8)
        _draw_border(axes, case.guess_hw, _GUESS, 1.0)  # thinner, so that the truth shows beneath
        axes.set_title(f"{case.title}\n{_short(case.patient)}", fontsize=8)
    figure.suptitle(title)
    if any(mask is not None and np.any(mask) for case in cases for mask in (case.truth_hw, case.guess_hw)):
        lines = [Line2D([], [], color=_TRUTH, lw=1.8, label="true")]
        lines.append(Line2D([], [], color=_GUESS, lw=1, label="predicted"))
        figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def _draw_border(axes: Any, mask_hw: NDArray[Any] | None, color: str, width: float) -> None:
    if mask_hw is None or not np.any(mask_hw):
        return
    framed = np.pad(np.asarray(mask_hw) != 0, 1).astype(float)  # closes a border that runs along the picture's edge
    rows, columns = (np.arange(-1, n - 1) for n in framed.shape)
    axes.contour(columns, rows, framed, [0.5], colors=[color], linewidths=width)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT // 2]}…{text[-(_SHORT // 2 - 1) :]}"
