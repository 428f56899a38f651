"""Small whole files of every kind, from which the cases are made. Nothing of them is stored: this module makes them.

A seed is the files of a folder, name -> content; the first is the one that is opened.
"""

from __future__ import annotations

import gzip
import io
import itertools
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

Files = dict[str, bytes]

GRAY = ((np.add.outer(np.arange(32) * 5, np.arange(40) * 3) % 251) + np.eye(32, 40) * 4).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)
VOLUME = (np.random.default_rng(0).integers(0, 40, (16, 18, 5)) + 20 * np.arange(5)).astype(np.int16)
AFFINE = np.array([[1.1, 0.1, 0, -12], [-0.1, 0.9, 0, -20.5], [0, 0, 3.0, 7.25], [0, 0, 0, 1]])


def written(write: Callable[[Path], Any], main: str = "") -> Files:
    """The files that a function writes into a folder, the named one first."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: files[name] for name in sorted(files, key=lambda name: name != main)}


def pillow(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **settings: Any) -> Files:
    from PIL import Image

    picture = Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, kind, **settings)
    return {f"a.{kind.lower()}": stream.getvalue()}


def _opencv(pixels: np.ndarray, suffix: str) -> Files:
    import cv2

    return {f"a{suffix}": cv2.imencode(suffix, pixels)[1].tobytes()}


def _turned() -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def png() -> list[Files]:
    deep = GRAY.astype(np.uint16) * 250
    alpha = np.dstack([COLOR, GRAY])
    return [
        *(pillow(GRAY), pillow(COLOR), pillow(deep), pillow(alpha), pillow(GRAY, "1"), pillow(alpha, "LA")),
        *(pillow(COLOR, "P", transparency=3), pillow(COLOR, exif=_turned()), _opencv(np.dstack([deep] * 4), ".png")),
    ]  # fmt: skip


def jpeg() -> list[Files]:
    return [
        *(pillow(GRAY, kind="JPEG"), pillow(COLOR, kind="JPEG", exif=_turned()), pillow(COLOR, "CMYK", "JPEG")),
        *(
            pillow(COLOR, kind="JPEG", progressive=True, subsampling=2),
            pillow(GRAY, kind="JPEG", restart_marker_rows=1),
        ),
    ]


def tiff() -> list[Files]:
    from PIL import Image

    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd", "webp", "lzma")
    pages = [Image.fromarray(GRAY)]
    whole = [
        *(pillow(GRAY, kind="TIFF"), pillow(COLOR, kind="TIFF"), pillow(GRAY.astype(np.uint16) * 250, kind="TIFF")),
        pillow(GRAY.astype(np.float32) / 7, kind="TIFF"),
        pillow(GRAY.astype(np.int32) * 9999, kind="TIFF", compression="tiff_lzw"),
        *(pillow(COLOR, "P", "TIFF"), pillow(GRAY, kind="TIFF", big_tiff=True)),
        pillow(GRAY, kind="TIFF", save_all=True, append_images=pages),
        *(_opencv(COLOR.astype(np.uint16) * 250, ".tiff"), pillow(GRAY, kind="TIFF", tiffinfo={274: 6, 278: 8})),
    ]  # fmt: skip
    return [*whole, *filter(None, (_packed_tiff(COLOR if name in ("jpeg", "webp") else GRAY, name) for name in packed))]


def _packed_tiff(pixels: np.ndarray, compression: str) -> Files | None:
    try:
        return pillow(pixels, "1" if compression == "group4" else None, "TIFF", compression=compression)
    except (OSError, KeyError):  # a libtiff without this compression
        return None


def bmp() -> list[Files]:
    return [
        pillow(GRAY, kind="BMP"),
        pillow(COLOR, kind="BMP"),
        pillow(GRAY, "1", "BMP"),
        pillow(COLOR, "P", "BMP"),
    ]


def webp() -> list[Files]:
    alpha = np.dstack([COLOR, GRAY])
    return [
        pillow(COLOR, kind="WEBP"),
        pillow(GRAY, kind="WEBP", lossless=True),
        pillow(alpha, kind="WEBP", exif=_turned()),
    ]


def gif() -> list[Files]:
    from PIL import Image

    return [pillow(GRAY, kind="GIF"), pillow(COLOR, "P", "GIF", save_all=True, append_images=[Image.fromarray(GRAY)])]


def _cjdata() -> dict[str, Any]:
    mask = (GRAY > 100).astype(np.uint8)
    return {
        "image": GRAY.astype(np.int16) * 7,
        "label": 2,
        "PID": "112233",
        "tumorMask": mask,
        "tumorBorder": np.ones((1, 4)),
    }


def matlab() -> list[Files]:
    from scipy.io import savemat

    made = []
    for packed in (False, True):
        stream = io.BytesIO()
        savemat(stream, {"cjdata": _cjdata()}, do_compression=packed)
        made.append({"a.mat": stream.getvalue()})
    return made


def matlab73() -> list[Files]:
    import h5py

    made = []
    for settings in ({}, {"compression": "gzip", "shuffle": True, "chunks": (16, 16), "fletcher32": True}):
        stream = io.BytesIO()
        with h5py.File(stream, "w", userblock_size=512, libver="latest" if settings else "earliest") as file:
            group = file.create_group("cjdata")
            group.create_dataset("image", data=_cjdata()["image"].T, **settings)
            group.create_dataset("tumorMask", data=_cjdata()["tumorMask"].T, **settings)
            group["label"], group["PID"] = np.array([[2.0]]), np.array([[ord(c)] for c in "112233"], np.uint16)
        made.append({"a.mat": b"MATLAB 7.3 MAT-file".ljust(128) + stream.getvalue()[128:]})
    return made


def _nifti_images() -> Iterator[Any]:
    import nibabel as nib

    yield nib.Nifti1Image(VOLUME, AFFINE)
    yield nib.Nifti2Image(VOLUME.astype(np.float32) / 7, AFFINE)
    yield nib.Nifti1Image(np.stack([VOLUME, VOLUME // 2], axis=-1), AFFINE)
    yield nib.Nifti1Image(VOLUME.astype(">i2"), None, nib.Nifti1Header(endianness=">"))
    scaled = nib.Nifti1Image(VOLUME.astype(np.uint8), AFFINE)
    scaled.header.set_slope_inter(2, -5)
    scaled.set_qform(AFFINE, 2)
    yield scaled
    with_extension = nib.Nifti1Image(VOLUME[..., 0], AFFINE)
    with_extension.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
    yield with_extension


def nifti() -> list[Files]:
    import nibabel as nib

    return [written(lambda folder, image=image: nib.save(image, folder / "a.nii")) for image in _nifti_images()]


def nifti_gz() -> list[Files]:
    return [{"a.nii.gz": gzip.compress(files["a.nii"], 1, mtime=0)} for files in nifti()]


def nifti_pair() -> list[Files]:
    import nibabel as nib

    def pair(kind: Any) -> Files:
        return written(lambda folder: nib.save(kind(VOLUME, AFFINE), folder / "a.img"), "a.hdr")

    made = [pair(kind) for kind in (nib.Nifti1Pair, nib.Nifti2Pair)]
    return [*made, {f"{name}.gz": gzip.compress(data, 1, mtime=0) for name, data in made[0].items()}]


def nrrd() -> list[Files]:
    import nrrd as pynrrd

    def file(name: str, voxels: np.ndarray = VOLUME, **fields: Any) -> Files:
        header = {
            "space": "left-posterior-superior",
            "space directions": AFFINE[:3, :3],
            "space origin": AFFINE[:3, 3],
            **fields,
        }
        return written(lambda folder: pynrrd.write(str(folder / name), voxels, header), name)

    axis = {
        "space directions": np.vstack([[np.nan] * 3, AFFINE[:3, :3]]),
        "kinds": ["list", "domain", "domain", "domain"],
    }
    fields = ("type: short", "dimension: 3", "sizes: 16 18 5", "endian: little", "encoding: raw", "spacings: 1 1 3")
    lists = "\n".join(["NRRD0004", *fields, "data file: "]).encode()
    parts = {f"{k}.raw": VOLUME[..., k].tobytes(order="F") for k in range(5)}
    return [
        *(file("a.nrrd", encoding=encoding) for encoding in ("raw", "gzip", "bzip2", "ascii")),
        file("a.nrrd", np.stack([VOLUME] * 2), encoding="gzip", **axis),
        *(file("a.nhdr", encoding=encoding) for encoding in ("raw", "gzip")),
        {"a.nhdr": lists + "\n".join(["LIST", *parts, ""]).encode(), **parts},
        {"a.nhdr": lists + b"%d.raw 0 4 1\n", **parts},
    ]  # fmt: skip


def mgh() -> list[Files]:
    import nibabel as nib

    shown = (VOLUME, VOLUME.astype(np.float32), np.stack([VOLUME] * 2, axis=-1))
    plain = [written(lambda folder, v=v: nib.save(nib.MGHImage(v, AFFINE), folder / "a.mgh")) for v in shown]
    return [*plain, *({"a.mgz": gzip.compress(files["a.mgh"], 1, mtime=0)} for files in plain[:1])]


def metaimage() -> list[Files]:
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    def file(name: str, packed: bool, voxels: np.ndarray = VOLUME) -> Files:
        image = sitk.GetImageFromArray(voxels.T, isVector=False)
        image.SetSpacing([1.1, 0.9, 3.0, 1.0][: voxels.ndim])
        return written(lambda folder: sitk.WriteImage(image, str(folder / name), packed), name)

    frames = np.stack([VOLUME] * 2, axis=-1)
    return [
        *(file(name, packed) for name in ("a.mha", "a.mhd") for packed in (False, True)),
        file("a.mha", False, frames),
    ]


def _series(volume: np.ndarray = VOLUME, **tags: Any) -> Files:
    """A series of one file a slice, whose UIDs are the same in each process."""
    from tests.scans import dicom

    counter = itertools.count(1)
    with patch.object(dicom, "generate_uid", lambda *_: f"1.2.826.0.1.3680043.8.498.{next(counter)}"):
        return written(lambda folder: dicom.save_series(folder, volume, AFFINE, **tags))


def _slices(change: Callable[[Any], Any], **tags: Any) -> list[Files]:
    """Files of one slice, changed."""
    import pydicom

    changed = []
    for name, data in itertools.islice(_series(**tags).items(), 2):
        ds = pydicom.dcmread(io.BytesIO(data))
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, ds, **(change(ds) or {}))
        changed.append({f"{name}.dcm": stream.getvalue()})
    return changed


def dicom_native() -> list[Files]:
    from pydicom import uid

    def plain(ds: Any) -> None:
        ds.WindowCenter, ds.WindowWidth = [40, 50], [80, 90]
        ds.add_new("PixelPaddingValue", "SS", 0)
        ds.RescaleSlope, ds.RescaleIntercept = "2.5", "-10"

    def implicit(ds: Any) -> dict[str, Any]:
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
        return {"implicit_vr": True, "little_endian": True}

    def big(ds: Any) -> dict[str, Any]:
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
        ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
        return {"implicit_vr": False, "little_endian": False}

    bare = [{name: data[132:] for name, data in files.items()} for files in _slices(implicit)]
    return [*_slices(plain), *_slices(implicit), *_slices(big), *bare[:1]]


def _compressed(syntax: str) -> Callable[[], list[Files]]:
    return lambda: _slices(
        lambda ds: ds.compress(syntax), volume=VOLUME.repeat(4, axis=0).repeat(4, axis=1)
    )  # OpenJPEG takes no less


dicom_rle = _compressed("1.2.840.10008.1.2.5")
dicom_jpegls = _compressed("1.2.840.10008.1.2.4.80")
dicom_jpeg2000 = _compressed("1.2.840.10008.1.2.4.90")


def dicom_deflated() -> list[Files]:
    def deflate(ds: Any) -> None:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"

    return _slices(deflate)


def dicom_jpeg() -> list[Files]:
    """Baseline as Pillow writes it, and lossless as GDCM does."""

    def baseline(ds: Any) -> None:
        from pydicom.encaps import encapsulate

        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
        ds.Rows, ds.Columns = GRAY.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = encapsulate([pillow(GRAY, kind="JPEG")["a.jpeg"]])

    return [*_slices(baseline), *map(_lossless, _series().items())][:4]


def _lossless(named: tuple[str, bytes]) -> Files:
    import gdcm

    def write(folder: Path) -> None:
        (folder / "plain").write_bytes(named[1])
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(folder / "plain"))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change(), "GDCM compresses a slice"
        writer.SetFileName(str(folder / "a.dcm"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()
        (folder / "plain").unlink()

    return written(write)


def dicom_enhanced() -> list[Files]:
    import pydicom

    from tests.scans.dicom import save_enhanced

    def packed(folder: Path) -> None:
        ds = pydicom.dcmread(save_enhanced(folder / "a.dcm", VOLUME, AFFINE))
        ds.compress("1.2.840.10008.1.2.5")
        ds.save_as(folder / "a.dcm")

    return [written(lambda folder: save_enhanced(folder / "a.dcm", VOLUME, AFFINE)), written(packed)]


def dicom_series() -> list[Files]:
    t2 = {"SeriesDescription": "t2 tse tra", "SeriesNumber": 4, "ContrastBolusAgent": None}
    two = {**_series(), **{f"b/{name}": data for name, data in _series(**t2, SeriesInstanceUID="1.2.3").items()}}
    return [_series(), _series(plane="sagittal", SpecificCharacterSet="ISO_IR 192"), two]


def dicomdir() -> list[Files]:
    def write(folder: Path) -> None:
        from pydicom.fileset import FileSet

        directory = FileSet()
        with tempfile.TemporaryDirectory() as source:
            for name, data in _series().items():
                (Path(source) / name).write_bytes(data)
                directory.add(Path(source) / name)
            directory.write(folder)

    return [written(write, "DICOMDIR")]


def _zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> Files:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return {"a.zip": stream.getvalue()}


def zips() -> list[Files]:
    small = dict(itertools.islice(_series().items(), 3))
    return [
        _zipped(small),
        _zipped(small, zipfile.ZIP_STORED),
        _zipped({"p/1.dcm": small["IM0000"], "readme.txt": b"a"}),
        _zipped(png()[0]),
    ]


def any_kind() -> list[Files]:
    """One file of each kind, so that the begin of one and the end of another meet."""
    makers = (png, jpeg, tiff, bmp, webp, matlab, matlab73, nifti, nifti_gz, nrrd, mgh, metaimage, dicom_native, zips)
    return [{"a": next(iter(maker()[0].values()))} for maker in makers]
