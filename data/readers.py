"""`open_scan`: any file a user has -> `Scan`. The format is told by the file's content, never by its name."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.scan import Scan

_IMAGE_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"BM", "bmp"),
)
_BMP_HEADERS = tuple(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))  # two letters are not enough
# Only used to pick files out of a folder; an explicitly named file is always tried.
SCAN_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".mat", ".nii", ".nii.gz")
NO_DICOM = "DICOM is not read by this version; convert the series to NIfTI (for instance with dcm2niix)"


def open_scan(path: str | Path, frame: int | None = None, constant: bool = False) -> Scan:
    """Read one scan.

    Args:
        path: A PNG, JPEG, TIFF, BMP or WebP picture, a figshare ``cjdata`` MATLAB file, or a NIfTI file.
        frame: Which frame of a 4-D NIfTI, from 0; other files have one, and it is taken.
        constant: Whether every voxel may have the same value, as in an empty mask.

    Raises:
        InputError: The file is missing, empty, of no known format, damaged, or holds unusable voxels. The message
            names the file.
    """
    path = Path(path)
    try:
        scan = _read(path, frame)
        check_voxels(scan, constant)
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return scan


def sniff(path: Path) -> str:
    """Name of the format that the file's first bytes show.

    Raises:
        InputError: The file is empty or of no format that can be read.
    """
    with path.open("rb") as file:
        head = file.read(560)
    if not head:
        raise InputError("the file is empty")
    for magic, name in _IMAGE_MAGIC:
        if head.startswith(magic) and (name != "bmp" or head[14:18] in _BMP_HEADERS):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"MATLAB 7.3", b"MATLAB 5.0", b"\x89HDF")):
        return "matlab"
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as file:
            head = file.read(560)
    if head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00"):
        return "nifti"
    if head[128:132] == b"DICM":
        raise InputError(NO_DICOM)
    raise InputError("this is no PNG, JPEG, TIFF, BMP, WebP, MATLAB or NIfTI file")


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes show DICOM."""
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read(path: Path, frame: int | None) -> Scan:
    if not path.exists():
        raise InputError("no such file")
    if path.is_dir():
        raise InputError("this is a folder, not a scan")
    if not path.is_file():
        raise InputError("this is a pipe, a socket or a device, not a file")
    kind = sniff(path)
    if kind == "nifti":
        from data.readers_nifti import read_nifti

        return read_nifti(path, frame)
    if kind == "matlab":
        from data.readers_matlab import read_matlab

        return read_matlab(path)
    from data.readers_image import read_image

    return read_image(path, kind)


def check_voxels(scan: Scan, constant: bool = False) -> None:
    """Raise an `InputError` if a scan has no voxels, one that is NaN or infinite, or the same value everywhere."""
    voxels = scan.voxels
    if voxels.size == 0:
        raise InputError("the scan has no voxels")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise InputError(f"{bad} of {voxels.size} voxels are NaN or infinite")
    if not constant and voxels.min() == voxels.max():
        raise InputError("every voxel has the same value, there is nothing to see")
