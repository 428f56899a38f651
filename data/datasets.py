"""Data sets on disk -> lists of `Sample`, whichever way the folder is laid out."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.head import tissue_shares
from data.labels import CLASSES, canonical_label
from data.readers import SCAN_SUFFIXES, open_scan
from data.scan import ACQUISITION, Scan

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
CHANNELS = 3  # of a colour picture
_FLAT = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".mat")  # names of what has one slice
_PICTURES = ("png", "jpeg", "tiff", "bmp", "webp")


@dataclass(frozen=True)
class Sample:
    """One slice of a data set.

    Attributes:
        image: The scan's file.
        label: One of `data.labels.CLASSES`, or empty where the set has masks only.
        patient: The patient's pseudonym; empty where the set does not tell.
        mask: The mask's file, or none.
        fold: The set's own fold, or none.
        split: ``"train"``, ``"validation"`` or ``"test"`` where the set has an official one, else empty.
        slice_index: Which slice of a volume, or none for a picture.
        channel: Which channel of a colour picture is the scan, from 0; none takes their brightness.
        plane: How the volume is cut, see `data.scan.Scan.with_plane`.
    """

    image: Path
    label: str
    patient: str = ""
    mask: Path | None = None
    fold: int | None = None
    split: str = ""
    slice_index: int | None = None
    channel: int | None = None
    plane: str = ACQUISITION

    @property
    def name(self) -> str:
        return f"{self.image}[{self.place}]" if self.place else str(self.image)

    @property
    def from_volume(self) -> bool:
        """A slice of a volume, and no picture."""
        return self.slice_index is not None

    @property
    def place(self) -> str:
        """Which slice of a volume, such as ``"12"`` or ``"coronal 12"``; empty for a picture."""
        if self.slice_index is None:
            return ""
        return str(self.slice_index) if self.plane == ACQUISITION else f"{self.plane} {self.slice_index}"


def load_samples(
    source: str | Path, label_map: Mapping[str, str] | None = None, channel: int | None = None
) -> list[Sample]:
    """The samples of a data set, its layout told by what lies there.

    Five layouts are known: an ``index.csv`` (``image, label`` and any of ``mask, patient, fold, official_split,
    channel``; named itself or in the folder), a folder per class (``Training/glioma/1.jpg``), an image folder beside a
    mask folder (``images/1.png``, ``masks/1.png``), a folder per patient with pictures beside their masks
    (``TCGA_CS_4941/7.tif``, ``TCGA_CS_4941/7_mask.tif``; see `data.lgg`), and a folder of MATLAB ``cjdata`` files,
    which carry their own labels.
    A volume stands for its slices: those with a mask have its label, the others are ``no_tumor``; of an index, the
    column ``every`` takes each n-th slice only, and ``cut`` the slices of a plane (axial, coronal, sagittal).

    Args:
        source: The folder or the CSV file; ``index.csv@folder`` where the index's paths start at another folder.
        label_map: The user's own label names -> classes.
        channel: Which channel of colour pictures to take, 0 to 2. By default the one that an index names, FLAIR of a
            folder per patient, else the brightness.

    Raises:
        InputError: Nothing usable there, a missing column or file, an unknown label, no such channel.
    """
    if channel not in (None, *range(CHANNELS)):
        raise InputError(f"channel {channel} is none of 0, 1, 2")
    samples = _load(source, label_map, channel)
    return samples if channel is None else [replace(sample, channel=channel) for sample in samples]


def _load(source: str | Path, label_map: Mapping[str, str] | None, channel: int | None) -> list[Sample]:
    from data.lgg import is_lgg_set, load_lgg_folder

    index, at, root = str(source).rpartition("@")
    source = Path(source)
    if at and not source.exists() and Path(index).is_file():
        return load_index(Path(index), label_map, root)
    if source.is_file():
        return load_index(source, label_map)
    if not source.is_dir():
        raise InputError(f"{source}: no such data folder")
    if (source / "index.csv").is_file():
        return load_index(source / "index.csv", label_map, root)
    folders = {p.name.lower(): p for p in source.iterdir() if p.is_dir()}
    images = folders.get("images") or folders.get("image") or folders.get("imgs")
    masks = folders.get("masks") or folders.get("mask") or folders.get("labels")
    if images and masks:
        return load_image_mask_folders(images, masks)
    if is_lgg_set(source, label_map):
        return load_lgg_folder(source, channel)
    if _is_matlab_set(source, label_map):
        return load_matlab_folder(source)
    return load_class_folders(source, label_map)


def load_index(index: Path, label_map: Mapping[str, str] | None = None, root: str | Path | None = None) -> list[Sample]:
    """Samples of an index file; see `load_samples`."""
    base = Path(root) if root is not None else index.parent
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"image", "label"} - set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{index}: this is no CSV file in UTF-8") from None
    if missing:
        raise InputError(f"{index}: the column {' and '.join(sorted(missing))} is missing")
    samples: list[Sample] = []
    for number, row in rows:
        if not any(value for value in row.values() if isinstance(value, str)):
            continue
        try:
            samples.extend(_index_row(row, base, label_map))
        except InputError as error:
            raise InputError(f"{index} line {number}: {error}") from None
    if not samples:
        raise InputError(f"{index}: the index has no rows")
    return samples


def _index_row(row: Mapping[str, str | None], base: Path, label_map: Mapping[str, str] | None) -> list[Sample]:
    """The sample of one row, or the slices of its volume."""
    for column in ("image", "label"):
        if not row[column]:
            raise InputError(f"{column} is empty")
    image = base / str(row["image"])
    mask = base / str(row["mask"]) if row.get("mask") else None
    for path in (image, mask):
        if path is not None and not path.is_file():
            raise InputError(f"no such file {path}")
    fold = _number(row, "fold", 0)
    split = SPLIT_FOLDERS.get((row.get("official_split") or row.get("split") or "").lower(), "")
    label = canonical_label(str(row["label"]), label_map)
    channel = _number(row, "channel", 0, CHANNELS - 1)
    cut = row.get("cut") or ACQUISITION
    sample = Sample(image, label, row.get("patient") or "", mask, fold, split, channel=channel, plane=cut)
    every = _number(row, "every", 1) or 1
    return _slices_of(sample)[::every]


def _number(row: Mapping[str, str | None], column: str, least: int, most: int | None = None) -> int | None:
    """The whole number in a column, or none where it is empty."""
    return whole_number((row.get(column) or "").strip(), column, least, most)


def whole_number(text: str, column: str, least: int, most: int | None = None) -> int | None:
    """The whole number that a cell holds, or none where it is empty.

    Raises:
        InputError: It holds something else, or a number out of its range.
    """
    if not text:
        return None
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        up_to = "on" if most is None else f"to {most}"
        raise InputError(f"{column} {text!r} is no whole number from {least} {up_to}")
    return int(text)


def load_class_folders(source: Path, label_map: Mapping[str, str] | None = None) -> list[Sample]:
    """Samples of a folder per class, with or without a folder per split above."""
    samples: list[Sample] = []
    for folder in _class_folders(source):
        parts = folder.relative_to(source).parts
        split = next((SPLIT_FOLDERS[p.lower()] for p in parts if p.lower() in SPLIT_FOLDERS), "")
        try:
            label = canonical_label(folder.name, label_map)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        for file in _scans_in(folder):
            samples.extend(_slices_of(Sample(file, label, split=split)))
    if not samples:
        raise InputError(
            f"{source}: neither an index.csv, nor class folders ({', '.join(CLASSES)}), nor images/ beside masks/, nor "
            "patient folders of pictures and their *_mask files"
        )
    return samples


def load_matlab_folder(source: Path) -> list[Sample]:
    """Samples of the figshare set as its author gives it: ``cjdata`` files with label and patient inside."""
    samples = []
    for file in sorted(source.rglob("*.mat")):
        said = open_scan(file).annotation
        if said is None or not said.label:
            raise InputError(f"{file}: cjdata.label is missing or none of 1, 2, 3")
        samples.append(Sample(file, said.label, said.patient or ""))
    return samples


def load_image_mask_folders(images: Path, masks: Path) -> list[Sample]:
    """Samples of an image folder and a mask folder: same stem, with or without ``_mask``; a missing mask is empty."""
    by_stem = {re.sub(r"[-_]?(mask|seg|label)$", "", _stem(file).lower()): file for file in _scans_in(masks)}
    files = _scans_in(images)
    named = [Sample(file, "", mask=by_stem.get(_stem(file).lower())) for file in files]
    if not any(sample.mask for sample in named):
        raise InputError(f"{masks}: no mask has the name of an image in {images}")
    return [piece for sample in named for piece in _slices_of(sample)]


@dataclass(frozen=True)
class Reading:
    """A sample's arrays.

    Attributes:
        image: The slice as `data.scan.Scan.slice` shows it.
        mask: 0 and 1 in the same view, or none if the set gives none for it.
        aspect: Height of a pixel over its width.
        sample: The sample, with the patient that the file itself names where the set names none.
    """

    image: NDArray[np.generic]
    mask: NDArray[np.uint8] | None
    aspect: float
    sample: Sample


def read_sample(sample: Sample) -> Reading:
    """Read a sample's slice and its mask.

    Raises:
        InputError: The scan or the mask cannot be read, their shapes or places differ, or the file's own label is not
            the set's.
    """
    scan = open_scan(sample.image) if sample.slice_index is None else open_cut(sample)
    index = sample.slice_index or 0
    said = scan.annotation
    if said is not None:
        if said.label and sample.label and said.label != sample.label:
            raise InputError(f"{sample.image}: the file says {said.label}, the data set {sample.label}")
        sample = replace(sample, patient=sample.patient or said.patient or "")
    mask = scan.annotation_slice(index) if sample.mask is None else read_mask(sample.mask, scan, index)
    image = scan.slice(index) if sample.channel is None else channel_of(scan, sample.channel)
    return Reading(image, mask, scan.pixel_aspect, sample)


def open_cut(sample: Sample) -> Scan:
    """A sample's volume in the sample's plane. The last one is kept, for its slices follow each other."""
    state = sample.image.stat()
    scan = _open_kept(sample.image, state.st_mtime_ns, state.st_size)
    return scan if sample.plane == ACQUISITION else scan.with_plane(sample.plane)


@lru_cache(maxsize=1)
def _open_kept(path: Path, _changed_ns: int, _size: int) -> Scan:
    return open_scan(path)


def channel_of(scan: Scan, channel: int) -> NDArray[np.generic]:
    """One channel of a colour picture, ``(rows, columns)``.

    Raises:
        InputError: A volume or a grey picture, which have no channels.
    """
    if not has_colour(scan):
        what = "a volume" if scan.volume else "grey"
        raise InputError(f"{scan.path}: channel {channel} was asked for, but the scan is {what}")
    return scan.voxels if scan.voxels.ndim == 2 else np.ascontiguousarray(scan.voxels[..., channel])


def has_colour(scan: Scan) -> bool:
    """Whether a scan is a picture with three channels in its file, be they equal."""
    if scan.volume or scan.voxels.ndim == 3:
        return not scan.volume
    if scan.path is None or scan.format not in _PICTURES:
        return False
    from PIL import Image

    with Image.open(scan.path) as picture:  # the header only: the reader folds three equal channels into one
        return len(picture.getbands()) >= 3


def read_mask(path: Path, scan: Scan, index: int = 0) -> NDArray[np.uint8]:
    """One slice of a mask file as 0 and 1, in the view of ``scan.slice(index)``. Grey pictures are cut at half their
    maximum, since some sets keep masks as JPEG.

    Raises:
        InputError: The mask cannot be read, or has another shape or place in space than its scan.
    """
    if scan.volume:
        return scan.view(read_volume_mask(path, scan), index)
    drawn = _open_mask(path).slice(0)
    drawn = drawn.max(axis=2) if drawn.ndim == 3 else drawn
    if drawn.shape != scan.voxels.shape[:2]:
        raise InputError(f"{path}: the mask has shape {drawn.shape}, its image {scan.voxels.shape[:2]}")
    return (drawn > 0.5 * drawn.max()).astype(np.uint8) if drawn.max() > 0 else np.zeros(drawn.shape, np.uint8)


def read_volume_mask(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """A volume's mask as 0 and 1 in the array order of ``scan.voxels``.

    Raises:
        InputError: The mask cannot be read, has another shape, or lies elsewhere by more than half a voxel.
    """
    mask = _open_mask(path)
    if mask.voxels.shape != scan.voxels.shape:
        raise InputError(f"{path}: the mask has shape {mask.voxels.shape}, its scan {scan.voxels.shape}")
    if mask.affine is not None and scan.affine is not None:
        corners = np.array(np.meshgrid(*((0, n - 1) for n in scan.voxels.shape), [1])).reshape(4, -1)
        apart = np.linalg.solve(scan.affine, mask.affine @ corners) - corners
        if np.abs(apart).max() > 0.5:
            raise InputError(f"{path}: the mask lies up to {np.abs(apart).max():.1f} voxels away from its scan")
    return (mask.voxels > 0).astype(np.uint8)


def _open_mask(path: Path) -> Scan:
    """A mask file as a scan; unlike one, it may be empty."""
    return open_scan(path, constant=True)


def _slices_of(sample: Sample, min_lesion_px: int = 20, min_tissue_share: float = 0.25) -> list[Sample]:
    """The sample itself if it is a picture; of a volume the slices that teach: those with a clear lesion, and those
    with enough of the head and no lesion.

    Raises:
        InputError: A volume with a tumor's label and no mask does not tell which slices show it.
    """
    # Thousands of pictures need not be opened twice.
    if sample.image.name.lower().endswith(_FLAT) and sample.plane == ACQUISITION:
        return [sample]
    scan = open_cut(sample)
    if scan.n_slices == 1:
        return [sample]
    if sample.mask is None and sample.label not in ("", CLASSES[0]):
        raise InputError(f"{sample.image}: a volume labelled {sample.label} needs a mask that says in which slices")
    mask = np.zeros(scan.voxels.shape, np.uint8) if sample.mask is None else read_volume_mask(sample.mask, scan)
    lesion = np.array([np.count_nonzero(scan.view(mask, k)) for k in range(scan.n_slices)])
    tissue = tissue_shares(scan)
    samples = []
    for k in np.flatnonzero((tissue >= min_tissue_share * tissue.max()) & (tissue > 0)):
        if 0 < lesion[k] < min_lesion_px:
            continue
        samples.append(
            replace(
                sample,
                label=sample.label if lesion[k] else CLASSES[0],
                patient=sample.patient or str(sample.image),  # neighbouring slices must not part
                mask=sample.mask if lesion[k] else None,
                slice_index=int(k),
            )
        )
    return samples


def _is_matlab_set(source: Path, label_map: Mapping[str, str] | None) -> bool:
    """Whether a folder, or folders in it that are named for no class, hold MATLAB files and no other scans."""
    folders = _class_folders(source)
    files = [file for folder in (source, *folders) for file in _scans_in(folder)]
    if not files or any(file.suffix.lower() != ".mat" for file in files):
        return False
    try:
        return not [canonical_label(folder.name, label_map) for folder in folders]
    except InputError:
        return True


def _class_folders(source: Path) -> list[Path]:
    """Folders named other than the source that hold scans."""
    return [p for p in sorted(source.rglob("*")) if p.is_dir() and _scans_in(p)]


def _scans_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES) and p.name[0] != "."
    )


def _stem(path: Path) -> str:
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
