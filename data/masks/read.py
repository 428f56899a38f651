"""Mask files -> masks of 0 and 1 in the order of their scans.

Masks come as classes, as gray pictures, as JPEG and as fractions, so which values are lesion depends on the file:

- Whole numbers are classes, and each but 0 is lesion: in volumes always, in pictures if the numbers are small and the
  format keeps them.
- Gray levels are cut at half of their maximum, because JPEG and smooth drawing blur a border.
- Fractions are cut at 0.5, which leaves the border in its place after interpolation.
- Any channel of a color counts.

Where a lesion has regions, the values are labels, see `read_labels`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.formats.pictures import stored_numbers
from tumorlens.data.scan import Scan

_MOST_CLASSES = 31  # larger values of a picture are gray levels: 127 next to 255 is a smooth border
_LOSSY = ("jpeg", "webp")
_MOST_LABELS = 255  # of a volume: an atlas has some hundred
_KEEPS_NUMBERS = ("png", "bmp", "gif", "tiff")  # formats of pictures


def read_mask(path: Path, scan: Scan, index: int = 0) -> NDArray[np.uint8]:
    """Read one slice of a mask file.

    Args:
        path: The mask file.
        scan: The scan to which it belongs.
        index: The slice, from 0.

    Returns:
        0 and 1 in the view of ``scan.slice(index)``, ``(rows, columns)``.

    Raises:
        InputError: The mask cannot be read, or its shape or place in space is not that of its scan.
    """
    if scan.volume:
        return scan.view(read_volume_mask(path, scan), index)
    return _fitting(open_mask(path), lesion_of, scan, path)


def read_labels(path: Path, scan: Scan) -> NDArray[Any]:
    """Read a mask file whose values are labels, as whole numbers: the background's is 0.

    Returns:
        ``(rows, columns)``, or of a volume the array order of ``scan.voxels``.

    Raises:
        InputError: As `read_mask`, or the file holds gray levels, colors or fractions.
    """
    return _fitting(open_mask(path), labels_of, scan, path)


def _fitting(mask: Scan, read: Callable[[Scan], NDArray[Any]], scan: Scan, path: Path) -> NDArray[Any]:
    """What is read from a mask, once its shape and its place are known to be those of its scan."""
    if scan.volume:
        _check_grid(mask, scan, path)
        return read(mask)
    values = mask.view(read(mask), 0)
    if values.shape != scan.voxels.shape[:2]:
        raise InputError(f"{path}: the mask has shape {values.shape}, its image {scan.voxels.shape[:2]}")
    return values


def read_volume_mask(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """Read the mask of a volume.

    Returns:
        0 and 1 in the array order of ``scan.voxels``, ``(i, j, k)``.

    Raises:
        InputError: The mask cannot be read, has another shape than its scan, or lies elsewhere by more than half a
            voxel.
    """
    mask = open_mask(path)
    _check_grid(mask, scan, path)
    return lesion_of(mask)


def _check_grid(mask: Scan, scan: Scan, path: Path) -> None:
    if mask.voxels.shape != scan.voxels.shape:
        raise InputError(f"{path}: the mask has shape {mask.voxels.shape}, its scan {scan.voxels.shape}")
    if mask.affine is not None and scan.affine is not None:
        corners = np.array(np.meshgrid(*((0, n - 1) for n in scan.voxels.shape), [1])).reshape(4, -1)
        apart = np.linalg.solve(scan.affine, mask.affine @ corners) - corners
        if np.abs(apart).max() > 0.5:
            raise InputError(f"{path}: the mask lies up to {np.abs(apart).max():.1f} voxels away from its scan")


def open_mask(path: Path) -> Scan:
    """Read a mask file as a scan, with the values of the file. It may be empty, unlike a scan.

    Raises:
        InputError: As `data.formats.open.open_scan`.
    """
    return open_scan(path, constant=True)


def describe_values(mask: Scan) -> str:
    """How a mask with several values besides 0 is read, in words; empty for a mask with one value."""
    flat = _flat(mask)
    values = np.unique(flat)
    values = values[values > 0]
    if len(values) < 2:
        return ""
    cut = _cut(flat, mask)
    if _is_fractions(flat):
        return f"fractions up to {values[-1]:g}, lesion from {cut:g} on"
    if cut == 0:
        shown = ", ".join(f"{value:g}" for value in values[:8])
        return f"values {shown}{' ...' if len(values) > 8 else ''}, all of them lesion"
    return f"{len(values)} gray levels, lesion above {cut:g}"


def lesion_of(mask: Scan) -> NDArray[np.uint8]:
    """The lesion of a mask as 0 and 1, ``(rows, columns)`` or the volume's shape."""
    flat = _flat(mask)
    cut = _cut(flat, mask)
    return (flat >= cut).astype(np.uint8) if _is_fractions(flat) else (flat > cut).astype(np.uint8)


def labels_of(mask: Scan) -> NDArray[Any]:
    """The labels of a mask, whole numbers, ``(rows, columns)`` or the volume's shape; see `read_labels`.

    Raises:
        InputError: The file holds gray levels, colors or fractions.
    """
    picture = not mask.volume and mask.format in _KEEPS_NUMBERS
    values = stored_numbers(mask) if picture else mask.voxels
    problem = ""
    if mask.format in _LOSSY:
        problem = f"{mask.format.upper()} does not keep numbers"
    elif values.ndim == 3 and not mask.volume:
        problem = "it holds colors"
    elif not _is_whole(values):
        problem = "it holds fractions"
    elif len(np.unique(values[values != 0])) > (_MOST_LABELS if mask.volume else _MOST_CLASSES):
        problem = "it holds gray levels"
    if problem:
        raise InputError(f"{mask.path}: this mask cannot hold regions, because {problem}; give it with whole numbers")
    return values if values.dtype.kind != "f" else np.rint(values).astype(np.int64)


def _flat(mask: Scan) -> NDArray[Any]:
    """The values without a channel axis: the largest of the channels."""
    return mask.voxels.max(axis=2) if mask.voxels.ndim == 3 and not mask.volume else mask.voxels


def _is_whole(flat: NDArray[Any]) -> bool:
    return flat.dtype.kind != "f" or bool((flat == np.rint(flat)).all())


def _is_fractions(flat: NDArray[Any]) -> bool:
    """Whether values are shares of lesion. Larger values that are not whole are gray levels after a resize."""
    return not _is_whole(flat) and float(flat.max()) <= _MOST_CLASSES


def _cut(flat: NDArray[Any], mask: Scan) -> float:
    """The value at which lesion begins; 0 if every positive value is lesion."""
    top = float(flat.max())
    if _is_fractions(flat):
        return 0.5 if top >= 0.5 else max(top / 2, 1e-30)
    classes = mask.volume or (top <= _MOST_CLASSES and mask.format not in _LOSSY)
    return 0.0 if (classes and _is_whole(flat)) or top <= 0 else top / 2
