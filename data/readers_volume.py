"""Volumes that are no NIfTI and no DICOM: FreeSurfer MGH/MGZ, NRRD and MetaImage, whatever the file is called.

NRRD is read by ITK. MetaImage is read here: ITK 5.4 answers damaged compressed data with whatever was in memory, and
writes its complaints to the screen.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.readers_nifti import check_frame, check_shape, spatial_shape
from data.scan import Scan, checked_affine

_NAMES = {"mgh": "MGH", "nrrd": "NRRD", "metaimage": "MetaImage"}
_MGH_TYPES = (0, 1, 3, 4, 10)  # uint8, int32, float32, int16, uint16
_MET_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}
# What turns ITK's coordinates to RAS, by the space that ITK names. It turns the three 3-D spaces of the body to LPS
# and calls them so; those with time it leaves as they are. Any other space is not the patient's.
_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "left-posterior-superior-time": (-1, -1, 1),
    "left-anterior-superior-time": (-1, 1, 1),
    "right-anterior-superior-time": (1, 1, 1),
}
_HEADER_BYTES = 1 << 20
_DEFLATE = 1100  # zlib makes nothing smaller than by a factor of 1032

_Geometry = tuple[NDArray[np.float64] | None, tuple[float, ...] | None]


def sniff_volume(head: bytes) -> str | None:
    """``"mgh"``, ``"nrrd"`` or ``"metaimage"``, or none of them.

    Args:
        head: The first 560 bytes, decompressed where the whole file is gzip.
    """
    if re.match(rb"NRRD000\d", head):
        return "nrrd"
    if len(head) >= 30:
        version, *dims, kind, _, good_ras = struct.unpack(">7ih", head[:30])
        if version == 1 and kind in _MGH_TYPES and good_ras in (0, 1) and any(dims):
            return "mgh"
    keys = dict(re.findall(rb"^[ \t]*(\w+)[ \t]*[=:][ \t]*(\w+)", head, re.MULTILINE))
    if keys.get(b"NDims", b"").isdigit() and keys.get(b"ObjectType", b"Image") == b"Image":
        return "metaimage"
    return None


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
            if version != 1 or kind not in _MGH_TYPES or (good_ras and not (np.abs(place) < 1e9).all()):
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
    return _scan(path, "mgh", data, shape, (affine, _spacing(affine)), frame)


def read_itk(path: Path, kind: str, frame: int | None = None) -> Scan:
    """A NRRD or MetaImage, or one frame of a 4-D one, with detached data from the header's own folder.

    NRRD: https://teem.sourceforge.net/nrrd/format.html. MetaImage: https://itk.org/Wiki/MetaIO/Documentation. World
    coordinates are LPS in MetaImage and as ``space`` says in NRRD, and RAS in the scan. Spacing is unknown where the
    header gives none; the affine too, and where a NRRD gives no ``space`` of the patient or no ``space directions``,
    or a MetaImage no ``TransformMatrix``. An origin that is not given is 0.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``; the name does not matter.
        kind: ``"nrrd"`` or ``"metaimage"``.
        frame: Which frame, from 0, of a 4-D file or of a NRRD whose one axis outside space is a list or a vector.

    Returns:
        Voxels ``(i, j, k)``, the file's fastest axis first (2-D files as ``(i, j, 1)``), in the stored type.

    Raises:
        InputError: Damaged, cut off, detached data missing, an impossible shape, colours or vectors, a singular affine,
            a frame that is missing or must be chosen.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"the {_NAMES[kind]} file is compressed as a whole; unpack it with gunzip")
    data, shape, geometry = (_read_nrrd if kind == "nrrd" else _read_metaimage)(path, head, frame)
    return _scan(path, kind, data, shape, geometry, frame)


def _scan(
    path: Path, kind: str, data: NDArray[Any], shape: tuple[int, ...], geometry: _Geometry, frame: int | None
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
    )


