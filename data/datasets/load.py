"""Data sets on disk -> lists of `Sample`, whichever way the folder is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tumorlens.data.datasets.folders import (
    folders_with_scans,
    masks_beside,
    place_of,
    scans_in,
    with_masks,
)
from tumorlens.data.datasets.index import CHANNELS, find_index, load_index
from tumorlens.data.datasets.sample import Sample, slices_of
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import CLASSES, canonical_label


def load_samples(
    source: str | Path, label_map: Mapping[str, str] | None = None, channel: int | None = None
) -> list[Sample]:
    """The samples of a data set, its layout told by what lies there.

    Five layouts are known: an ``index.csv`` (``image, label`` and any of ``mask, patient, fold, official_split,
    channel``; named itself or in the folder), a folder per class (``Training/glioma/1.jpg``), an image folder beside a
    mask folder (``images/1.png``, ``masks/1.png``), a folder per patient with pictures beside their masks
    (``TCGA_CS_4941/7.tif``, ``TCGA_CS_4941/7_mask.tif``; see `data.datasets.lgg`), and a folder of MATLAB ``cjdata`` files,
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
    from tumorlens.data.datasets.lgg import is_lgg_set, load_lgg_folder

    index, root = find_index(source)
    if index is not None:
        return load_index(index, label_map, root)
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such data folder")
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


def load_class_folders(source: Path, label_map: Mapping[str, str] | None = None) -> list[Sample]:
    """Samples of a folder per class, with or without a folder per split above and folders per patient below (see
    `data.datasets.folders.place_of`), and with or without a mask beside each picture (``7.png``, ``7_mask.png``)."""
    samples: list[Sample] = []
    for folder in folders_with_scans(source):
        place = place_of(folder, source, label_map)
        if not place.label:
            try:
                canonical_label(folder.name, label_map)
            except InputError as error:
                raise InputError(f"{folder}: {error}") from None
        for file, mask in masks_beside(scans_in(folder)):
            samples.extend(slices_of(Sample(file, place.label, place.patient, mask, split=place.split)))
    if not samples:
        raise InputError(
            f"{source}: neither an index.csv, nor class folders ({', '.join(CLASSES)}), nor images/ beside masks/, nor "
            "patient folders of pictures and their *_mask files"
        )
    return samples


def load_matlab_folder(source: Path) -> list[Sample]:
    """Samples of the figshare set as its author gives it: ``cjdata`` files with label and patient inside."""
    samples = []
    for file in _matlab_files(source):
        said = open_scan(file).annotation
        if said is None or not said.label:
            raise InputError(f"{file}: cjdata.label is missing or none of 1, 2, 3")
        samples.append(Sample(file, said.label, said.patient or ""))
    return samples


def load_image_mask_folders(images: Path, masks: Path) -> list[Sample]:
    """Samples of an image folder and a mask folder: same stem, with or without ``_mask``; a missing mask is empty.

    Raises:
        InputError: No masks there, a mask that belongs to no image or to two, or an image with two masks.
    """
    named = [Sample(file, "", mask=mask) for file, mask in with_masks(scans_in(images), scans_in(masks))]
    if not any(sample.mask for sample in named):
        raise InputError(f"{masks}: no mask has the name of an image in {images}")
    return [piece for sample in named for piece in slices_of(sample)]


def _is_matlab_set(source: Path, label_map: Mapping[str, str] | None) -> bool:
    """Whether a folder, or folders in it that are named for no class, hold MATLAB files and no other scans."""
    folders = folders_with_scans(source)
    files = [file for folder in (source, *folders) for file in scans_in(folder)]
    if not files or len(files) != len(_matlab_files(source)):
        return False
    try:
        return not folders or not all(place_of(folder, source, label_map).label for folder in folders)
    except InputError:
        return True


def _matlab_files(source: Path) -> list[Path]:
    """MATLAB files in a folder and below it, in the order of their paths, without hidden ones."""
    files = [file for folder in (source, *folders_with_scans(source)) for file in scans_in(folder)]
    return sorted(file for file in files if file.suffix.lower() == ".mat")
