"""NIfTI-1 and NIfTI-2 pictures and volumes, compressed or not: one file of any name, or an .hdr/.img pair."""

from __future__ import annotations

import gzip
import io
import logging
import math
import re
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.formats.volumes import (
    DEFLATE_RATIO,
    check_end,
    check_frame,
    check_shape,
    check_size,
    shear_warnings,
    spatial_shape,
)
from tumorlens.data.scan import Scan, checked_affine

_MM = {"meter": 1000.0, "micron": 0.001}  # anything else is mm: files without a unit mean it
_LONGEST_QUATERNION = 1.02  # squared; rounding to two decimals gives less
_PAIR = r"(.*)(\.hdr|\.img|\.HDR|\.IMG)(\.gz|\.GZ)?"
_ANALYZE = "this is Analyze 7.5, which does not say which side is left; convert it to NIfTI where that is known"


def read_nifti(path: Path, frame: int | None = None) -> Scan:
    """Read a 2-D or 3-D NIfTI, or one frame of a 4-D one.

    The standards are https://nifti.nimh.nih.gov/nifti-1 and /nifti-2.

    Args:
        path: A single file, or either file of a pair, which end in ``.hdr`` and ``.img`` or in these with ``.gz``.
        frame: The frame of a 4-D file, from 0. Files without frames ignore it.

    Returns:
        Voxels ``(i, j, k)``: in the stored type if the header scales nothing, else float32 if the stored type has at
        most 16 bits, else float64. The header is that of a single file. Without qform and sform there is no affine, and
        a spacing only if the header names a unit.

    Raises:
        InputError: The file is damaged, half a pair or Analyze 7.5, has more than four axes or a singular affine, or a
            frame is missing or must be chosen.
    """
    header, affine, proxy = _load(path)
    shape = tuple(int(n) for n in proxy.shape)
    check_shape(shape, "NIfTI")
    spatial = spatial_shape(shape, "NIfTI")
    affine = checked_affine(affine)
    check_frame(spatial, frame, "NIfTI")
    count = prod(spatial) if len(spatial) < 4 else prod(spatial[:3]) * ((frame or 0) + 1)
    sources = nifti_files(path)
    ratio = DEFLATE_RATIO if any(_is_gzip(source) for source in sources) else 1
    check_size(count * proxy.dtype.itemsize, sources, ratio, "NIfTI")  # nibabel would set the memory aside first
    try:
        data = _values(proxy, frame if len(spatial) == 4 else None)
        if isinstance(proxy.file_like, gzip.GzipFile):
            with proxy.file_like as packed:
                check_end(packed)
    except Exception as error:  # nibabel passes on what gzip, numpy and the file system raise on short data
        raise InputError(f"the NIfTI data are damaged or cut off ({_reason(error)})") from None
    if data.dtype.kind not in "buif":
        raise InputError(f"the NIfTI holds {data.dtype} values; a scan has one number a voxel")
    voxels = data.reshape(spatial[:3] if len(spatial) > 2 else (*spatial, 1))
    factor = _MM.get(_unit(header), 1.0)
    affine = np.diag([factor, factor, factor, 1.0]) @ affine
    known = bool(header["qform_code"] or header["sform_code"])
    spacing = None
    if known or _unit(header) != "unknown":  # without all three, the header's 1 x 1 x 1 is filler
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return Scan(
        voxels,
        affine=affine if known else None,
        assumed_affine=None if known else affine,  # made up by nibabel
        spacing_mm=spacing,
        path=path,
        format="nifti",
        volume=True,
        source_shape=shape if len(spatial) < 4 else shape[:3],
        header=_single(header),
        frame=frame if len(spatial) == 4 else None,
        warnings=shear_warnings(affine) if known else (),
    )


def _unit(header: Any) -> str:
    """The unit of space; "unknown" if the header gives none, or a number that stands for none."""
    try:
        return header.get_xyzt_units()[0]
    except KeyError:
        return "unknown"


def nifti_files(path: Path) -> list[Path]:
    """The file, and the other one of a pair.

    Raises:
        InputError: The other one is missing.
    """
    name = re.fullmatch(_PAIR, path.name)
    return [path] if name is None or _is_single(_bytes(path, 560)) else [path, _partner(path, name)]


def is_nifti(head: bytes) -> bool:
    """Whether a file begins as a NIfTI does, or as Analyze 7.5, which `read_nifti` refuses with a reason.

    Args:
        head: The first 560 bytes, decompressed.
    """
    magic = head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")
    return magic or is_analyze(head)


def is_analyze(head: bytes) -> bool:
    """Whether a file begins as an Analyze 7.5 header does: as that of a NIfTI pair, without the pair's magic.

    Args:
        head: The first 348 bytes or more, decompressed.
    """
    if len(head) < 348 or head[344:347] in (b"ni1", b"n+1"):
        return False
    order: Literal["little", "big"] = "little" if head[:4] == (348).to_bytes(4, "little") else "big"
    size, n_axes = int.from_bytes(head[:4], order), int.from_bytes(head[40:42], order)
    return size == 348 and (head[38:39] == b"r" or 1 <= n_axes <= 7)


