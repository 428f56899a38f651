"""FreeSurfer MGH and MGZ volumes, whatever the file is called."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.data.errors import InputError
from tumorlens.data.formats.volumes import (
    affine_to_ras,
    check_end,
    check_frame,
    check_shape,
    spacing_of_affine,
    spatial_shape,
    volume_scan,
)
from tumorlens.data.scan import Scan

_TYPES = (0, 1, 3, 4, 10)  # uint8, int32, float32, int16, uint16
_FIRST_FIELDS = ">7ih"  # version, four lengths, type, degrees of freedom, goodRASFlag


def is_mgh(head: bytes) -> bool:
    """Whether a file begins as an MGH volume does.

    Args:
        head: The first 560 bytes, decompressed.
    """
    if len(head) < 30:
        return False
    version, *dims, kind, _, good_ras = struct.unpack(_FIRST_FIELDS, head[:30])
    return version == 1 and kind in _TYPES and good_ras in (0, 1) and any(dims)


def read_mgh(path: Path, frame: int | None = None) -> Scan:
    """Read a FreeSurfer volume, or one frame of a 4-D one.

    The format is described at https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
    Where the header's ``goodRASFlag`` is 0, FreeSurfer assumes 1 mm and coronal slices. Here both stay unknown.

    Args:
        path: MGH or MGZ. The content tells which.
        frame: The frame of a 4-D file, from 0. Files without frames ignore it.

    Returns:
        Voxels ``(i, j, k)`` in the stored type, affine ``(4, 4)`` to RAS mm.

    Raises:
        InputError: The file is damaged or cut off, its shape is impossible, its affine is singular, or a frame is
            missing or must be chosen.
    """
    import nibabel as nib

    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if compressed else open
    try:
        with opener(path, "rb") as file:
            version, *dims, kind, _, good_ras = struct.unpack(_FIRST_FIELDS, file.read(30))
            place = np.frombuffer(file.read(60), ">f4")  # spacing, directions, center
            if version != 1 or kind not in _TYPES or (good_ras and not (np.abs(place) < 1e9).all()):
                raise InputError("the MGH header is damaged")
            shape = tuple(dims) if dims[3] > 1 else tuple(dims[:3])
            check_shape(tuple(dims), "MGH")
            axes = spatial_shape(shape, "MGH")
            check_frame(axes, frame, "MGH")
            file.seek(0)
            image = nib.MGHImage.from_stream(file)
            data = np.asanyarray(image.dataobj[..., frame] if len(axes) == 4 else image.dataobj)
            if compressed:
                check_end(file)
    except InputError:
        raise
    except Exception:  # nibabel passes on what gzip, numpy and struct raise on short data, with the stream's address
        raise InputError("the MGH data are damaged or cut off") from None
    affine = None
    if good_ras:
        spacing, directions, center = place[:3].astype(float), place[3:12].reshape(3, 3).T, place[12:]
        affine = affine_to_ras(directions, spacing, np.zeros(3), (1, 1, 1))
        affine[:3, 3] = center - affine[:3, :3] @ np.array(dims[:3]) / 2
    return volume_scan(path, "MGH", data, shape, (affine, spacing_of_affine(affine)), frame)
