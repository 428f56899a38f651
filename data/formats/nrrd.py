"""NRRD volumes by ITK, whatever the file is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.volumes import (
    DEFLATE,
    MM,
    TO_RAS,
    Geometry,
    affine_to_ras,
    beside,
    check_frame,
    check_shape,
    check_size,
    filled_spacing,
    header_bytes,
    spacing_of,
    spatial_shape,
    volume_scan,
)
from tumorlens.data.scan import Scan


def read_nrrd(path: Path, frame: int | None = None) -> Scan:
    """A NRRD (https://teem.sourceforge.net/nrrd/format.html), or one frame of a 4-D one, with detached data from the
    header's own folder.

    World coordinates are as ``space`` says, and RAS in the scan. Spacing is unknown where the header gives none; the
    affine too, and where there is no ``space`` of the patient or no ``space directions``. An origin that is not given
    is 0.

    Args:
        path: ``.nrrd`` or ``.nhdr``; the name does not matter.
        frame: Which frame, from 0, of a 4-D file or of one whose one axis outside space is a list or a vector.

    Returns:
        Voxels ``(i, j, k)``, the file's fastest axis first (2-D files as ``(i, j, 1)``), in the stored type.

    Raises:
        InputError: Damaged, cut off, detached data missing, an impossible shape, colours or vectors, a singular affine,
            a frame that is missing or must be chosen.
    """
    data, shape, geometry = _read(path, header_bytes(path, "NRRD"), frame)
    return volume_scan(path, "nrrd", data, shape, geometry, frame)


def nrrd_files(path: Path) -> list[Path]:
    """The file, and those that its header keeps its voxels in.

    Raises:
        InputError: One of them is missing.
    """
    return [path, *_header(path, header_bytes(path, "NRRD"))[1]]


def _read(path: Path, head: bytes, frame: int | None) -> tuple[NDArray[Any], tuple[int, ...], Geometry]:
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    fields, detached = _header(path, head)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    try:
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except Exception as error:  # SimpleITK's bindings raise RuntimeError, and others on names that are no UTF-8
        raise InputError(f"the NRRD header is damaged or cannot be used{_itk_reason(error)}") from None
    keys = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    shape = tuple(int(n) for n in reader.GetSize())
    listed = "NRRD_kinds[pixel]" in keys
    if listed:
        if keys["NRRD_kinds[pixel]"] not in ("list", "vector") or len(shape) != 3:
            raise InputError(f"the NRRD holds {keys['NRRD_kinds[pixel]']} voxels; a scan has one number a voxel")
        shape = (*shape, int(reader.GetNumberOfComponents()))
    check_shape(shape, "NRRD")
    check_frame(spatial_shape(shape, "NRRD"), frame, "NRRD")
    raw = fields.get("encoding", "").lower() == "raw"
    check_size(int(np.prod(shape)), [path, *detached], 1 if raw else DEFLATE, "NRRD")
    geometry = _geometry(fields, keys, reader)
    try:
        image = reader.Execute()
    except Exception as error:
        raise InputError(f"the NRRD data are damaged or cut off{_itk_reason(error)}") from None
    stored = sitk.GetArrayViewFromImage(image)  # the image's own memory, so what is returned is a copy
    if listed:
        stored = np.moveaxis(stored.reshape((*shape[2::-1], shape[3])), -1, 0)
    if len(spatial_shape(shape, "NRRD")) == 4:
        stored = stored[frame]
    return np.array(stored.T, order="F"), shape, geometry


def _header(path: Path, head: bytes) -> tuple[dict[str, str], list[Path]]:
    """The fields, named in small letters without blanks, and the detached data files."""
    fields: dict[str, str] = {}
    files: list[Path] = []
    lines = iter(re.split(r"\r?\n", head.decode("latin-1")))
    for line in lines:
        if not line.strip():
            break
        found = re.match(r"([^#:]+):(?!=)\s*(.*)", line)
        if not found:
            continue
        name, value = found[1].lower().replace(" ", ""), found[2].strip()
        fields[name] = value
        if name == "datafile":
            listed = value.startswith("LIST")
            names = (other.strip() for other in lines if other.strip()) if listed else _named(value)
            files += [beside(path, other, "NRRD") for other in names]
    return fields, files


def _named(value: str) -> Iterator[str]:
    """The names of the data files: one, or those of a pattern such as ``s%03d.raw 1 24 1``."""
    if not re.search(r"%\d*d", value):
        yield value
        return
    found = re.fullmatch(r"([^%]*%\d{0,3}d[^%]*?)((?:\s+-?\d+){3})(\s+\d+)?", value)
    first, last, step = (int(number) for number in found[2].split()) if found else (0, 0, 0)
    if not found or not step:
        raise InputError(f"the NRRD header's data files {value} are no pattern with a first, a last number and a step")
    for number in range(first, last + (1 if step > 0 else -1), step):
        yield found[1] % number


def _geometry(fields: dict[str, str], keys: dict[str, str], reader: Any) -> Geometry:
    """Affine and spacing as far as the header's text gives them: ITK fills the gaps with 1 mm and its own axes."""
    n = int(reader.GetDimension())
    vectors = [v for v in re.findall(r"\(([^)]*)\)", fields.get("spacedirections", "")) if "nan" not in v.lower()]
    lengths = fields.get("spacings", "").split()
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits") or fields.get("units", ""))
    if n == 4:  # the fourth axis is time
        lengths, units = lengths[:3], units[:3]
    lengths = [v for v in lengths if v.lower() != "nan"]
    factors = {MM.get(unit.strip().lower()) for unit in units if unit.strip()} or {1.0}
    factor = factors.pop()
    unknown = len(vectors) < n and len(lengths) < min(n, 3)
    if unknown or factors or factor is None:  # no lengths, mixed units, or units that are no lengths
        return None, None
    spacing = factor * np.array(reader.GetSpacing())
    if not spacing.all() or not np.isfinite(spacing).all():
        raise InputError("the NRRD header gives a spacing of 0 or infinity")
    to_ras = TO_RAS.get(keys.get("NRRD_space", ""))
    if to_ras is None or n < 3 or len(vectors) < n:
        return None, filled_spacing(np.abs(spacing))
    direction, origin = np.reshape(reader.GetDirection(), (n, n)), factor * np.array(reader.GetOrigin())
    affine = affine_to_ras(direction, spacing, origin, to_ras)
    return affine, spacing_of(affine)


def _itk_reason(error: Exception) -> str:
    """What teem or ITK says, in brackets, without the names of functions and addresses in memory."""
    text = str(error)
    found = re.findall(r"^\[nrrd\] (?:\w+: )?(.+)$", text, re.MULTILINE)[-1:]
    found = found or re.findall(r"ERROR: \w+\(\w+\): (?:\w+: )?(.+)", text)[:1]
    return f" ({' '.join(found[0].split())[:160].rstrip('.')})" if found else ""
