"""Lower-grade gliomas as the `kaggle_3m` folder keeps them: a folder per patient, each slice a picture and its mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tumorlens.data.datasets.folders import SPLIT_FOLDERS, class_named
from tumorlens.data.datasets.sample import Sample, channel_of, has_colour
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.masks.read import read_mask

FLAIR = 1
_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MASK = re.compile(r"_mask$", re.IGNORECASE)


def is_lgg_set(source: Path, label_map: Mapping[str, str] | None = None) -> bool:
    """Whether a folder holds folders with pairs of ``X.tif`` and ``X_mask.tif``, none of them named for a class or a
    split, nor within a folder of another class than glioma."""
    folders = _patient_folders(source)
    if not any(map(_has_pair, folders.values())):
        return False
    above = {part for folder in folders for part in folder.relative_to(source).parts[:-1]}
    if any(class_named(part, label_map) not in ("", "glioma") for part in above):
        return False
    return not any(f.name.lower() in SPLIT_FOLDERS or class_named(f.name, label_map) for f in folders)


def is_lgg_slice(sample: Sample) -> bool:
    """Whether a sample is one that `load_lgg_folder` could give: a picture of a known patient, its mask beside it."""
    image, mask = sample.image, sample.mask
    if mask is None or not sample.patient or sample.from_volume:
        return False
    return mask.parent == image.parent and mask != image and _MASK.sub("", mask.stem) == image.stem


def load_lgg_folder(source: Path, channel: int | None = None) -> list[Sample]:
    """Samples of the LGG segmentation set (M. Buda et al., Computers in Biology and Medicine 2019), and of your own
    pictures laid out so: ``PATIENT/NAME_k.tif`` and ``PATIENT/NAME_k_mask.tif``, in order of patient and slice k.

    The three channels of a picture are the pre-contrast, FLAIR and post-contrast slice; where a patient had no pre- or
    post-contrast sequence, the set's authors filled its channel with FLAIR. The masks outline the FLAIR abnormality.
    Every patient has a glioma: a slice is ``glioma`` where its mask has a pixel, else ``no_tumor``. A tumor-free slice
    with one value everywhere shows nothing and is left out.

    Args:
        source: The folder of the patients' folders.
        channel: Which channel to take; by default FLAIR of colour pictures, and grey ones as they are.

    Raises:
        InputError: A picture without a mask or the reverse, a patient in two folders, a mask of another size, an
            unreadable file, a grey picture of which a channel was asked for.
    """
    seen: dict[str, Path] = {}
    samples: list[Sample] = []
    for folder, pictures in _patient_folders(source).items():
        other = seen.setdefault(folder.name, folder)
        if other != folder:
            raise InputError(f"{source}: patient {folder.name} has two folders, {other} and {folder}")
        for image, mask in _pairs(pictures):
            samples += _slice(image, mask, folder.name, channel)
    if not samples:
        raise InputError(f"{source}: every slice has one value everywhere")
    return samples


def _patient_folders(source: Path) -> dict[Path, list[Path]]:
    """Folders below the source that hold pictures, and those pictures, masks among them."""
    found = {}
    for folder in sorted(p for p in source.rglob("*") if p.is_dir()):
        pictures = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _SUFFIXES and p.name[0] != "."]
        if pictures:
            found[folder] = pictures
    return found


def _has_pair(pictures: list[Path]) -> bool:
    stems = {p.stem for p in pictures}
    return any(_MASK.sub("", stem) in stems for stem in stems if _MASK.search(stem))


def _pairs(pictures: list[Path]) -> list[tuple[Path, Path]]:
    """A patient's slices with their masks, by slice number."""
    masks: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in pictures:
        kind, stem = (masks, _MASK.sub("", path.stem)) if _MASK.search(path.stem) else (images, path.stem)
        other = kind.setdefault(stem, path)
        if other != path:
            raise InputError(f"{path}: there is also {other.name}, and only one of them can be the slice")
    for stem, image in images.items():
        if stem not in masks:
            raise InputError(f"{image}: the picture has no mask {stem}_mask{image.suffix} beside it")
    for stem, mask in masks.items():
        if stem not in images:
            raise InputError(f"{mask}: the mask has no picture {stem}{mask.suffix} beside it")
    return [(images[stem], masks[stem]) for stem in sorted(images, key=_slice_order)]


def _slice_order(stem: str) -> tuple[str, int, str]:
    number = re.search(r"\d+$", stem)
    return (stem[: number.start()], int(number[0]), stem) if number else (stem, -1, stem)


def _slice(image: Path, mask: Path, patient: str, channel: int | None) -> list[Sample]:
    """The sample of one slice, or none if there is nothing to see on it."""
    scan = open_scan(image, constant=True)
    if channel is None and has_colour(scan):
        channel = FLAIR
    shown = scan.voxels if channel is None else channel_of(scan, channel)
    sick = bool(read_mask(mask, scan).any())
    if shown.min() == shown.max():
        if sick:
            raise InputError(f"{image}: the mask shows a tumor where the picture has one value everywhere")
        return []
    return [Sample(image, "glioma" if sick else CLASSES[NO_TUMOR], patient, mask, channel=channel)]