def _read_nrrd(path: Path, head: bytes, frame: int | None) -> tuple[NDArray[Any], tuple[int, ...], _Geometry]:
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    fields, detached = _nrrd_header(path, head)
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
    sources = [path, *detached]
    if "%" not in fields.get("datafile", ""):
        raw = fields.get("encoding", "").lower() == "raw"
        _check_size(int(np.prod(shape)), sources, 1 if raw else _DEFLATE, "NRRD")
    geometry = _nrrd_geometry(fields, keys, reader)
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


def _nrrd_header(path: Path, head: bytes) -> tuple[dict[str, str], list[Path]]:
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
        if name == "datafile":  # a list of names, a pattern for several (which ITK looks for), or one name
            names = [other.strip() for other in lines if other.strip()] if value.startswith("LIST") else [value]
            files += [_beside(path, other, "NRRD", exists="%" not in value) for other in names]
    return fields, files


def _nrrd_geometry(fields: dict[str, str], keys: dict[str, str], reader: Any) -> _Geometry:
    """Affine and spacing as far as the header's text gives them: ITK fills the gaps with 1 mm and its own axes."""
    n = int(reader.GetDimension())
    vectors = [v for v in re.findall(r"\(([^)]*)\)", fields.get("spacedirections", "")) if "nan" not in v.lower()]
    lengths = fields.get("spacings", "").split()
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits") or fields.get("units", ""))
    if n == 4:  # the fourth axis is time
        lengths, units = lengths[:3], units[:3]
    lengths = [v for v in lengths if v.lower() != "nan"]
    factors = {_MM.get(unit.strip().lower()) for unit in units if unit.strip()} or {1.0}
    factor = factors.pop()
    unknown = len(vectors) < n and len(lengths) < min(n, 3)
    if unknown or factors or factor is None:  # no lengths, mixed units, or units that are no lengths
        return None, None
    spacing = factor * np.array(reader.GetSpacing())
    if not spacing.all() or not np.isfinite(spacing).all():
        raise InputError("the NRRD header gives a spacing of 0 or infinity")
    to_ras = _TO_RAS.get(keys.get("NRRD_space", ""))
    if to_ras is None or n < 3 or len(vectors) < n:
        return None, _filled(np.abs(spacing))
    direction, origin = np.reshape(reader.GetDirection(), (n, n)), factor * np.array(reader.GetOrigin())
    affine = _affine(direction, spacing, origin, to_ras)
    return affine, _spacing(affine)


