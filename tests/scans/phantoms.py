"""Small phantoms, and files as data sets hold them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tumorlens.data.phantom import Phantom, phantom_slice


def small_slice(seed: int, label: str = "glioma") -> Phantom:
    """A phantom slice of 96 pixels, ten times as fast as one of the usual size."""
    return phantom_slice(seed, label, size=96, pixel_mm=2.3)


def save_mat(path: Path, phantom: Phantom, label: float, patient: str | int | None) -> None:
    """Write a ``cjdata`` file as the figshare set has them."""
    content = {"image": phantom.image, "label": np.float64(label), "tumorMask": phantom.mask}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"cjdata": content | ({"PID": patient} if patient else {})})


def write_rows(path: Path, rows: list[dict[str, object]], columns: str) -> Path:
    """Write a CSV file; a row's missing cells are empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns.split(","), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column."""
    with path.open() as file:
        return list(csv.DictReader(file))
