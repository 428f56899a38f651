"""`open_scan`: any file a user has -> `Scan`. The format is told by the file's content, never by its name."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tumorlens.data.dicom.headers import is_dicom_head
from tumorlens.data.errors import InputError
from tumorlens.data.formats.archives import is_zip, unpack
from tumorlens.data.scan import Scan

_IMAGE_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"BM", "bmp"),
)

_BMP_HEADERS = tuple(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))  # two letters are not enough
_PAIR_SUFFIXES = (".img", ".img.gz")  # the voxels of a NIfTI pair have no head of their own

# Only used to pick files out of a folder; an explicitly named file is always tried.
SCAN_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".mat", ".nii", ".nii.gz", ".hdr", ".hdr.gz"),
    *(".mgh", ".mgz", ".mgh.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"),
)

_HEAD_BYTES = 560


def open_scan(path: str | Path, frame: int | None = None, constant: bool = False, series: str | None = None) -> Scan:
    """Read one scan.

    Args:
        path: A PNG, JPEG, TIFF, BMP or WebP picture, a figshare ``cjdata`` MATLAB file, a NIfTI (also as an .img/.hdr
            pair), MGH/MGZ, NRRD or MetaImage volume, or DICOM: a file, a DICOMDIR, a folder or a zip of files, of which
            one series is read.
        frame: Which frame of a 4-D file, or of a DICOM series with several volumes at one place, from 0; other files
            have one, and it is taken.
        constant: Whether every voxel may have the same value, as in an empty mask.
        series: Series Instance UID or Series Number of the DICOM series to read; by default the post-contrast T1 if
            there is one (see `data.dicom.series.choose_series`).

    Raises:
        InputError: The file is missing, empty, of no known format, damaged, or holds unusable voxels. The message
            names the file.
    """
    path = Path(path)
    try:
        scan = _read(path, frame, series)
        check_voxels(scan, constant)
    except InputError as error:
        message = " ".join(str(error).split())
        raise InputError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return scan


def open_series(files: Sequence[Path], frame: int | None = None) -> Scan:
    """Read the scan that the files of one DICOM series make (see `data.dicom.reader.read_series`).

    Raises:
        InputError: As `open_scan`; the message does not name the folder.
    """
    from tumorlens.data.dicom.reader import read_series

    scan = read_series(files, frame)
    check_voxels(scan)
    return scan


def sniff(path: Path) -> str:
    """Name of the format that the file's first bytes show.

    Raises:
        InputError: The file is empty or of no format that can be read.
    """
    from tumorlens.data.formats.nifti import is_analyze
    from tumorlens.data.formats.volumes import sniff_volume

    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise InputError("the file is empty")
    if head[128:132] == b"DICM":  # before the others: a DICOM file's preamble may make it a TIFF, too
        return "dicom"
    for magic, name in _IMAGE_MAGIC:
        if head.startswith(magic) and (name != "bmp" or head[14:18] in _BMP_HEADERS):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"MATLAB 7.3", b"MATLAB 5.0", b"\x89HDF")):
        return "matlab"
    if is_dicom_head(head):
        return "dicom"
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as file:
            head = file.read(_HEAD_BYTES)
    if head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00") or is_analyze(head):
        return "nifti"
    volume = sniff_volume(head)
    if volume:
        return volume
    if path.name.lower().endswith(_PAIR_SUFFIXES):
        return "nifti"
    raise InputError("this is no PNG, JPEG, TIFF, BMP, WebP, MATLAB, NIfTI, MGH, NRRD, MetaImage or DICOM file")


def source_files(path: Path) -> list[Path]:
    """The files that a scan is read from: the one that is named, and those its header keeps its voxels in."""
    from tumorlens.data.formats.metaimage import metaimage_files
    from tumorlens.data.formats.nifti import nifti_files
    from tumorlens.data.formats.nrrd import nrrd_files

    try:
        kind = sniff(path)
        files = {"nifti": nifti_files, "nrrd": nrrd_files, "metaimage": metaimage_files}.get(kind, lambda p: [p])(path)
    except (InputError, OSError, EOFError, zlib.error):  # reading will say what is wrong
        return [path]
    return list(dict.fromkeys(files))


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes show DICOM."""
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            return False
        with path.open("rb") as file:
            return is_dicom_head(file.read(132))
    except OSError:
        return False


