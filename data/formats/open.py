"""`open_scan`: any file that a user has -> `data.scan.Scan`. The content tells the format, never the name.

To add a format, write a module that recognizes and reads it, and add a row to `FORMATS`. A module imports the package
that reads its files inside the function that needs it: opening a PNG loads neither nibabel nor pydicom.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tumorlens.data.dicom.decoding import prepare_decoders
from tumorlens.data.dicom.headers import is_dicom, is_dicom_head
from tumorlens.data.dicom.reader import read_series
from tumorlens.data.dicom.study import read_dicom, read_study
from tumorlens.data.errors import DiskFullError, InputError, one_line
from tumorlens.data.formats.archives import is_zip, unpack
from tumorlens.data.formats.matlab import has_cjdata, is_matlab, read_matlab
from tumorlens.data.formats.metaimage import is_metaimage, metaimage_files, read_metaimage
from tumorlens.data.formats.mgh import is_mgh, read_mgh
from tumorlens.data.formats.nifti import is_nifti, nifti_files, read_nifti
from tumorlens.data.formats.nrrd import is_nrrd, nrrd_files, read_nrrd
from tumorlens.data.formats.pictures import UNREAD_PICTURES, is_bmp, is_webp, read_picture
from tumorlens.data.formats.tiff import is_tiff, read_tiff
from tumorlens.data.padding import without_padding
from tumorlens.data.scan import Scan, check_n_voxels
from tumorlens.data.scratch import ScratchFolder
from tumorlens.data.workers.isolation import isolated, prepare

_HEAD_BYTES = 560  # of a file, by which its format is recognized


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        name: The name in `data.scan.Scan.format`.
        title: The name in messages.
        suffixes: The usual ends of its files' names, by which scans are picked out of a folder. A file that the user
            names may be called anything.
        recognize: Whether a file's first 560 bytes show this format.
        read: Reads a file; takes its path, the frame and the series (see `open_scan`).
        files: The files that a scan is read from.
        gzipped: Whether `recognize` gets the bytes unpacked, where the file is compressed as a whole.
        headless: Ends of names of files that have no head, and are of this format if they are of no other.
        isolated: Whether `read` runs in a worker process (see `data.workers.isolation`), because it calls a native
            library that some damaged files crash. Pillow's own decoders of the other pictures are small, and safe in
            the process.
        holds_scan: For formats of anything: whether a file of this format, which nobody named, holds a scan.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    recognize: Callable[[bytes], bool]
    read: Callable[[Path, int | None, str | None], Scan]
    files: Callable[[Path], list[Path]] = lambda path: [path]
    gzipped: bool = False
    headless: tuple[str, ...] = ()
    isolated: bool = False
    holds_scan: Callable[[Path], bool] | None = None


def _picture(
    name: str, title: str, suffixes: tuple[str, ...], recognize: Callable[[bytes], bool], isolated: bool = False
) -> Format:
    return Format(
        name, title, suffixes, recognize, lambda path, frame, series: read_picture(path, name), isolated=isolated
    )


def _refusing(title: str) -> Callable[[Path, int | None, str | None], Scan]:
    def refuse(path: Path, frame: int | None, series: str | None) -> Scan:
        raise InputError(f"tumorlens does not read {title} pictures; save it as PNG")

    return refuse


FORMATS = (
    # Before TIFF: what precedes the data of a DICOM file may make it a TIFF, too.
    Format("dicom", "DICOM", (".dcm",), is_dicom_head, read_dicom),
    _picture("png", "PNG", (".png",), lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    _picture("jpeg", "JPEG", (".jpg", ".jpeg"), lambda head: head.startswith(b"\xff\xd8\xff")),
    Format("tiff", "TIFF", (".tif", ".tiff"), is_tiff, lambda path, frame, series: read_tiff(path), isolated=True),
    _picture("bmp", "BMP", (".bmp",), is_bmp),
    _picture("webp", "WebP", (".webp",), is_webp, isolated=True),
    _picture("gif", "GIF", (".gif",), lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    Format(
        "matlab",
        "MATLAB",
        (".mat",),
        is_matlab,
        lambda path, frame, series: read_matlab(path),
        isolated=True,
        holds_scan=has_cjdata,
    ),
    Format(
        "nifti",
        "NIfTI",
        (".nii", ".nii.gz", ".hdr", ".hdr.gz"),
        is_nifti,
        lambda path, frame, series: read_nifti(path, frame),
        nifti_files,
        gzipped=True,
        headless=(".img", ".img.gz"),  # the voxels of a pair
    ),
    Format(
        "nrrd",
        "NRRD",
        (".nrrd", ".nhdr"),
        is_nrrd,
        lambda path, frame, series: read_nrrd(path, frame),
        nrrd_files,
        gzipped=True,
    ),
    Format(
        "mgh",
        "MGH",
        (".mgh", ".mgz", ".mgh.gz"),
        is_mgh,
        lambda path, frame, series: read_mgh(path, frame),
        gzipped=True,
    ),
    Format(
        "metaimage",
        "MetaImage",
        (".mha", ".mhd"),
        is_metaimage,
        lambda path, frame, series: read_metaimage(path, frame),
        metaimage_files,
        gzipped=True,
    ),
)

_NOT_READ = tuple(
    Format(title.lower(), title, suffixes, recognize, _refusing(title))
    for title, suffixes, recognize in UNREAD_PICTURES
)
_ROWS = (*FORMATS, *_NOT_READ)
SCAN_SUFFIXES = tuple(suffix for row in _ROWS for suffix in row.suffixes)
_HEADLESS = tuple(end for row in _ROWS for end in row.headless)
_SURE_SUFFIXES = tuple(suffix for row in _ROWS if row.holds_scan is None for suffix in row.suffixes)


def open_scan(path: str | Path, frame: int | None = None, constant: bool = False, series: str | None = None) -> Scan:
    """Read one scan.

    Args:
        path: A PNG, JPEG, TIFF, BMP, WebP or GIF picture, a TIFF stack, a figshare ``cjdata`` MATLAB file, a NIfTI
            (also as an .img/.hdr pair), MGH/MGZ, NRRD or MetaImage volume, or DICOM: a file, a DICOMDIR, a folder or a
            zip of files, of which one series is read.
        frame: The frame of a 4-D file, or of a DICOM series with several volumes at one place, from 0. Other files
            ignore it.
        constant: Whether every voxel may have the same value, as in an empty mask. The values are then those of the
            file.
        series: Series Instance UID or Series Number of the DICOM series to read; by default the post-contrast T1 if
            there is one (see `data.dicom.series.choose_series`).

    Returns:
        The scan, in the voxel order and type of the file, with a dark background (see `data.padding`).

    Raises:
        InputError: The file is missing, empty, of no format in `FORMATS`, damaged, or holds unusable voxels. The
            message names the file.

    Example:
        >>> scan = open_scan("patient7/t1_gd.nii.gz")
        >>> scan.voxels.shape, scan.spacing_mm, scan.plane
        ((256, 256, 24), (0.94, 0.94, 6.0), 'axial')
        >>> scan.slice(12).shape  # rows, columns, as a radiologist looks at it
        (256, 256)
    """
    path = Path(path)
    try:
        scan = _read(path, frame, series)
        check_voxels(scan, constant)
    except DiskFullError:
        raise
    except InputError as error:
        message = " ".join(str(error).split())
        raise InputError(message if message.startswith(one_line(f"{path}: ")) else f"{path}: {message}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return scan if constant else without_padding(scan)


def open_series(files: Sequence[Path], frame: int | None = None) -> Scan:
    """Read the scan that the files of one DICOM series make (see `data.dicom.reader.read_series`).

    Raises:
        InputError: As `open_scan`. The message does not name the folder.
    """
    scan = read_series(files, frame)
    check_voxels(scan)
    return without_padding(scan)


def sniff(path: Path) -> str:
    """The name of the format that a file's content shows.

    Raises:
        InputError: The file is empty or of no format in `FORMATS`.
    """
    return _format_of(path).name


def is_scan(path: Path) -> bool:
    """Whether a file that lies in a folder is a scan: it has the name of one or, if not, the content.

    Pictures of kinds that are not read count as scans, so that reading them says so. MATLAB and HDF5 files may hold
    anything, so that the content decides: ``cjdata``. The voxels of a pair, which have no head, come with their header.
    """
    name = path.name.lower()
    if name.endswith(_SURE_SUFFIXES):
        return True  # reading reports what is wrong
    if name.endswith(_HEADLESS):
        return False
    try:
        row = _format_of(path)
        return row.holds_scan is None or row.holds_scan(path)
    except (InputError, OSError, EOFError, zlib.error):
        return name.endswith(SCAN_SUFFIXES) and path.stat().st_size == 0


def read_here(name: str, path: Path, frame: int | None, series: str | None) -> Scan:
    """Read a file of the named format in this process, which is a worker for formats that are `isolated`."""
    return next(row for row in FORMATS if row.name == name).read(path, frame, series)


def prepare_to_open(path: Path) -> None:
    """Start the worker process that reads a file, if one does, so that it is ready when the file's turn comes.

    Returns at once, and never raises: reading reports what is wrong with the file.
    """
    with suppress(InputError, OSError, EOFError, zlib.error):
        if not path.is_file():  # opening a named pipe would wait for ever
            return
        row = _format_of(path)
        if row.isolated:
            prepare(read_here, row.name, path.absolute(), None, None)
        elif row.name == "dicom":
            with path.open("rb") as file:
                prepare_decoders(file.read(_HEAD_BYTES))


def source_files(path: Path) -> list[Path]:
    """The files that a scan is read from: the named file, and the files in which its header keeps the voxels; of a
    folder its DICOM files."""
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if is_dicom(file)]
    try:
        return list(dict.fromkeys(_format_of(path).files(path)))
    except (InputError, OSError, EOFError, zlib.error):  # reading reports the problem
        return [path]


def check_voxels(scan: Scan, constant: bool = False) -> None:
    """Check that there is something to see in a scan.

    Raises:
        InputError: There are no voxels, more than `data.scan.voxels_limited` allows, one is NaN or infinite, or all
            have the same value and `constant` is not set.
    """
    voxels = scan.voxels
    check_n_voxels(voxels.size)
    if voxels.size == 0:
        raise InputError("the scan has no voxels")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise InputError(f"{bad} of {voxels.size} voxels are NaN or infinite")
    if not constant and voxels.min() == voxels.max():
        raise InputError("every voxel has the same value, so there is nothing to see")


def _format_of(path: Path) -> Format:
    """The row of a file's format.

    Raises:
        InputError: The file is empty or of no format in `FORMATS`.
    """
    with path.open("rb") as file:
        head = unpacked = file.read(_HEAD_BYTES)
    if not head:
        raise InputError("the file is empty")
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as packed:
            unpacked = packed.read(_HEAD_BYTES)
    for row in _ROWS:
        if row.recognize(unpacked if row.gzipped else head):
            return row
    for row in FORMATS:
        if row.headless and path.name.lower().endswith(row.headless):
            return row
    titles = [row.title for row in FORMATS]
    raise InputError(f"this is not a {', '.join(titles[:-1])} or {titles[-1]} file")


def _read(path: Path, frame: int | None, series: str | None) -> Scan:
    if not path.exists():
        raise InputError("no such file")
    if path.is_dir():
        return read_study([p for p in sorted(path.rglob("*")) if is_dicom(p)], frame, series)
    if not path.is_file():
        raise InputError("this is a pipe, a socket or a device, not a file")
    if not is_zip(path):
        row = _format_of(path)
        if row.isolated:  # the worker process may be in another folder
            scan = isolated(read_here, row.name, path.absolute(), frame, series, size=path.stat().st_size)
            return replace(scan, path=path)
        return row.read(path, frame, series)
    with ScratchFolder() as scratch:
        folder = Path(scratch) / "zip"
        skipped = unpack(path, folder)
        try:
            scan = _read(folder, frame, series)
            lost = tuple(one_line(f"{file.relative_to(folder)}: {reason}") for file, reason in skipped.items())
            return replace(scan, warnings=(*scan.warnings, *lost))
        except InputError as error:  # the user knows the archive, not the folder where it was unpacked
            raise InputError(str(error).replace(str(folder), str(path))) from None
