"""Lower-grade gliomas as the `kaggle_3m` folder keeps them: a folder per patient, each slice a picture and its mask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tumorlens.data.datasets.folders import SPLIT_FOLDERS, class_named, is_patient_name, with_masks
from tumorlens.data.datasets.listing import Listing, Row
from tumorlens.data.datasets.sample import PICTURE_SUFFIXES, Sample, channel_of, has_color
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import TUMOR_FREE
from tumorlens.data.masks.read import read_mask

FLAIR = 1
_MASK = re.compile(r"_mask$", re.IGNORECASE)


def is_lgg_set(scans: Mapping[Path, Sequence[Path]], root: Path, label_map: Mapping[str, str] | None = None) -> bool:
    """Whether folders below the root hold pairs of ``X.tif`` and ``X_mask.tif``, and no folder is named for a class or
    a split or lies within a folder of another class than glioma.

    Args:
        scans: Scans by folder, see `data.datasets.folders.scans_below`.
        root: The data folder.
        label_map: The user's own label names -> classes.
    """
    folders = _patient_folders(scans, root)
    if not any(map(_has_pair, folders.values())):
        return False
    above = {part for folder in folders for part in folder.relative_to(root).parts[:-1]}
    if any(class_named(part, label_map) not in ("", "glioma") for part in above):
        return False
    return not any(f.name.lower() in SPLIT_FOLDERS or class_named(f.name, label_map) for f in folders)


def has_lgg_patients(scans: Mapping[Path, Sequence[Path]], root: Path) -> bool:
    """Whether the pairs below the root are TIFF files in folders that are called as those of patients are."""
    folders = [f for f, pictures in _patient_folders(scans, root).items() if _has_pair(pictures)]
    tiff = all(p.suffix.lower() in (".tif", ".tiff") for folder in folders for p in scans[folder])
    return bool(folders) and tiff and all(is_patient_name(folder.name) for folder in folders)


def is_lgg_slice(sample: Sample) -> bool:
    """Whether a sample is a picture of a known patient with its mask, as `list_lgg_folder` lists them."""
    image, mask = sample.image, sample.mask
    if mask is None or not sample.patient or sample.from_volume:
        return False
    return mask.parent == image.parent and mask != image and _MASK.sub("", mask.stem).lower() == image.stem.lower()


def list_lgg_folder(listing: Listing, scans: Mapping[Path, Sequence[Path]], channel: int | None = None) -> None:
    """List the LGG segmentation set (M. Buda et al., Computers in Biology and Medicine 2019), or your own pictures in
    its layout: ``PATIENT/NAME_k.tif`` and ``PATIENT/NAME_k_mask.tif``, in order of patient and slice k.

    The three channels of a picture are the pre-contrast, FLAIR and post-contrast slice. Where a patient had no pre- or
    post-contrast sequence, the set's authors filled its channel with FLAIR. The masks outline the FLAIR abnormality.
    Every patient has a glioma: a slice is ``glioma`` where its mask has a pixel, else ``no_tumor``. A tumor-free slice
    with one value everywhere shows nothing and is left out.

    Args:
        listing: Takes the rows and the problems.
        scans: Scans by folder, see `data.datasets.folders.scans_below`.
        channel: The channel to take. By default FLAIR of color pictures, and gray ones as they are.

    Raises:
        InputError: Every slice has one value everywhere.
    """
    first: dict[str, Path] = {}
    for folder, pictures in _patient_folders(scans, listing.root).items():
        other = first.setdefault(folder.name, folder)
        if other != folder:
            listing.report(folder, "repeated_patient", f"patient {folder.name} has another folder, {other}")
        masks = [picture for picture in pictures if _MASK.search(picture.stem)]
        images = [picture for picture in pictures if not _MASK.search(picture.stem)]
        pairs = with_masks(images, masks, listing)
        for image, mask in sorted(pairs, key=lambda pair: _slice_order(pair[0].stem)):
            row = _row(Sample(image, "", folder.name, mask, channel=channel), listing)
            listing.rows += [row] if row is not None else []
    if not listing.rows and not listing.problems:
        raise InputError(f"{listing.root}: every slice has one value everywhere")


def _patient_folders(scans: Mapping[Path, Sequence[Path]], root: Path) -> dict[Path, list[Path]]:
    """Folders below the root that hold pictures, and those pictures, masks among them."""
    pictures = {
        folder: [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
        for folder, files in scans.items()
        if folder != root
    }
    return {folder: files for folder, files in pictures.items() if files}


def _has_pair(pictures: Sequence[Path]) -> bool:
    stems = {p.stem for p in pictures}
    return any(_MASK.sub("", stem) in stems for stem in stems if _MASK.search(stem))


def _slice_order(stem: str) -> tuple[str, int, str]:
    number = re.search(r"\d+$", stem)
    return (stem[: number.start()], int(number[0]), stem) if number else (stem, -1, stem)


def _row(sample: Sample, listing: Listing) -> Row | None:
    """The row of one slice, with its label and channel; None if there is nothing to see on it."""
    image, mask = sample.image, sample.mask
    if mask is None:
        listing.report(image, "missing_file", f"the picture has no mask {image.stem}_mask{image.suffix} next to it")
        return Row(sample, mask_missing=True)
    try:
        scan = open_scan(image, constant=True)
        channel = FLAIR if sample.channel is None and has_color(scan) else sample.channel
        shown = scan.voxels if channel is None else channel_of(scan, channel)
        sick = bool(read_mask(mask, scan).any())
    except InputError as error:
        return Row(sample, error=str(error))
    if shown.min() == shown.max():
        if not sick:
            return None
        return Row(sample, error=f"{image}: the mask shows a tumor where the picture has one value everywhere")
    label, sequence = "glioma" if sick else TUMOR_FREE, "flair" if channel == FLAIR else ""
    return Row(replace(sample, label=label, channel=channel, sequence=sequence))
