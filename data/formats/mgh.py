"""FreeSurfer MGH and MGZ volumes, whatever the file is called."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.data.errors import InputError
from tumorlens.data.formats.volumes import MGH_TYPES, check_frame, check_shape, spacing_of, spatial_shape, volume_scan
from tumorlens.data.scan import Scan, checked_affine


def read_mgh(path: Path, frame: int | None = None) -> Scan:
    """A FreeSurfer volume (https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat), or one frame of a 4-D one.

    Where the header's ``goodRASFlag`` is 0, FreeSurfer assumes 1 mm and coronal slices; here both stay unknown.

    Args:
        path: MGH or MGZ; gzip is told by content.
        frame: Which frame of a 4-D file, from 0; the others have none, and it says nothing to them.

    Returns:
        Voxels ``(i, j, k)`` in the stored type, affine to RAS mm.

    Raises:
        InputError: Damaged, cut off, an impossible shape, a singular affine, a frame that is missing or must be chosen.
    """
    import nibabel as nib

    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if compressed else open
    try:
        with opener(path, "rb") as file:
            version, *dims, kind, _, good_ras = struct.unpack(">7ih", file.read(30))
            place = np.frombuffer(file.read(60), ">f4")  # spacing, directions, center
            if version != 1 or kind not in MGH_TYPES or (good_ras and not (np.abs(place) < 1e9).all()):
                raise InputError("the MGH header is damaged")
            shape = tuple(dims) if dims[3] > 1 else tuple(dims[:3])
            check_shape(tuple(dims), "MGH")
            axes = spatial_shape(shape, "MGH")
            check_frame(axes, frame, "MGH")
            file.seek(0)
            image = nib.MGHImage.from_stream(file)
            data = np.asanyarray(image.dataobj[..., frame] if len(axes) == 4 else image.dataobj)
    except InputError:
        raise
    except Exception:  # nibabel passes on what gzip, numpy and struct raise on short data, with the stream's address
        raise InputError("the MGH data are damaged or cut off") from None
    affine = checked_affine(image.affine) if good_ras else None
    return volume_scan(path, "mgh", data, shape, (affine, spacing_of(affine)), frame)