def _read_metaimage(path: Path, head: bytes, frame: int | None) -> tuple[NDArray[Any], tuple[int, ...], _Geometry]:
    fields, start = _metaimage_header(head)
    try:
        shape = tuple(int(n) for n in fields["DimSize"].split())
        stored = np.dtype(_MET_TYPES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")])
        channels, skip = int(fields.get("ElementNumberOfChannels", 1)), int(fields.get("HeaderSize", 0))
        where, packed = fields["ElementDataFile"], int(fields.get("CompressedDataSize", 0))
        whole = len(shape) == int(fields["NDims"])
        geometry = _metaimage_geometry(fields, len(shape))
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
        source, start = _beside(path, where, "MetaImage"), max(skip, 0)
    compressed = _true(fields.get("CompressedData", "False"))
    needed = int(np.prod(shape)) * stored.itemsize
    _check_size(needed, [source], _DEFLATE if compressed else 1, "MetaImage")
    if skip == -1 and source != path and not compressed:  # whatever precedes the voxels
        start = source.stat().st_size - needed
    with source.open("rb") as file:
        file.seek(start)
        payload = file.read(packed if packed > 0 else -1) if compressed else file.read(needed)
    if compressed:
        payload = _inflated(payload, needed)
    if len(payload) < needed:
        raise InputError("the MetaImage data are damaged or cut off")
    big = _true(fields.get("BinaryDataByteOrderMSB") or fields.get("ElementByteOrderMSB") or "False")
    voxels = np.frombuffer(payload, stored.newbyteorder(">" if big else "<")).reshape(shape, order="F")
    if len(spatial_shape(shape, "MetaImage")) == 4:
        voxels = voxels[..., frame]
    return np.array(voxels, order="F"), shape, geometry


def _metaimage_header(head: bytes) -> tuple[dict[str, str], int]:
    """The fields, and where the data begin if they are in the same file: after the field that says so."""
    fields: dict[str, str] = {}
    for line in re.finditer(rb"([^\n]*)\n?", head):
        found = re.match(r"\s*(\w+)\s*[=:]\s*(.*?)\s*$", line[1].decode("latin-1"))
        if found:
            fields[found[1]] = found[2]
            if found[1] == "ElementDataFile":
                return fields, line.end()
    return fields, len(head)


def _metaimage_geometry(fields: dict[str, str], n: int) -> _Geometry:
    """Affine and spacing; the n x n direction matrix has one row for each array axis.

    Raises:
        ValueError: Numbers that are none, or too few of them.
    """

    def numbers(*names: str) -> NDArray[np.float64] | None:
        return next((np.array(fields[name].split(), np.float64) for name in names if name in fields), None)

    spacing, direction = numbers("ElementSpacing", "ElementSize"), numbers("TransformMatrix", "Orientation", "Rotation")
    if spacing is None:
        return None, None
    origin = numbers("Offset", "Position", "Origin")
    factor = _MM.get(fields.get("DistanceUnits", "").lower(), 1.0)
    if len(spacing) != n or not spacing.all() or not np.isfinite(spacing).all():
        raise ValueError("spacing")
    if direction is None or n < 3:
        return None, _filled(factor * np.abs(spacing))
    origin = np.zeros(n) if origin is None else origin
    affine = _affine(direction.reshape(n, n).T, factor * spacing, factor * origin, _TO_RAS["left-posterior-superior"])
    return affine, _spacing(affine)


def _affine(
    direction: NDArray[np.float64], spacing: NDArray[np.float64], origin: NDArray[np.float64], to_ras: tuple[int, ...]
) -> NDArray[np.float64]:
    """``(4, 4)`` to RAS mm from ITK's direction (its columns are the array axes), spacing and origin in mm."""
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    return checked_affine(np.diag([*to_ras, 1]) @ affine)


def _spacing(affine: NDArray[np.float64] | None) -> tuple[float, ...] | None:
    return None if affine is None else tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))


def _filled(spacing: NDArray[np.float64]) -> tuple[float, ...]:
    """Three lengths; a 2-D file's thickness is filler, as a 2-D NIfTI's is, and the shape of the source says so."""
    return tuple(float(s) for s in (*spacing, 1.0)[:3])


def _beside(path: Path, name: str, kind: str, exists: bool = True) -> Path:
    """The detached data file that a header names.

    Only in the header's own folder: elsewhere, a header that came from a stranger could show any file of this machine.
    """
    folder = Path(os.path.normpath(path.parent.absolute()))  # not resolve: links in the folder are its owner's
    target = Path(os.path.normpath(folder / name))
    if not target.is_relative_to(folder):
        raise InputError(f"the {kind} header keeps its data outside its own folder, in {name}; put both in one folder")
    if exists and not target.is_file():
        raise InputError(f"the {kind} header's data file {name} is missing")
    return target


def _check_size(needed: int, sources: list[Path], ratio: int, kind: str) -> None:
    """Refuse a header that promises more than its files can hold before memory is set aside for it."""
    if needed > ratio * sum(source.stat().st_size for source in sources):
        raise InputError(f"the {kind} data are damaged or cut off")


def _inflated(payload: bytes, needed: int) -> bytes:
    """The decompressed bytes, or none of them if there are not exactly `needed` or their checksum does not fit."""
    unpack = zlib.decompressobj(wbits=47)  # zlib or gzip
    try:
        voxels = unpack.decompress(payload, needed + 1)
    except zlib.error:
        return b""
    return voxels if unpack.eof and len(voxels) == needed else b""


def _true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")


def _itk_reason(error: Exception) -> str:
    """What teem or ITK says, in brackets, without the names of functions and addresses in memory."""
    text = str(error)
    found = re.findall(r"^\[nrrd\] (?:\w+: )?(.+)$", text, re.MULTILINE)[-1:]
    found = found or re.findall(r"ERROR: \w+\(\w+\): (?:\w+: )?(.+)", text)[:1]
    return f" ({' '.join(found[0].split())[:160].rstrip('.')})" if found else ""
