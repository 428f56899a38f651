"""The worst cases: kept while a set is measured, and the classifier's most confident mistakes as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.atomic import whole_file

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