def _load(path: Path) -> tuple[Any, Any, Any]:
    """The header, repaired, its affine in its own unit, and nibabel's proxy of the voxels."""
    import nibabel as nib

    logging.getLogger("nibabel").setLevel(logging.CRITICAL)  # header repairs are not the user's business
    compressed = _is_gzip(path)
    head = _bytes(path, 560)
    if not _is_single(head):
        return _load_pair(path, head)
    kind = nib.Nifti2Header if head[4:7] == b"n+2" else nib.Nifti1Header
    opener: Any = gzip.open if compressed else open
    try:
        with opener(path, "rb") as file:
            header = kind.from_fileobj(file, check=False)
        header["vox_offset"] = max(int(header["vox_offset"]), header.single_vox_offset)  # some writers leave it at 0
        header.check_fix()
        header = _repaired(header)
        # nibabel knows compression by the name only, and does not read to the checksum.
        if compressed:
            source: Any = gzip.open(path)  # noqa: SIM115 (`read_nifti` closes it)
        else:
            source = path if path.name.endswith(".nii") else io.BytesIO(_bytes(path))
        proxy = nib.arrayproxy.ArrayProxy(source, header)
        return header, header.get_best_affine(), proxy
    except Exception as error:  # nibabel's header checks raise many types; all of them mean a damaged file
        raise InputError(f"the NIfTI file is damaged or cut off ({_reason(error)})") from None


def _repaired(header: Any) -> Any:
    """The header without flaws that the reference implementation (nifti1_io.c) reads over, and nibabel does not: a
    quaternion that is longer than 1 by rounding, no volumes along the axes after the third, an sform of zeros beside a
    qform."""
    srows = [header[name] for name in ("srow_x", "srow_y", "srow_z")]
    if header["qform_code"] > 0 and not np.any(srows):
        header["sform_code"] = 0
    dim = header["dim"]
    while dim[0] > 3 and dim[dim[0]] <= 0:
        dim[0] -= 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.hypot(*(float(header[name]) for name in names))
    if 1 < length**2 < _LONGEST_QUATERNION:
        for name in names:
            header[name] = header[name] / length
    return header


def _load_pair(path: Path, head: bytes) -> tuple[Any, Any, Any]:
    """As `_load`; `path` is either file of the pair, and `head` the file's first bytes."""
    import nibabel as nib

    if is_analyze(head):
        raise InputError(_ANALYZE)
    name = re.fullmatch(_PAIR, path.name)
    if name is None or (name[2].lower() == ".hdr") != _is_pair(head):
        if _is_pair(head):
            raise InputError("this is a NIfTI pair's header, but not called .hdr")
        raise InputError("this is not a NIfTI, or its header is damaged")
    partner = _partner(path, name)
    header, voxels = (path, partner) if _is_pair(head) else (partner, path)
    try:
        head = _bytes(header, 560)
        if is_analyze(head):
            raise InputError(_ANALYZE)
        if not _is_pair(head):
            raise InputError(f"{header.name} next to it is not a NIfTI header, or is damaged")
        kind = nib.Nifti2Pair.header_class if head[4:7] == b"ni2" else nib.Nifti1Pair.header_class
        repaired = _repaired(kind.from_fileobj(io.BytesIO(_bytes(header))))
        proxy = nib.arrayproxy.ArrayProxy(io.BytesIO(_bytes(voxels)), repaired)
        return repaired, repaired.get_best_affine(), proxy
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the NIfTI pair is damaged or cut off ({_reason(error)})") from None


def _partner(path: Path, name: re.Match[str]) -> Path:
    """The other file of a pair, compressed as `path` is, or else in the other way.

    Raises:
        InputError: It is missing.
    """
    stem, own, gz = name.groups(default="")
    suffix = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}[own]
    for end in (gz, "" if gz else ".gz"):
        partner = path.with_name(stem + suffix + end)
        if partner.is_file():
            return partner
    raise InputError(f"{stem}{suffix}{gz} is missing, the other file of this .hdr/.img pair")


def _is_single(head: bytes) -> bool:
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def _is_pair(head: bytes) -> bool:
    return head[344:347] == b"ni1" or head[4:7] == b"ni2"


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _bytes(path: Path, count: int = -1) -> bytes:
    """The first bytes of a file or all of them, decompressed."""
    opener: Any = gzip.open if _is_gzip(path) else open
    with opener(path, "rb") as file:
        return file.read(count)


def _values(proxy: Any, frame: int | None) -> NDArray[Any]:
    """The scaled voxels. Small integers become float32, which keeps them apart at half the memory of float64."""
    slope, offset = float(proxy.slope), float(proxy.inter)
    plain = (slope, offset) == (1, 0)
    large = 2**16 * abs(slope) + abs(offset) > np.finfo(np.float32).max
    apart = abs(offset) < 2**20 * abs(slope)  # else neighboring values would be rounded to one
    if plain or proxy.dtype.kind not in "iu" or proxy.dtype.itemsize > 2 or large or not apart:
        return np.asanyarray(proxy if frame is None else proxy[..., frame])
    if frame is not None:
        return np.asanyarray(proxy[..., frame]).astype(np.float32)
    values = proxy.get_unscaled().astype(np.float32)
    values *= np.float32(slope)
    values += np.float32(offset)
    return values


def _single(header: Any) -> Any:
    """A copy of the header, a pair's turned into a single file's."""
    import nibabel as nib

    kind = nib.Nifti2Header if header["sizeof_hdr"] == 540 else nib.Nifti1Header
    return kind.from_header(header, check=False)


def _reason(error: Exception) -> str:
    """nibabel's message in one line, without the address of a stream in memory."""
    return re.sub(r" from (object )?<[^>]*>", "", " ".join(str(error).split()))