def _read(path: Path, frame: int | None, series: str | None) -> Scan:
    if not path.exists():
        raise InputError("no such file")
    if path.is_dir():
        return _read_study([p for p in sorted(path.rglob("*")) if is_dicom(p)], frame, series)
    if not path.is_file():
        raise InputError("this is a pipe, a socket or a device, not a file")
    if is_zip(path):
        with tempfile.TemporaryDirectory(prefix="tumorlens-") as scratch:
            unpack(path, Path(scratch) / "zip")
            try:
                return _read(Path(scratch) / "zip", frame, series)
            except InputError as error:  # the user knows the archive, not where it was unpacked
                raise InputError(str(error).replace(str(Path(scratch) / "zip"), str(path))) from None
    kind = sniff(path)
    if kind == "dicom":
        from tumorlens.data.dicom.dicomdir import is_dicomdir, read_dicomdir

        if not is_dicomdir(path):
            return _read_study([path], frame, series)
        files, missing = read_dicomdir(path)
        scan = _read_study(files, frame, series)
        lost = (
            (f"{missing} of the {missing + len(files)} files that the DICOMDIR lists are missing",) if missing else ()
        )
        return replace(scan, warnings=(*scan.warnings, *lost))
    if kind == "nifti":
        from tumorlens.data.formats.nifti import read_nifti

        return read_nifti(path, frame)
    if kind == "matlab":
        from tumorlens.data.formats.matlab import read_matlab

        return read_matlab(path)
    if kind == "mgh":
        from tumorlens.data.formats.mgh import read_mgh

        return read_mgh(path, frame)
    if kind == "nrrd":
        from tumorlens.data.formats.nrrd import read_nrrd

        return read_nrrd(path, frame)
    if kind == "metaimage":
        from tumorlens.data.formats.metaimage import read_metaimage

        return read_metaimage(path, frame)
    from tumorlens.data.formats.pictures import read_image

    return read_image(path, kind)


def _read_study(files: list[Path], frame: int | None, series: str | None) -> Scan:
    """The one series to read of DICOM files."""
    from tumorlens.data.dicom.reader import read_series
    from tumorlens.data.dicom.series import choose_series, find_series

    if not files:
        raise InputError("this is a folder without DICOM files; give a file of another format by its own name")
    found = find_series(files)
    if not found.series:
        reasons = [reason for _, reason in (*found.problems, *found.others)]
        raise InputError(reasons[0])
    if series is not None:
        named = [s for s in found.series if s.is_called(series)]
        if len(named) != 1:
            there = ", ".join(f"{s.tag} ({s.uid})" for s in found.series[:8])
            raise InputError(f"{len(named)} series are called {series!r}; there are {there}")
        return _with_problems(read_series(named[0].files, frame), found.problems)
    if len({s.study for s in found.series}) > 1:
        raise InputError("the files belong to several studies; name the series, or read one study at a time")
    chosen, why = choose_series(found.series)
    if chosen is None:
        raise InputError(f"no series can be run: {why}")
    scan = _with_problems(read_series(chosen.files, frame), found.problems)
    return replace(scan, notes=(*((why,) if why else ()), *scan.notes))


def _with_problems(scan: Scan, problems: list[tuple[Path, str]]) -> Scan:
    """The scan with a warning if some of the files could not be read."""
    if not problems:
        return scan
    lost = f"{len(problems)} DICOM file{'s' if len(problems) > 1 else ''} could not be read ({problems[0][0].name})"
    return replace(scan, warnings=(*scan.warnings, lost))


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
