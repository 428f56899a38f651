"""Matplotlib figures that need no screen: one way to make them, one way to save them."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from tumorlens.data.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, with matplotlib's constrained layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, target: Path | IO[bytes]) -> None:
    """Write a figure as PNG, to a file (whole or not at all) or to a stream."""
    if not isinstance(target, Path):
        figure.savefig(target, dpi=_DPI, format="png")
        return
    with whole_file(target) as part:
        figure.savefig(part, dpi=_DPI, format="png")


def plain(name: str) -> str:
    """A class or part name as prose: ``no_tumor`` becomes ``no tumor``."""
    return name.replace("_", " ")


def shown_probability(share: float) -> str:
    """A probability with two digits that never looks certain: ``0.95``, ``>0.99`` from 0.995, ``<0.01`` below 0.005."""
    return ">0.99" if share >= 0.995 else "<0.01" if share < 0.005 else f"{share:.2f}"
