"""Which values of a mask file are lesion: masks come as classes, as grey pictures, as JPEG, as fractions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.scan import Scan

_MOST_CLASSES = 31  # larger values of a picture are grey levels: 127 beside 255 is a border drawn smooth
_LOSSY = ("jpeg", "webp")


def lesion_of(mask: Scan) -> NDArray[np.uint8]:
    """A mask's lesion as 0 and 1, ``(rows, columns)`` or the volume's shape; any channel of a colour counts.

    Whole numbers are classes, each but 0 lesion: in volumes always, in pictures where they are small and the format
    keeps them. Grey levels are cut at half of their maximum, for JPEG and smooth drawing blur a border. Fractions are
    cut at 0.5, where interpolation leaves the border in its place.
    """
    drawn = _flat(mask)
    cut = _cut(drawn, mask)
    return (drawn >= cut).astype(np.uint8) if _fractions(drawn) else (drawn > cut).astype(np.uint8)


def values_told(mask: Scan) -> str:
    """How a mask with more than one value besides 0 is read; empty for plain ones."""
    drawn = _flat(mask)
    values = np.unique(drawn)
    values = values[values > 0]
    if len(values) < 2:
        return ""
    cut = _cut(drawn, mask)
    if _fractions(drawn):
        return f"fractions up to {values[-1]:g}, lesion from {cut:g} on"
    if cut == 0:
        shown = ", ".join(f"{value:g}" for value in values[:8])
        return f"values {shown}{' ...' if len(values) > 8 else ''}, all of them lesion"
    return f"{len(values)} grey levels, lesion above {cut:g}"


def _flat(mask: Scan) -> NDArray[Any]:
    return mask.voxels.max(axis=2) if mask.voxels.ndim == 3 and not mask.volume else mask.voxels


def _whole(drawn: NDArray[Any]) -> bool:
    return drawn.dtype.kind != "f" or bool((drawn == np.rint(drawn)).all())


def _fractions(drawn: NDArray[Any]) -> bool:
    """Whether values are shares of lesion; larger broken ones are grey levels that were resized."""
    return not _whole(drawn) and float(drawn.max()) <= _MOST_CLASSES


def _cut(drawn: NDArray[Any], mask: Scan) -> float:
    """The value at which lesion begins; 0 where every positive value is lesion."""
    top = float(drawn.max())
    if _fractions(drawn):
        return 0.5 if top >= 0.5 else max(top / 2, 1e-30)
    classes = mask.volume or (top <= _MOST_CLASSES and mask.format not in _LOSSY)
    return 0.0 if (classes and _whole(drawn)) or top <= 0 else top / 2


def read_mask(path: Path, scan: Scan, index: int = 0) -> NDArray[np.uint8]:
    """One slice of a mask file as 0 and 1 (see `lesion_of`), in the view of ``scan.slice(index)``.

    Raises:
        InputError: The mask cannot be read, or has another shape or place in space than its scan.
    """
    if scan.volume:
        return scan.view(read_volume_mask(path, scan), index)
    mask = open_mask(path)
    lesion = mask.view(lesion_of(mask), 0)
    if lesion.shape != scan.voxels.shape[:2]:
        raise InputError(f"{path}: the mask has shape {lesion.shape}, its image {scan.voxels.shape[:2]}")
    return lesion


def read_volume_mask(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """A volume's mask as 0 and 1 in the array order of ``scan.voxels``.

    Raises:
        InputError: The mask cannot be read, has another shape, or lies elsewhere by more than half a voxel.
    """
    mask = open_mask(path)
    if mask.voxels.shape != scan.voxels.shape:
        raise InputError(f"{path}: the mask has shape {mask.voxels.shape}, its scan {scan.voxels.shape}")
    if mask.affine is not None and scan.affine is not None:
        corners = np.array(np.meshgrid(*((0, n - 1) for n in scan.voxels.shape), [1])).reshape(4, -1)
        apart = np.linalg.solve(scan.affine, mask.affine @ corners) - corners
        if np.abs(apart).max() > 0.5:
            raise InputError(f"{path}: the mask lies up to {np.abs(apart).max():.1f} voxels away from its scan")
    return lesion_of(mask)


def open_mask(path: Path) -> Scan:
    """A mask file as a scan; unlike one, it may be empty."""
    return open_scan(path, constant=True)
