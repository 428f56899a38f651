"""What the readers of MGH, NRRD and MetaImage have in common, and how the three are told apart."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan, checked_affine

_MAX_VOXELS = 2_000_000_000


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Refuse a shape that is no shape, or more than memory holds, before anything is read; `name` is the format's."""
    if any(n < 1 for n in shape) or np.prod([float(n) for n in shape]) > _MAX_VOXELS:
        raise InputError(f"the {name} header gives an impossible shape {shape}")


def spatial_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape without trailing axes of length 1 (beyond the second); four axes are space and frames."""
    spatial = shape
    while len(spatial) > 2 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if len(spatial) > 4 or len(spatial) < 2 or len(shape) > 4:
        raise InputError(f"the {name} has {len(shape)} axes {shape}; 2, 3 or 4 can be used")
    return spatial


def check_frame(spatial: tuple[int, ...], frame: int | None, name: str) -> None:
    """Refuse a frame that is missing or does not exist; what is not 4-D has none to choose."""
    if len(spatial) < 4:
        return
    if frame is None:
        raise InputError(f"the {name} is 4-D with {spatial[3]} frames; choose one with --frame 0 to {spatial[3] - 1}")
    if not 0 <= frame < spatial[3]:
        raise InputError(f"frame {frame} does not exist, the {name} has frames 0 to {spatial[3] - 1}")


_NAMES = {"mgh": "MGH", "nrrd": "NRRD", "metaimage": "MetaImage"}
MGH_TYPES = (0, 1, 3, 4, 10)  # uint8, int32, float32, int16, uint16
MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}

LPS_TO_RAS = (-1, -1, 1)  # the signs that turn coordinates of DICOM and ITK to those of NIfTI

_HEADER_BYTES = 1 << 20
DEFLATE = 1100  # zlib makes nothing smaller than by a factor of 1032
Geometry = tuple[NDArray[np.float64] | None, tuple[float, ...] | None]


def sniff_volume(head: bytes) -> str | None:
    """``"mgh"``, ``"nrrd"`` or ``"metaimage"``, or none of them.

    Args:
        head: The first 560 bytes, decompressed where the whole file is gzip.
    """
    if re.match(rb"NRRD000\d", head):
        return "nrrd"
    if len(head) >= 30:
        version, *dims, kind, _, good_ras = struct.unpack(">7ih", head[:30])
        if version == 1 and kind in MGH_TYPES and good_ras in (0, 1) and any(dims):
            return "mgh"
    keys = dict(re.findall(rb"^[ \t]*(\w+)[ \t]*[=:][ \t]*(\w+)", head, re.MULTILINE))
    if keys.get(b"NDims", b"").isdigit() and keys.get(b"ObjectType", b"Image") == b"Image":
        return "metaimage"
    return None


def header_bytes(path: Path, name: str) -> bytes:
    """The beginning of a file, in which its header lies.

    Raises:
        InputError: The whole file is compressed, which the format has no place for.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"the {name} file is compressed as a whole; unpack it with gunzip")
    return head


def volume_scan(
    path: Path, kind: str, data: NDArray[Any], shape: tuple[int, ...], geometry: Geometry, frame: int | None
) -> Scan:
    axes = spatial_shape(shape, _NAMES[kind])
    if data.dtype.kind not in "buif":
        raise InputError(f"the {_NAMES[kind]} holds {data.dtype} values; a scan has one number a voxel")
    return Scan(
        data.reshape((*axes, 1)[:3]).astype(data.dtype.newbyteorder("="), copy=False),
        affine=geometry[0],
        spacing_mm=geometry[1],
        path=path,
        format=kind,
        volume=True,
        source_shape=shape if len(axes) < 4 else shape[:3],
        frame=frame if len(axes) == 4 else None,
        x_first=True,
    )


def affine_to_ras(
    direction: NDArray[np.float64], spacing: NDArray[np.float64], origin: NDArray[np.float64], to_ras: tuple[int, ...]
) -> NDArray[np.float64]:
    """``(4, 4)`` to RAS mm from ITK's direction (its columns are the array axes), spacing and origin in mm."""
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    return checked_affine(np.diag([*to_ras, 1]) @ affine)


def spacing_of(affine: NDArray[np.float64] | None) -> tuple[float, ...] | None:
    return None if affine is None else tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))


def filled_spacing(spacing: NDArray[np.float64]) -> tuple[float, ...]:
    """Three lengths; a 2-D file's thickness is filler, as a 2-D NIfTI's is, and the shape of the source says so."""
    return tuple(float(s) for s in (*spacing, 1.0)[:3])


def beside(path: Path, name: str, kind: str) -> Path:
    """The detached data file that a header names.

    Only in the header's own folder: elsewhere, a header that came from a stranger could show any file of this machine.
    """
    folder = Path(os.path.normpath(path.parent.absolute()))  # not resolve: links in the folder are its owner's
    target = Path(os.path.normpath(folder / name))
    if not target.is_relative_to(folder):
        raise InputError(f"the {kind} header keeps its data outside its own folder, in {name}; put both in one folder")
    if not target.is_file():
        raise InputError(f"the {kind} header's data file {name} is missing")
    return target


def check_size(needed: int, sources: list[Path], ratio: int, kind: str) -> None:
    """Refuse a header that promises more than its files can hold before memory is set aside for it."""
    if needed > ratio * sum(source.stat().st_size for source in sources):
        raise InputError(f"the {kind} data are damaged or cut off")
