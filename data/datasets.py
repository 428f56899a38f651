"""Data sets on disk -> lists of `Sample`, whichever way the folder is laid out."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.folders import SPLIT_FOLDERS, folders_with_scans, masks_beside, place_of, scans_in, with_masks
from data.head import tissue_shares
from data.labels import CLASSES, canonical_label
from data.pseudonyms import patient_in_file
from data.readers import open_scan
from data.samples import Sample, open_cut, read_volume_mask
from data.scan import ACQUISITION
from data.sources import find_index

CHANNELS = 3  # of a colour picture
_FLAT = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".mat")  # names of what has one slice


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
    """Samples of a folder per class, with or without a folder per split above and folders per patient below (see
    `data.folders.place_of`), and with or without a mask beside each picture (``7.png``, ``7_mask.png``)."""
    samples: list[Sample] = []
    for folder in folders_with_scans(source):
        place = place_of(folder, source, label_map)
        if not place.label:
            try:
                canonical_label(folder.name, label_map)
            except InputError as error:
                raise InputError(f"{folder}: {error}") from None
        for file, mask in masks_beside(scans_in(folder)):
            samples.extend(_slices_of(Sample(file, place.label, place.patient, mask, split=place.split)))
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
    return [piece for sample in named for piece in _slices_of(sample)]


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
    sample = replace(sample, patient=sample.patient or patient_in_file(scan))  # folds may be made before it is read
    if scan.n_slices == 1:
        return [sample]
    if sample.mask is None and sample.label not in ("", CLASSES[0]):
        raise InputError(f"{sample.image}: a volume labelled {sample.label} needs a mask that says in which slices")
    mask = np.zeros(scan.voxels.shape, np.uint8) if sample.mask is None else read_volume_mask(sample.mask, scan)
    lesion = np.array([np.count_nonzero(scan.view(mask, k)) for k in range(scan.n_slices)])
    tissue = tissue_shares(scan)
    untold = not sample.label and sample.mask is None  # neither that there is a lesion, nor that there is none
    samples = []
    for k in np.flatnonzero((tissue >= min_tissue_share * tissue.max()) & (tissue > 0)):
        if 0 < lesion[k] < min_lesion_px:
            continue
        samples.append(
            replace(
                sample,
                label=sample.label if lesion[k] or untold else CLASSES[0],
                patient=sample.patient or str(sample.image),  # neighbouring slices must not part
                mask=sample.mask if lesion[k] else None,
                slice_index=int(k),
                volume_label=sample.label,
                volume_mask=sample.mask,
            )
        )
    return samples


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
