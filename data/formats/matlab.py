"""The ``cjdata`` structures of Jun Cheng's figshare set, MATLAB v5 and v7.3."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError, needs, reason_of
from tumorlens.data.scan import Annotation, Scan
from tumorlens.data.spellings import canonical_label

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_GROUPS = (b"HEAP", b"OHDR")  # one of them is in every file: what holds the names of a group, old and new
_NAMES_END = 1 << 20  # before this byte stand the names of what a file holds at its top
_COMPRESSED, _VARIABLE_HEAD = 15, 256  # the type of a compressed variable; its name stands in the first bytes
_FIELDS = ("image", "tumorMask", "label", "PID")
_NUMBERS = "buif"
_CLASS_NUMBERS = {1.0: "meningioma", 2.0: "glioma", 3.0: "pituitary"}  # names of `data.labels.CLASSES`


def is_matlab(head: bytes) -> bool:
    """Whether a file begins as a MATLAB file of version 5 or 7.3 does, or as HDF5, as some copies of the set do.

    It may be cut off within its head.
    """
    v5 = head.startswith(b"MATLAB 5.0 MAT-file") and (len(head) < 128 or head[126:128] in (b"IM", b"MI"))
    v73 = head.startswith(b"MATLAB 7.3 MAT-file") and (len(head) < 520 or head[512:].startswith(_HDF5))
    return v5 or v73 or head.startswith(_HDF5)


def has_cjdata(path: Path) -> bool:
    """Whether a MATLAB or HDF5 file holds a ``cjdata`` structure, or is too damaged to tell.

    The answer is cheap and safe, for files that nobody named: neither HDF5 nor scipy opens the file. HDF5 keeps names
    as they are. In version 5, they stand at the beginning of each variable (MAT-File Format, "Level 5").
    """
    with path.open("rb") as file:
        if _is_hdf5(path):
            top = file.read(_NAMES_END)
            is_cut = path.suffix.lower() == ".mat" and not any(mark in top for mark in _HDF5_GROUPS)
            return b"cjdata" in top or is_cut
        order = "<II" if file.read(128).endswith(b"IM") else ">II"
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(order, tag)
            start = file.tell()
            begin = file.read(min(length, _VARIABLE_HEAD))
            try:
                name = zlib.decompressobj().decompress(begin, _VARIABLE_HEAD) if kind == _COMPRESSED else begin
            except zlib.error:
                return True
            if b"cjdata" in name:
                return True
            file.seek(start + length)
        return bool(tag) or not 128 <= file.tell() <= file.seek(0, 2)  # cut off


def read_matlab(path: Path) -> Scan:
    """Read one slice with its mask, label and patient.

    Returns:
        Voxels ``(rows, columns)`` in the stored type, with the annotation.

    Raises:
        InputError: The file is damaged, or has no ``cjdata`` structure that holds an image; the extra ``matlab`` is not
            installed.
    """
    with needs("a MATLAB file", "matlab"):
        fields = _read_hdf5(path) if _is_hdf5(path) else _read_v5(path)
    image = fields.get("image")
    if image is None or image.ndim != 2 or image.dtype.kind not in _NUMBERS:
        raise InputError("the MATLAB file has no 2-D cjdata.image of real numbers")
    mask = fields.get("tumorMask")
    if mask is not None and mask.dtype.kind not in _NUMBERS:
        raise InputError(f"cjdata.tumorMask is not a full array of real numbers ({mask.dtype})")
    if mask is not None and mask.shape != image.shape:
        raise InputError(f"cjdata.tumorMask has shape {mask.shape}, cjdata.image {image.shape}")
    label = _label(fields.get("label"))
    annotation = Annotation(
        mask=None if mask is None else (mask != 0).astype(np.uint8), label=label, patient=_text(fields.get("PID"))
    )
    return Scan(image, path=path, format="matlab", source_shape=image.shape, annotation=annotation)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    return head.startswith((b"MATLAB 7.3", b"\x89HDF"))


def _read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("cjdata") if _is_inside(file, "cjdata") else None
            if not isinstance(group, h5py.Group):
                raise InputError(f"the file has no cjdata structure{_names(file)}, so another program wrote it")
            there = {name: group[name] for name in _FIELDS if name in group and _is_inside(group, name)}
            # MATLAB stores columns first, HDF5 rows first: every matrix arrives transposed.
            return {name: values.T for name, item in there.items() if (values := _values(item)) is not None}
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py passes on what HDF5 finds in a damaged file, as errors of many kinds
        raise InputError(f"the MATLAB 7.3 file is damaged or cut off ({reason_of(error)})") from None


def _is_inside(group: Any, name: str) -> bool:
    """Whether an item of an HDF5 group is in the file: a link could lead to any other file of the machine."""
    import h5py

    return isinstance(group.get(name, getlink=True), h5py.HardLink)


def _names(file: Any) -> str:
    """The names of what an HDF5 file or a MATLAB file holds, for a message."""
    names = sorted(str(name) for name in file if not str(name).startswith(("#", "__")))
    return f" (it holds {', '.join(names[:5])[:80]}{' ...' if len(names) > 5 else ''})" if names else ""


def _values(item: Any) -> NDArray[Any] | None:
    """Numbers or text; none for values in other files, for references, and for anything else."""
    import h5py

    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        return None
    if h5py.check_string_dtype(item.dtype):
        return np.array(item.asstr()[()], str)
    if item.dtype.kind not in _NUMBERS:
        return None
    values = np.asarray(item)
    if item.attrs.get("MATLAB_empty"):  # the values are the size of an empty array
        return values[:0]
    if item.attrs.get("MATLAB_class") in (b"char", "char"):
        return np.array([_text_of_codes(values)])
    return values


def _read_v5(path: Path) -> dict[str, NDArray[Any]]:
    from scipy.io import loadmat, whosmat

    try:
        content = loadmat(path, variable_names=["cjdata"], squeeze_me=False, struct_as_record=True)
        cjdata = content.get("cjdata")
        if cjdata is None or cjdata.dtype.names is None:
            names = _names(name for name, *_ in whosmat(path))
            raise InputError(f"the MATLAB file has no cjdata structure{names}")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # scipy passes on what its parser raises on a damaged file
        raise InputError(f"the MATLAB file is damaged or cut off ({reason_of(error)})") from None
    if cjdata.size != 1:
        raise InputError(f"cjdata in the MATLAB file is not one structure, but {cjdata.size} of them")
    return {name: np.asarray(cjdata[name].flat[0]) for name in _FIELDS if name in cjdata.dtype.names}


def _label(value: NDArray[Any] | None) -> str | None:
    """The class of the set's number, or of a name as some copies of the set write it; none for anything else."""
    if value is None or value.size == 0:
        return None
    if value.dtype.kind in "biuf" and value.size == 1:
        return _CLASS_NUMBERS.get(float(value.flat[0]))
    try:
        return canonical_label(_text(value) or "")
    except InputError:
        return None


def _text_of_codes(codes: NDArray[Any]) -> str:
    return "".join(chr(int(code)) for code in codes.ravel())


def _text(value: NDArray[Any] | None) -> str | None:
    if value is None or value.size == 0:
        return None
    if value.dtype.kind in "US":
        return str(value.flat[0])
    if value.dtype == np.uint16 and value.size > 1:  # characters of MATLAB 7.3, and of copies of its files
        return _text_of_codes(value.T)
    if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        return None
    # All digits, because they tell patients apart.
    return " ".join(str(int(v)) if v == int(v) else repr(v) for v in value.ravel().tolist())
