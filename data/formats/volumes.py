"""The common parts of the readers of volumes: checks of shape, frame and size, affine and spacing, detached data."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.scan import ROUNDED_DEG, Scan, check_n_voxels, checked_affine, shear_deg, straightened

_MAX_VOXELS = 2_000_000_000
MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}

LPS_TO_RAS = (-1, -1, 1)  # the signs that turn coordinates of DICOM and ITK to those of NIfTI

_HEADER_BYTES = 1 << 20
_LONGEST_NAME = 4096  # of a file, with its folders
_NOT_UNIT = 0.01  # of the length of a direction; rounding to two decimals gives less
DEFLATE_RATIO = 1100  # zlib's largest ratio of plain to compressed bytes is 1032
Geometry = tuple[NDArray[np.float64] | None, tuple[float, ...] | None]  # affine and spacing in mm


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Check a header's shape before anything is read.

    Args:
        shape: Length of each axis.
        name: The format's name, for the message.

    Raises:
        InputError: An axis is empty, memory cannot hold as many voxels, or `data.scan.voxels_limited` allows less.
    """
    if any(n < 1 for n in shape) or np.prod([float(n) for n in shape]) > _MAX_VOXELS:
        raise InputError(f"the {name} header gives an impossible shape {shape}")
    check_n_voxels(math.prod(shape))


def spatial_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape without trailing axes of length 1 (beyond the second). Four axes are space and frames.

    Raises:
        InputError: There are fewer than 2 axes, or more than 4.
    """
    spatial = shape
    while len(spatial) > 2 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if not 2 <= len(spatial) <= 4:
        raise InputError(f"the {name} has {len(shape)} axes {shape}; 2, 3 or 4 can be used")
    return spatial


def check_frame(spatial: tuple[int, ...], frame: int | None, name: str) -> None:
    """Check the chosen frame of a 4-D shape. Other shapes have no frames, and `frame` does not matter.

    Raises:
        InputError: No frame is chosen, or it does not exist.
    """
    if len(spatial) < 4:
        return
    if frame is None:
        raise InputError(f"the {name} is 4-D with {spatial[3]} frames; choose one with --frame 0 to {spatial[3] - 1}")
    if not 0 <= frame < spatial[3]:
        raise InputError(f"frame {frame} does not exist, the {name} has frames 0 to {spatial[3] - 1}")


def header_bytes(path: Path, name: str) -> bytes:
    """The first mebibyte of a file, in which its header lies.

    Args:
        path: The file.
        name: The format's name, for the message.

    Raises:
        InputError: The file is compressed as a whole, which the format does not allow.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"the {name} file is compressed as a whole; unpack it with gunzip")
    return head


def volume_scan(
    path: Path, name: str, data: NDArray[Any], shape: tuple[int, ...], geometry: Geometry, frame: int | None
) -> Scan:
    """A volume's scan.

    Args:
        path: The file.
        name: The format's name, such as ``"NRRD"``; in small letters it becomes the scan's `format`.
        data: The voxels, of one frame if there are several.
        shape: The file's own shape, with its frames.
        geometry: Affine ``(4, 4)`` to RAS mm, and spacing in mm along each axis, or none. The scan's affine is
            straightened.
        frame: The chosen frame.

    Raises:
        InputError: The voxels are not real numbers.
    """
    axes = spatial_shape(shape, name)
    if data.dtype.kind not in "buif":
        raise InputError(f"the {name} holds {data.dtype} values; a scan has one number a voxel")
    voxels = data.reshape((*axes, 1)[:3])
    affine = None if geometry[0] is None else straightened(geometry[0], voxels.shape)
    return Scan(
        voxels.astype(data.dtype.newbyteorder("="), copy=False),
        affine=affine,
        spacing_mm=geometry[1],
        path=path,
        format=name.lower(),
        volume=True,
        source_shape=shape if len(axes) < 4 else shape[:3],
        frame=frame if len(axes) == 4 else None,
        warnings=shear_warnings(affine),
        x_first=True,
    )


def affine_to_ras(
    direction: NDArray[np.float64], spacing: NDArray[np.float64], origin: NDArray[np.float64], to_ras: tuple[int, ...]
) -> NDArray[np.float64]:
    """The affine ``(4, 4)`` to RAS mm.

    Args:
        direction: ``(n, n)``, n >= 3. Its columns are the directions of the array axes, of length 1. They get exactly
            this length if rounding explains the departure, so that the spacing is that of the header.
        spacing: ``(n,)`` in mm.
        origin: ``(n,)`` in mm.
        to_ras: The signs that turn the file's world axes to RAS.

    Raises:
        InputError: The affine is singular or not finite.
    """
    affine = np.eye(4)
    lengths = np.linalg.norm(direction[:3, :3], axis=0)
    affine[:3, :3] = direction[:3, :3] / np.where(np.abs(lengths - 1) < _NOT_UNIT, lengths, 1) * spacing[:3]
    affine[:3, 3] = origin[:3]
    return checked_affine(np.diag([*to_ras, 1]) @ affine)


def shear_warnings(affine: NDArray[np.float64] | None) -> tuple[str, ...]:
    """The sentence about array axes that are not at right angles, if the affine ``(4, 4)`` has such."""
    sheared = 0.0 if affine is None else shear_deg(affine)
    if sheared <= ROUNDED_DEG:
        return ()
    return (f"the array axes are sheared by {sheared:.1f} degrees; the mask's affine follows the shear",)


def spacing_of_affine(affine: NDArray[np.float64] | None) -> tuple[float, ...] | None:
    """Voxel size in mm along each array axis of an affine ``(4, 4)``; none without an affine."""
    return None if affine is None else tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))


def spacing_of_lengths(spacing: NDArray[np.float64]) -> tuple[float, ...]:
    """Three lengths in mm. The thickness of a 2-D file is filler, as in a 2-D NIfTI. Its source shape shows that."""
    return tuple(float(s) for s in (*spacing, 1.0)[:3])


def detached_file(path: Path, target_name: str, name: str) -> Path:
    """The detached data file that a header names.

    It must lie in the header's own folder, and must not be a link that leads out of it: otherwise a header from a
    stranger could show any file of this machine.

    Raises:
        InputError: It lies elsewhere, or is missing.
    """
    if "\0" in target_name or len(target_name) > _LONGEST_NAME:
        raise InputError(f"the {name} header names a data file that cannot exist; the header is damaged")
    folder = Path(os.path.normpath(path.parent.absolute()))
    target = Path(os.path.normpath(folder / target_name))
    if not (target.is_relative_to(folder) and target.resolve().is_relative_to(folder.resolve())):
        raise InputError(
            f"the {name} header keeps its data outside its own folder, in {target_name}; put both in one folder"
        )
    if not target.is_file():
        raise InputError(f"the {name} header's data file {target_name} is missing")
    return target


def check_end(stream: Any) -> None:
    """Read a compressed stream to its end, where its checksum stands. What lies behind the end does no harm.

    Raises:
        OSError, EOFError, zlib.error: The data are damaged or cut off.
    """
    try:
        while stream.read(_HEADER_BYTES):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise


def check_size(needed: int, sources: list[Path], ratio: int, name: str) -> None:
    """Check, before memory is set aside, that the files can hold what the header promises.

    Args:
        needed: Bytes of all voxels.
        sources: The files that hold them.
        ratio: The largest ratio of plain to compressed bytes that the compression reaches; 1 without one.
        name: The format's name, for the message.

    Raises:
        InputError: The files are too small.
    """
    if needed > ratio * sum(source.stat().st_size for source in sources):
        raise InputError(f"the {name} data are damaged or cut off")
