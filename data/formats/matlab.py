"""The ``cjdata`` structures of Jun Cheng's figshare set, MATLAB v5 and v7.3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import canonical_label
from tumorlens.data.scan import Annotation, Scan

_CLASS_NUMBERS = {1.0: "meningioma", 2.0: "glioma", 3.0: "pituitary"}  # names of `data.labels.CLASSES`


def is_matlab(head: bytes) -> bool:
    """Whether a file begins as a MATLAB file of version 5 or 7.3 does, or as HDF5."""
    return head.startswith((b"MATLAB 7.3", b"MATLAB 5.0", b"\x89HDF"))


def read_matlab(path: Path) -> Scan:
    """Read one slice with its mask, label and patient.

    Returns:
        Voxels ``(rows, columns)`` in the stored type, with the annotation.

    Raises:
        InputError: The file is damaged, or has no ``cjdata`` structure that holds an image.
    """
    fields = _read_hdf5(path) if _is_hdf5(path) else _read_v5(path)
    image = fields.get("image")
    if image is None or image.ndim != 2 or image.dtype.kind not in "buif":
        raise InputError("the MATLAB file has no 2-D cjdata.image of real numbers")
    mask = fields.get("tumorMask")
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
            group = file.get("cjdata")
            if not isinstance(group, h5py.Group):
                raise InputError("the MATLAB file has no cjdata structure")
            # MATLAB stores columns first, HDF5 rows first: every matrix arrives transposed.
            return {name: _values(item).T for name, item in group.items() if isinstance(item, h5py.Dataset)}
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"the MATLAB 7.3 file is damaged or cut off ({error})") from None


def _values(item: Any) -> NDArray[Any]:
    values = np.asarray(item)
    if item.attrs.get("MATLAB_empty"):  # the values are the size of an empty array
        return values[:0]
    if item.attrs.get("MATLAB_class") in (b"char", "char"):
        return np.array([_text_of_codes(values)])
    return values


def _read_v5(path: Path) -> dict[str, NDArray[Any]]:
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=False, struct_as_record=True)
    except Exception as error:  # scipy passes on what its parser raises on a damaged file
        raise InputError(f"the MATLAB file is damaged or cut off ({error})") from None
    struct = content.get("cjdata")
    if struct is None or struct.dtype.names is None:
        raise InputError("the MATLAB file has no cjdata structure")
    return {name: np.asarray(struct[name].flat[0]) for name in struct.dtype.names}


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
