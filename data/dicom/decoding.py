"""Stored pixel values of a DICOM file, from any transfer syntax that a decoder is installed for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tumorlens.data.dicom.headers import number
from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# 12-bit JPEG: gdcm gives wrong values, and pydicom does not use it any more.
_HINTS = {"1.2.840.10008.1.2.4.51": " (pip install pylibjpeg-libjpeg adds a decoder, under the GPL)"}


def stored_frames(ds: Dataset, indices: list[int]) -> list[NDArray[Any]]:
    """Stored pixel values ``(rows, columns)`` of some frames."""
    from pydicom.pixels import iter_pixels, pixel_array
    from pydicom.uid import UID

    if "PixelData" not in ds:
        raise InputError(f"{_name(ds)}: the file has no pixel data")
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    try:
        if not syntax:  # a bare data set of an old archive
            ds.file_meta.TransferSyntaxUID = _bare_syntax(ds)
        if int(number(ds, "NumberOfFrames") or 1) == 1:
            return [pixel_array(ds)]
        return list(iter_pixels(ds, indices=indices))
    except Exception as error:  # every codec raises its own kinds
        uid = UID(str(syntax or ""))
        standard = uid.is_transfer_syntax and not uid.is_private
        if not standard or isinstance(error, (NotImplementedError, RuntimeError)):
            name = uid.name if standard else str(uid)
            hint = _HINTS.get(str(uid), "")
            raise InputError(f"{_name(ds)}: pixels in the transfer syntax {name} cannot be decoded{hint}") from None
        raise InputError(f"{_name(ds)}: the pixel data are damaged or cut off; delete or replace this file") from None


def _bare_syntax(ds: Dataset) -> Any:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _name(ds: Dataset) -> str:
    return Path(str(getattr(ds, "filename", "") or "a file")).name
