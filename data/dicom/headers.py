"""DICOM files -> headers. pydicom's warnings stay off the log: they quote values, such as a patient's name."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_BARE_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0016)
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 2**29
_PIXELS = 0x7FE00010
_NOT_OF_HEADERS = ("0000", "0002", "7FE0")  # groups: of commands, of the file, of the pixels
_MOST_PIXELS = 2**36  # bytes; more are an error of the header
_VRS = (b"UI", b"CS", b"UL", b"OB", b"DA", b"TM", b"SH", b"LO")


def is_dicom_head(head: bytes) -> bool:
    """Whether a file's first bytes show DICOM: the preamble of PS3.10, or a bare data set of an old archive."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element, length = int.from_bytes(head[2:4], "little"), int.from_bytes(head[4:8], "little")
    return element in _BARE_ELEMENTS and (head[4:6] in _VRS or length <= 64)


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes show DICOM; false for what cannot be read."""
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            return False
        with path.open("rb") as file:
            return is_dicom_head(file.read(132))
    except OSError:
        return False


def read_header(path: Path, tags: tuple[str, ...] | None = None) -> Dataset:
    """The header of a DICOM file, without its pixels; only the elements `tags` if they are given.

    Raises:
        InputError: The file is not DICOM, or is damaged before the pixels begin.
    """
    return _read(path, stop_before_pixels=True, specific_tags=list(tags) if tags else None)


def read_dataset(path: Path) -> Dataset:
    """A DICOM file with its pixels, not yet decoded.

    Raises:
        InputError: The file is not DICOM, or is damaged.
    """
    return _read(path)


def header_file(content: Mapping[str, Any]) -> tuple[bytes, int]:
    """A DICOM file with the header that DICOM JSON (PS3.18 F) holds and no pixels, and about how many bytes these take.

    Raises:
        Exception: pydicom cannot write it, because it breaks the standard.
    """
    pydicom = _quiet_pydicom()
    kept = {tag: element for tag, element in content.items() if tag[:4] not in _NOT_OF_HEADERS}
    header = pydicom.Dataset.from_json(kept, lambda _: None)  # what is not in the text stays empty
    header.SpecificCharacterSet = "ISO_IR 192"  # JSON is UTF-8
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.add_new(_PIXELS, "OW", b"")  # where those who read a header stop
    sizes = (number(header, name) for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"))
    with BytesIO() as file:
        pydicom.dcmwrite(file, header, enforce_file_format=True)
        n_bits = prod(1 if size is None else size for size in sizes)
        return file.getvalue(), int(min(max(n_bits, 0) // 8, _MOST_PIXELS))


def value(dataset: Dataset, name: str) -> Any:
    """The element's value; none if it is missing, empty, or breaks the standard."""
    try:
        content = dataset.get(name)
    except Exception:  # pydicom converts on access, and meets any kind of broken text
        return None
    if content is None or content == "" or (hasattr(content, "__len__") and len(content) == 0):
        return None
    return content


def text(dataset: Dataset, name: str) -> str:
    """The element as text; empty if there is none. Several values are joined by a backslash, as in the file."""
    content = value(dataset, name)
    kind = type(content).__name__
    if content is None or kind == "Sequence":  # in a damaged file, any element may be one
        return ""
    several = isinstance(content, (list, tuple)) or kind == "MultiValue"  # a PersonName iterates, too
    return "\\".join(str(v) for v in content).strip(" \0") if several else str(content).strip(" \0")


def number(dataset: Dataset, name: str) -> float | None:
    """The element as a finite number (the first of several), or none."""
    values = numbers(dataset, name)
    return values[0] if values else None


def numbers(dataset: Dataset, name: str) -> tuple[float, ...] | None:
    """The element's values as finite numbers; none if one of them is not."""
    content = value(dataset, name)
    if content is None:
        return None
    several = hasattr(content, "__iter__") and not isinstance(content, str)
    try:
        values = tuple(float(v) for v in (content if several else [content]))
    except (TypeError, ValueError):
        return None
    return values if all(abs(v) < 1e12 for v in values) else None  # false for NaN, too


def items(dataset: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; none if the element is missing, or is not a sequence as in a damaged file."""
    content = value(dataset, name)
    return list(content) if type(content).__name__ == "Sequence" else []


def frame_items(dataset: Dataset, frame: int = 0) -> list[Dataset]:
    """All items that describe a frame: its own functional groups, the shared ones, then the file (PS3.3 C.7.6.16).

    Raises:
        InputError: The groups are damaged.
    """
    per_frame, shared = (items(dataset, f"{name}FunctionalGroupsSequence") for name in ("PerFrame", "Shared"))
    groups = [*per_frame[frame : frame + 1], *shared[:1]]
    try:
        macros = [element for group in groups for element in group if element.VR == "SQ" and not element.tag.is_private]
        return [*(element.value[0] for element in macros if element.value), dataset]
    except Exception as error:  # iterating converts every element of a damaged file
        raise InputError(f"the description of frame {frame} is damaged") from error


def _read(path: Path, **options: Any) -> Dataset:
    pydicom = _quiet_pydicom()
    try:
        _check_deflated(path)
        return pydicom.dcmread(path, force=True, **options)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # pydicom passes on what its parser raises on a damaged file
        raise InputError(f"{path}: the DICOM file is damaged or cut off") from error


def _check_deflated(path: Path) -> None:
    """Check how large a deflated file is before pydicom inflates it.

    Raises:
        InputError: It would inflate to more than any study has.
    """
    with path.open("rb") as file:
        head = file.read(1024)
        if _DEFLATED not in head or head[128:132] != b"DICM":
            return
        file.seek(144 + int.from_bytes(head[140:144], "little"))  # the meta group gives its length first
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := file.read(2**16):
            while chunk:
                size += len(inflate.decompress(chunk, 2**24))
                if size > _MAX_INFLATED:
                    raise InputError(
                        f"{path}: the deflated file would inflate to over {_MAX_INFLATED >> 20} MiB; not read"
                    )
                chunk = inflate.unconsumed_tail


@cache
def _quiet_pydicom() -> Any:
    import pydicom
    import pydicom.config

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Only once: readers run in threads, and warnings.catch_warnings would change the filters of all of them.
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
    return pydicom
