"""What the names of folders and files say of the scans in them: class, split, patient, and which file is whose mask."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.data.labels import canonical_label

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

_SERIES = re.compile(
    r"t[12][a-z+*]*|flair|dwi|axial|coronal|sagittal|ax|cor|sag|images?|imgs|\d+x\d+"
)  # not a person's name

_COUNT = re.compile(r"\d{1,4}")  # longer ones are a clinic's or a set's own
_MASKS = re.compile(r"(masks?|labels?|segs?|segmentations?|annotations?)\d*")
_MASK_BESIDE = re.compile(r"[-_](mask|seg|label)$")
_MASK_APART = re.compile(r"[-_]?(mask|seg|label)$")


@dataclass(frozen=True)
class Place:
    """What the folders above a scan say of it.

    Attributes:
        label: One of `data.labels.CLASSES`; empty where no folder is named for a class.
        split: ``"train"``, ``"validation"`` or ``"test"``, or empty.
        patient: The folder below the class folder that is named for a patient, or empty.
    """

    label: str = ""
    split: str = ""
    patient: str = ""


def place_of(folder: Path, root: Path, label_map: Mapping[str, str] | None = None) -> Place:
    """Class, split and patient by the names of the folders from a set's root down to one of its folders.

    The class folder nearest the root decides. Below it the first folder with a number in its name is a patient
    (``pituitary/PI_00``, ``glioma/ME07``), unless the name is a sequence's, a plane's or a
    size's (``glioma/T1``). Sets count anew in each folder, so a short number gets those above in front.

    Raises:
        InputError: A folder below a class folder is named for another class, for masks, or for nothing that is known.
    """
    parts = folder.relative_to(root).parts
    split = next((SPLIT_FOLDERS[part.lower()] for part in parts if part.lower() in SPLIT_FOLDERS), "")
    labels = [class_named(part, label_map) for part in parts]
    label = next(filter(None, labels), "")
    if not label:
        return Place(split=split)
    top = labels.index(label)
    patient = ""
    for at, (name, other) in enumerate(zip(parts, labels, strict=True)):
        if at <= top:
            continue
        plain = re.sub(r"[-_ ]", "", name.lower())
        if _MASKS.fullmatch(plain):
            raise InputError(f"{folder}: masks of class folders lie beside their pictures (7_mask.png), not in {name}")
        if plain in SPLIT_FOLDERS or _SERIES.fullmatch(plain):
            continue
        if re.search(r"\d", name):
            patient = patient or ("/".join(parts[: at + 1]) if _COUNT.fullmatch(plain) else name)
        elif other not in ("", label):
            raise InputError(f"{folder}: the folder {name} in {parts[top]} says {other}, the outer one {label}")
        elif not other and not patient:
            raise InputError(
                f"{folder}: {name} is none of {', '.join(SPLIT_FOLDERS)}, and no patient's folder, whose name in "
                f"{parts[top]} has a number"
            )
    return Place(label, split, patient)


def class_named(name: str, label_map: Mapping[str, str] | None = None) -> str:
    """The class that a folder is named for, or nothing."""
    try:
        return canonical_label(name, label_map)
    except InputError:
        return ""


def folders_with_scans(source: Path) -> list[Path]:
    """Folders below the source that hold scans themselves."""
    return [p for p in sorted(source.rglob("*")) if p.is_dir() and scans_in(p)]


def scans_in(folder: Path) -> list[Path]:
    """The files of a folder whose names are a scan's, without hidden ones."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES) and p.name[0] != "."
    )


def stem(path: Path) -> str:
    """A scan's name in lower case, without its ending."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[0]


def is_mask_name(path: Path) -> bool:
    """Whether a file among pictures is named as the mask of one: ``7_mask.png``, ``7-seg.nii.gz``, ``7_label.png``."""
    return bool(_MASK_BESIDE.search(stem(path)))


def bare(mask: Path) -> str:
    """The stem of the picture that a mask is named for."""
    return _MASK_APART.sub("", stem(mask))


def masks_beside(files: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """The pictures among the files of one folder, each with the mask that lies beside it, or none.

    Raises:
        InputError: A mask belongs to no picture or to two, or a picture has two masks.
    """
    images = [file for file in files if not is_mask_name(file)]
    return with_masks(images, [file for file in files if is_mask_name(file)])


def with_masks(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Pictures, each with that of the masks which has its stem, with or without ``_mask``, or none.

    Raises:
        InputError: A mask belongs to no picture or to two, or a picture has two masks.
    """
    named: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        named[stem(image)].append(image)
    mask_of: dict[Path, Path] = {}
    lost = []
    for mask in masks:
        whose = named.get(stem(mask)) or named.get(bare(mask)) or []
        if len(whose) > 1:
            raise InputError(f"{mask}: the mask could be that of {whose[0].name} and of {whose[1].name}")
        if not whose:
            lost.append(mask)
            continue
        other = mask_of.setdefault(whose[0], mask)
        if other != mask:
            raise InputError(f"{whose[0]}: there are two masks of it, {other.name} and {mask.name}")
    if lost:
        others = f", and {len(lost) - 1} more have none" if len(lost) > 1 else ""
        raise InputError(f"{lost[0]}: the mask has no image of its name{others}")
    return [(image, mask_of.get(image)) for image in images]
