"""NRRD volumes, whatever the file is called.

pynrrd parses the header's values. The voxels are read here, because pynrrd does not read data in several files, and
decompresses without a limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.formats.volumes import (
    DEFLATE_RATIO,
    LPS_TO_RAS,
    MM_PER_UNIT,
    Geometry,
    affine_to_ras,
    check_end,
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

# Fields that pynrrd parses, by the names that it knows them by.
_FIELDS = (
    *("type", "dimension", "space", "space dimension", "sizes", "endian", "encoding", "kinds", "spacings"),
    *("space directions", "space origin"),
)
_REQUIRED = ("type", "dimension", "sizes", "encoding")
_DOMAIN_KINDS = ("domain", "space", "time", "???", "none")  # axes of the image; all other kinds are parts of a voxel
_TO_RAS = {  # the spaces of the patient, by their names without "-" and "time"; voxels of other spaces have no place
    **dict.fromkeys(("rightanteriorsuperior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("leftanteriorsuperior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("leftposteriorsuperior", "lps"), LPS_TO_RAS),
}
_MOST_FILES = 10_000  # of one volume; a long 4-D series has a file for each slice of each frame
_BZIP2_RATIO = 2_000_000  # the largest ratio of plain to compressed bytes that bzip2 reaches


def is_nrrd(head: bytes) -> bool:
    """Whether a file begins as a NRRD does."""
    return re.match(rb"NRRD000\d\r?\n", head) is not None


def read_nrrd(path: Path, frame: int | None = None) -> Scan:
    """Read a NRRD (https://teem.sourceforge.net/nrrd/format.html), or one frame of a 4-D one.

    Detached data must lie in the header's own folder. World coordinates are as ``space`` says in the file and RAS in
    the scan. Without a spacing in the header, spacing and affine are unknown. Without a ``space`` of the patient or
    without ``space directions``, the affine is unknown. An origin that is not given is 0.

    Args:
        path: ``.nrrd`` or ``.nhdr``. The name does not matter.
        frame: The frame, from 0, of a 4-D file or of a file with one axis that is a list or a vector. Files without
            frames ignore it.

    Returns:
        Voxels ``(i, j, k)``, the file's fastest axis first (2-D files as ``(i, j, 1)``), in the stored type.

    Raises:
        InputError: The file is damaged or cut off, detached data are missing, the shape is impossible, the voxels are
            colors or vectors, the affine is singular, or a frame is missing or must be chosen.
    """
    fields, start, detached = _header(path, header_bytes(path, "NRRD"))
    header, stored = _parsed(fields)
    sizes = tuple(int(n) for n in header["sizes"])
    axes, channel_axis = _axes(header, sizes)
    shape = tuple(sizes[axis] for axis in (*axes, *channel_axis))
    check_shape(shape, "NRRD")
    spatial = spatial_shape(shape, "NRRD")
    check_frame(spatial, frame, "NRRD")
    geometry = _geometry(fields, header, axes)
    sources = [(file, 0) for file in detached] or [(path, start)]
    payload = _payload(sources, fields, header["encoding"], stored, math.prod(sizes))
    voxels = np.frombuffer(payload, stored).reshape(sizes, order="F").transpose(*axes, *channel_axis)
    if len(spatial) == 4:
        voxels = voxels[..., frame]
    return volume_scan(path, "NRRD", np.array(voxels, order="F"), shape, geometry, frame)


def nrrd_files(path: Path) -> list[Path]:
    """The file, and the files in which its header keeps the voxels.

    Raises:
        InputError: One of them is missing.
    """
    return [path, *_header(path, header_bytes(path, "NRRD"))[2]]


def _header(path: Path, head: bytes) -> tuple[dict[str, str], int, list[Path]]:
    """The fields, where attached data begin, and the detached data files.

    Names of fields are in small letters without blanks, because both spellings occur.
    """
    fields: dict[str, str] = {}
    files: list[Path] = []
    lines = re.finditer(rb"([^\n]*?)\r?(?:\n|$)", head)
    start = len(head)
    for line in lines:
        written = line[1].decode("latin-1")
        if not written.strip():
            start = line.end()
            break
        match = re.match(r"([^#:]+):(?!=)\s*(.*)", written)
        if not match:
            continue
        name, value = match[1].lower().replace(" ", ""), match[2].strip()
        fields[name] = value
        if name == "datafile":
            listed = (other[1].decode("latin-1").strip() for other in lines)
            names = list(filter(None, listed) if value.startswith("LIST") else _names_of(value))
            if len(files) + len(names) > _MOST_FILES:
                raise InputError(f"the NRRD header names more than {_MOST_FILES} data files")
            files += [detached_file(path, other, "NRRD") for other in names]
    return fields, start, files


def _names_of(value: str) -> list[str]:
    """The names of the data files: a single name, or those of a pattern such as ``s%03d.raw 1 24 1``."""
    if not re.search(r"%\d*d", value):
        return [value]
    for count in (4, 3):  # a fourth number says how many axes a file holds
        pattern, *words = value.rsplit(maxsplit=count)
        whole = len(words) == count and all(re.fullmatch(r"-?\d{1,9}", word) for word in words)
        if not whole or not re.fullmatch(r"[^%]*%\d{0,3}d[^%]*", pattern):
            continue
        first, last, step = (int(word) for word in words[:3])
        if step:
            numbers = range(first, last + (1 if step > 0 else -1), step)
            return [pattern % number for number in numbers[: _MOST_FILES + 1]]
    raise InputError(
        f"the NRRD header's data files {value[:200]} are not a pattern with a first number, a last number and a step"
    )


def _parsed(fields: dict[str, str]) -> tuple[dict[str, Any], np.dtype[Any]]:
    """The values of a header as pynrrd parses them, and the type of a stored number."""
    import nrrd

    values = {name: fields[name.replace(" ", "")] for name in _FIELDS if name.replace(" ", "") in fields}
    for name in ("type", "encoding", "endian"):
        if name in values:
            values[name] = " ".join(values[name].lower().split())
    for name in ("space directions", "space origin"):  # pynrrd takes no blanks inside a vector
        if name in values:
            values[name] = re.sub(r"(?<=[(,]) | (?=[),])", "", " ".join(values[name].split()))
    if values.get("space origin", "").lower() == "none":
        del values["space origin"]
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise InputError(f"the NRRD header is damaged (it has no {missing[0]})")
    try:
        header = dict(nrrd.read_header(["NRRD0005", *(f"{name}: {value}" for name, value in values.items())]))
        for name in ("sizes", "kinds", "spacings", "space directions"):
            if name in header and len(header[name]) != header["dimension"]:
                raise ValueError(f"the number of {name} is not the dimension")
        # pynrrd makes the stored type when it reads numbers. Here it reads a single 0.
        single = {**header, "dimension": 1, "sizes": np.ones(1, int), "encoding": "raw"}
        if header["encoding"] in _TEXTS:  # which have no byte order
            single["endian"] = "little"
        return header, nrrd.read_data(single, io.BytesIO(bytes(8))).dtype
    except Exception as error:  # pynrrd passes on what its parsing of numbers and vectors raises
        raise InputError(f"the NRRD header is damaged or cannot be used ({reason_of(error)})") from None


def _axes(header: dict[str, Any], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the image, and the axis whose entries are its frames, if there is one.

    Raises:
        InputError: The parts of a voxel are not frames, or the axes are not those of the header's space.
    """
    kinds = header.get("kinds", ["domain"] * len(sizes))
    axes = tuple(axis for axis, kind in enumerate(kinds) if kind.lower() in _DOMAIN_KINDS)
    others = tuple(axis for axis in range(len(sizes)) if axis not in axes)
    if others and (len(others) > 1 or len(axes) != 3 or kinds[others[0]].lower() not in ("list", "vector")):
        raise InputError(f"the NRRD holds {kinds[others[0]]} voxels; a scan has one number a voxel")
    space = _space(header)
    dimensions = 3 + space.endswith(("time", "st")) if space else header.get("space dimension", 0)
    if dimensions and dimensions != len(axes):
        raise InputError(
            f"the NRRD has {len(axes)} axes of the image and a space of {dimensions} dimensions; give the kinds of its "
            "axes"
        )
    return axes, others


def _space(header: dict[str, Any]) -> str:
    """The name of the header's space in small letters without "-" and blanks, or nothing."""
    return re.sub(r"[-\s]", "", header.get("space", "").lower())


def _geometry(fields: dict[str, str], header: dict[str, Any], axes: tuple[int, ...]) -> Geometry:
    """Affine and spacing, as far as the header gives them.

    Raises:
        InputError: A spacing is 0 or infinite, the affine is singular, or the vectors do not fit the space.
    """
    n = len(axes)
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits") or fields.get("units", ""))[: 3 if n == 4 else None]
    factors = {MM_PER_UNIT.get(unit.strip().lower()) for unit in units if unit.strip()} or {1.0}
    factor = factors.pop()
    lengths = np.array([header["spacings"][axis] for axis in axes]) if "spacings" in header else np.full(n, np.nan)
    vectors: Any = header.get("space directions")
    origin: Any = header.get("space origin", np.zeros(n))
    placed = vectors is not None and vectors.size > 0 and not np.isnan(vectors[list(axes)]).any()
    unknown = not placed and np.isnan(lengths[:3]).any()
    if unknown or factors or factor is None:  # no lengths, mixed units, or units that are not lengths
        return None, None
    if placed:
        vectors = vectors[list(axes)]
        lengths = np.sqrt((vectors**2).sum(axis=1))
    spacing = factor * np.where(np.isnan(lengths), 1.0, lengths)  # a fourth axis needs none
    if not spacing.all() or not np.isfinite(spacing).all():
        raise InputError("the NRRD header gives a spacing of 0 or infinity")
    to_ras = _TO_RAS.get(re.sub("(time|t)$", "", _space(header)))
    if not placed or to_ras is None or n < 3:
        return None, spacing_of_lengths(np.abs(spacing))
    if vectors.shape != (n, n) or origin.shape != (n,):
        raise InputError("the NRRD header is damaged (its vectors do not fit its space)")
    direction = (vectors * (1 / lengths)[:, None]).T
    affine = affine_to_ras(direction, spacing, factor * np.nan_to_num(origin), to_ras)
    return affine, spacing_of_affine(affine)


def _payload(
    sources: list[tuple[Path, int]], fields: dict[str, str], encoding: str, stored: np.dtype[Any], count: int
) -> bytes:
    """The bytes of all numbers, of which each source holds as many.

    Args:
        sources: Each file, and where its data begin.
        fields: The header's fields.
        encoding: How the numbers are written.
        stored: The type of a number.
        count: How many numbers there are.

    Raises:
        InputError: Cut off, damaged, an unknown encoding, or a skip that is not possible.
    """
    if encoding not in _DECODERS:
        raise InputError(f"the NRRD encoding {encoding[:20]} cannot be read; save it as raw or gzip")
    decoder, ratio = _DECODERS[encoding]
    try:
        lines, skip = int(fields.get("lineskip", 0)), int(fields.get("byteskip", 0))
    except ValueError:
        raise InputError("the NRRD header is damaged (its skips are not numbers)") from None
    if skip < -1 or lines < 0 or (skip == -1 and encoding != "raw"):
        raise InputError(
            f"the NRRD header's byte skip of {skip} or line skip of {lines} is not possible with {encoding} data"
        )
    check_size(count if encoding in _TEXTS else count * stored.itemsize, [file for file, _ in sources], ratio, "NRRD")
    share = count * stored.itemsize // len(sources)
    parts = []
    for path, start in sources:
        with path.open("rb") as file:
            file.seek(start)
            for _ in range(lines):
                file.readline()
            if skip == -1:  # the data end with the file
                file.seek(max(path.stat().st_size - share, 0))
            try:
                stream = decoder(file, stored)
                stream.seek(max(skip, 0), io.SEEK_CUR)
                parts.append(stream.read(share))
                if stream is not file:
                    check_end(stream)
            except (EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
                raise InputError(f"the NRRD data are damaged or cut off ({reason_of(error)})") from None
    payload = b"".join(parts)
    if len(payload) < count * stored.itemsize:
        raise InputError("the NRRD data are damaged or cut off")
    return payload


def _from_text(file: io.BufferedIOBase, stored: np.dtype[Any]) -> io.BufferedIOBase:
    """Numbers that are written as text, as the bytes that they stand for."""
    return io.BytesIO(np.array(file.read().replace(b",", b" ").split()).astype(stored).tobytes())


def _from_hex(file: io.BufferedIOBase, stored: np.dtype[Any]) -> io.BufferedIOBase:
    """Bytes that are written as hexadecimal digits."""
    return io.BytesIO(bytes.fromhex(file.read().decode("ascii")))


_TEXTS = ("text", "txt", "ascii")
_Decoder = Callable[[io.BufferedIOBase, np.dtype[Any]], io.BufferedIOBase]
_DECODERS: dict[str, tuple[_Decoder, int]] = {  # each with the largest ratio of plain to encoded bytes
    "raw": (lambda file, stored: file, 1),
    **dict.fromkeys(_TEXTS, (_from_text, 1)),
    "hex": (_from_hex, 1),
    **dict.fromkeys(("gzip", "gz"), (lambda file, stored: gzip.GzipFile(fileobj=file), DEFLATE_RATIO)),
    **dict.fromkeys(("bzip2", "bz2"), (lambda file, stored: bz2.BZ2File(file), _BZIP2_RATIO)),
}
