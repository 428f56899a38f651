"""Data sets on disk -> lists of `Sample`, whichever way the folder is laid out."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.labels import CLASSES, canonical_label
from data.readers import SCAN_SUFFIXES, open_scan

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


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
    """

    image: Path
    label: str
    patient: str = ""
    mask: Path | None = None
    fold: int | None = None
    split: str = ""
    slice_index: int | None = None

    @property
    def name(self) -> str:
        return str(self.image) if self.slice_index is None else f"{self.image}[{self.slice_index}]"


def load_samples(source: str | Path, label_map: Mapping[str, str] | None = None) -> list[Sample]:
    """The samples of a data set, its layout told by what lies there.

    Three layouts are known: an ``index.csv`` (``image, label`` and any of ``mask, patient, fold, official_split``;
    named itself or in the folder), a folder per class (``Training/glioma/1.jpg``), and an image folder beside a mask
    folder (``images/1.png``, ``masks/1.png``). A row of an index whose image is a volume stands for its slices: those
    with a mask have the row's label, the others are ``no_tumor``; a column ``every`` takes each n-th slice only.

    Args:
        source: The folder or the CSV file; ``index.csv@folder`` where the index's paths start at another folder.
        label_map: The user's own label names -> classes.

    Raises:
        InputError: Nothing usable there, a missing column or file, an unknown label.
    """
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
    return load_class_folders(source, label_map)


def load_index(index: Path, label_map: Mapping[str, str] | None = None, root: str | Path | None = None) -> list[Sample]:
    """Samples of an index file; see `load_samples`."""
    base = Path(root) if root is not None else index.parent
    samples: list[Sample] = []
    with index.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"image", "label"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{index}: the column {' and '.join(sorted(missing))} is missing")
        for number, row in enumerate(reader, start=2):
            image = base / row["image"]
            mask = base / row["mask"] if row.get("mask") else None
            for path in (image, mask):
                if path is not None and not path.is_file():
                    raise InputError(f"{index} line {number}: no such file {path}")
            try:
                label = canonical_label(row["label"], label_map)
                fold = int(row["fold"]) if row.get("fold") else None
                every = int(row.get("every") or 1)
                if every < 1:
                    raise ValueError(f"every {every} is not 1 or more")
            except ValueError as error:
                raise InputError(f"{index} line {number}: {error}") from None
            split = _SPLIT_FOLDERS.get((row.get("official_split") or row.get("split") or "").lower(), "")
            sample = Sample(image, label, row.get("patient") or "", mask, fold, split)
            samples.extend(_volume_samples(sample)[::every] if _is_volume(image) else [sample])
    if not samples:
        raise InputError(f"{index}: the index has no rows")
    return samples


def load_class_folders(source: Path, label_map: Mapping[str, str] | None = None) -> list[Sample]:
    """Samples of a folder per class, with or without a folder per split above."""
    samples: list[Sample] = []
    for folder in sorted(p for p in source.rglob("*") if p.is_dir()):
        files = _scans_in(folder)
        if not files:
            continue
        parts = folder.relative_to(source).parts
        split = next((_SPLIT_FOLDERS[p.lower()] for p in parts if p.lower() in _SPLIT_FOLDERS), "")
        try:
            label = canonical_label(folder.name, label_map)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        samples.extend(Sample(file, label, split=split) for file in files)
    if not samples:
        raise InputError(
            f"{source}: neither an index.csv, nor class folders ({', '.join(CLASSES)}), nor images/ beside masks/"
        )
    return samples


def load_image_mask_folders(images: Path, masks: Path) -> list[Sample]:
    """Samples of an image folder and a mask folder: same stem, with or without ``_mask``; a missing mask is empty."""
    by_stem = {re.sub(r"[-_]?(mask|seg|label)$", "", _stem(file).lower()): file for file in _scans_in(masks)}
    files = _scans_in(images)
    samples = [Sample(file, "", mask=by_stem.get(_stem(file).lower())) for file in files]
    if not any(sample.mask for sample in samples):
        raise InputError(f"{masks}: no mask has the name of an image in {images}")
    return samples


def read_sample(sample: Sample) -> tuple[NDArray[np.generic], NDArray[np.uint8] | None, float]:
    """A sample's slice, its mask in the same view (none if it has none) and the height of a pixel over its width.

    Raises:
        InputError: The scan or the mask cannot be read, or their shapes differ.
    """
    scan = open_scan(sample.image)
    index = sample.slice_index or 0
    image = scan.slice(index)
    mask: NDArray[np.uint8] | None = scan.annotation_slice(index)
    if sample.mask is not None:
        drawn = read_mask(sample.mask, index)
        if drawn.shape != image.shape[:2]:
            raise InputError(f"{sample.mask}: the mask has shape {drawn.shape}, its image {image.shape[:2]}")
        mask = drawn
    return image, mask, scan.pixel_aspect


def read_mask(path: Path, slice_index: int = 0) -> NDArray[np.uint8]:
    """A mask file as 0 and 1. Grey pictures are cut at half their maximum, since some sets keep masks as JPEG."""
    try:
        scan = open_scan(path)
    except InputError as error:
        if "same value" not in str(error):  # an empty mask is a mask
            raise
        from PIL import Image

        with Image.open(path) as picture:
            return np.zeros((picture.height, picture.width), np.uint8)
    mask = scan.slice(slice_index)
    if mask.ndim == 3:
        mask = mask.max(axis=2)
    return (mask > 0.5 * mask.max()).astype(np.uint8) if mask.max() > 0 else np.zeros(mask.shape, np.uint8)


def _volume_samples(volume: Sample, min_lesion_px: int = 20, min_head_share: float = 0.25) -> list[Sample]:
    """The slices of a volume that teach: those with a clear lesion, and those with enough head and no lesion."""
    scan = open_scan(volume.image)
    lesion = np.zeros(scan.n_slices, int)
    if volume.mask is not None:
        mask = open_scan(volume.mask)
        if mask.voxels.shape != scan.voxels.shape:
            raise InputError(f"{volume.mask}: the mask has shape {mask.voxels.shape}, its scan {scan.voxels.shape}")
        lesion = np.array([(mask.slice(k) > 0).sum() for k in range(scan.n_slices)])
    bright = float(np.percentile(scan.voxels, 99)) * 0.1
    head = np.array([(scan.slice(k) > bright).mean() for k in range(scan.n_slices)])
    samples = []
    for k in np.flatnonzero(head >= min_head_share * head.max()):
        if 0 < lesion[k] < min_lesion_px:
            continue
        label = volume.label if lesion[k] else CLASSES[0]
        mask_path = volume.mask if lesion[k] else None
        samples.append(
            Sample(volume.image, label, volume.patient, mask_path, volume.fold, volume.split, slice_index=int(k))
        )
    return samples


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _scans_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES) and p.name[0] != "."
    )


def _stem(path: Path) -> str:
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
