"""MetaImage volumes, whatever the file is called.

ITK does not read them here: for damaged compressed data, ITK 5.4 returns whatever was in memory, and it writes its
messages to the screen.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.volumes import (
    DEFLATE_RATIO,
    LPS_TO_RAS,
    MM_PER_UNIT,
    Geometry,
    affine_to_ras,
    check_frame,
    check_shape,
    check_size,
    detached_file,
    header_bytes,
    spacing_of_affine,
    spacing_of_lengths,
    spatial_shape,
    volume_scan,
)
from tumorlens.data.scan import Scan

_MET_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip


def is_metaimage(head: bytes) -> bool:
    """Whether a file begins as a MetaImage header does. The field ``ObjectType`` is optional."""
    keys = dict(re.findall(rb"^[ \t]*(\w+)[ \t]*[=:][ \t]*(\w+)", head, re.MULTILINE))
    return keys.get(b"NDims", b"").isdigit() and keys.get(b"ObjectType", b"Image") == b"Image"


def read_metaimage(path: Path, frame: int | None = None) -> Scan:
    """Read a MetaImage (https://itk.org/Wiki/MetaIO/Documentation), or one frame of a 4-D one.

    Detached data must lie in the header's own folder. World coordinates are LPS in the file and RAS in the scan.
    Without a spacing in the header, spacing and affine are unknown. Without a ``TransformMatrix``, the affine is
    unknown. An origin that is not given is 0.

    Args:
        path: ``.mha`` or ``.mhd``. The name does not matter.
        frame: The frame of a 4-D file, from 0. Files without frames ignore it.

    Returns:
        Voxels ``(i, j, k)``, the file's fastest axis first (2-D files as ``(i, j, 1)``), in the stored type.

    Raises:
        InputError: The file is damaged or cut off, detached data are missing, the shape is impossible, the voxels are
            colors or vectors, the affine is singular, or a frame is missing or must be chosen.
    """
    data, shape, geometry = _read(path, header_bytes(path, "MetaImage"), frame)
    return volume_scan(path, "MetaImage", data, shape, geometry, frame)


def metaimage_files(path: Path) -> list[Path]:
    """The file, and the file in which its header keeps the voxels.

    Raises:
        InputError: It is missing.
    """
    where = _header(header_bytes(path, "MetaImage"))[0].get("ElementDataFile", "LOCAL")
    return [path] if where.upper() == "LOCAL" else [path, detached_file(path, where, "MetaImage")]


def _read(path: Path, head: bytes, frame: int | None) -> tuple[NDArray[Any], tuple[int, ...], Geometry]:
    fields, start = _header(head)
    try:
        shape = tuple(int(n) for n in fields["DimSize"].split())
        stored = np.dtype(_MET_TYPES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")])
        channels, skip = int(fields.get("ElementNumberOfChannels", 1)), int(fields.get("HeaderSize", 0))
        where, packed = fields["ElementDataFile"], int(fields.get("CompressedDataSize", 0))
        whole = len(shape) == int(fields["NDims"])
        geometry = _geometry(fields, len(shape))
    except InputError:
        raise
    except (KeyError, ValueError):
        whole = False
    if not whole:
        raise InputError("the MetaImage header is damaged")
    if channels != 1:
        raise InputError(f"the MetaImage holds {channels} numbers a voxel; a scan has one")
    check_shape(shape, "MetaImage")
    check_frame(spatial_shape(shape, "MetaImage"), frame, "MetaImage")
    if not _true(fields.get("BinaryData", "True")):
        raise InputError("the MetaImage holds its numbers as text; save it as binary data")
    if where.split()[:1] == ["LIST"] or "%" in where:
        raise InputError("the MetaImage keeps its data in several files; save it as one")
    source = path
    if where.upper() != "LOCAL":
        source, start = detached_file(path, where, "MetaImage"), max(skip, 0)
    compressed = _true(fields.get("CompressedData", "False"))
    needed = int(np.prod(shape)) * stored.itemsize
    check_size(needed, [source], DEFLATE_RATIO if compressed else 1, "MetaImage")
    if skip == -1 and source != path and not compressed:  # the voxels are the end of the file
        start = source.stat().st_size - needed
    with source.open("rb") as file:
        file.seek(start)
        # Not read(packed), which sets memory aside for whatever the header says.
        payload = file.read()[: packed if packed > 0 else None] if compressed else file.read(needed)
    if compressed:
        payload = _inflated(payload, needed)
    if len(payload) < needed:
        raise InputError("the MetaImage data are damaged or cut off")
    big = _true(fields.get("BinaryDataByteOrderMSB") or fields.get("ElementByteOrderMSB") or "False")
    voxels = np.frombuffer(payload, stored.newbyteorder(">" if big else "<")).reshape(shape, order="F")
    if len(spatial_shape(shape, "MetaImage")) == 4:
        voxels = voxels[..., frame]
    return np.array(voxels, order="F"), shape, geometry


def _header(head: bytes) -> tuple[dict[str, str], int]:
    """The fields, and where attached data begin: after the field ``ElementDataFile``."""
    fields: dict[str, str] = {}
    for line in re.finditer(rb"([^\n]*)\n?", head):
        field = re.match(r"(\w+)\s*[=:]\s*(.*)", line[1].decode("latin-1").strip())
        if field:
            fields[field[1]] = field[2]
            if field[1] == "ElementDataFile":
                return fields, line.end()
    return fields, len(head)


def _geometry(fields: dict[str, str], n: int) -> Geometry:
    """Affine and spacing. The ``(n, n)`` direction matrix has one row for each array axis.

    Raises:
        ValueError: A field does not hold numbers, or too few.
    """

    def numbers(*names: str) -> NDArray[np.float64] | None:
        return next((np.array(fields[name].split(), np.float64) for name in names if name in fields), None)

    spacing, direction = numbers("ElementSpacing", "ElementSize"), numbers("TransformMatrix", "Orientation", "Rotation")
    if spacing is None:
        return None, None
    origin = numbers("Offset", "Position", "Origin")
    factor = MM_PER_UNIT.get(fields.get("DistanceUnits", "").lower(), 1.0)
    if len(spacing) != n or not spacing.all() or not np.isfinite(spacing).all():
        raise ValueError("spacing")
    if direction is None or n < 3:
        return None, spacing_of_lengths(factor * np.abs(spacing))
    origin = np.zeros(n) if origin is None else origin
    affine = affine_to_ras(direction.reshape(n, n).T, factor * spacing, factor * origin, LPS_TO_RAS)
    return affine, spacing_of_affine(affine)


def _inflated(payload: bytes, needed: int) -> bytes:
    """The decompressed bytes; empty if they are not exactly `needed` bytes or their checksum is wrong."""
    unpack = zlib.decompressobj(wbits=47)  # zlib or gzip
    try:
        voxels = unpack.decompress(payload, needed + 1)
    except zlib.error:
        return b""
    return voxels if unpack.eof and len(voxels) == needed else b""


def _true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
