"""Class, split and patient of scans by the names of their folders, and the mask of each picture by its name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.datasets.listing import Listing
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.data.labels import TUMOR
from tumorlens.data.spellings import canonical_label, known_label, without_sequence

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

# Folders of a sequence, a plane or a size, which hold a number and are not a patient's.
_SERIES = re.compile(r"t[12][a-z+*]*|flair|dwi|axial|coronal|sagittal|ax|cor|sag|images?|imgs|\d+x\d+")
_SEQUENCE = re.compile(r"\bt[12][a-z]*\b|\bc\b")  # in the name of a class: "Astrocitoma T1C+"
_GRADE = re.compile(r"(who|grade|stage|type|class|level|g) ?\d")  # of a class, which is not the number of a patient
_COUNT = re.compile(r"\d{1,4}")  # a running number; a longer one is an identifier of the clinic or the set
_MASK_FOLDER = re.compile(r"(masks?|labels?|segs?|segmentations?|annotations?)\d*")
_MASK_BESIDE = re.compile(r"[-_](mask|seg|label)$")
_MASK_APART = re.compile(r"[-_]?(mask|seg|label)$")


@dataclass(frozen=True)
class Place:
    """Class, split and patient that the folders above a scan name.

    Attributes:
        label: The class, or `data.labels.TUMOR`; empty where no folder is named for a class.
        split: ``"train"``, ``"validation"`` or ``"test"``, or empty.
        patient: The folder below the class folder that is named for a patient, or empty.
        sequence: The sequence that the class folder's name ends with, one of `data.labels.SEQUENCES`, or empty.
    """

    label: str = ""
    split: str = ""
    patient: str = ""
    sequence: str = ""


def scans_below(root: Path) -> dict[Path, list[Path]]:
    """The scans of a folder and of each folder below it, by folder, in the order of the paths. Folders without scans
    are left out."""
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir())]
    return {folder: scans for folder in folders if (scans := scans_in(folder))}


def scans_in(folder: Path) -> list[Path]:
    """The files of a folder that have the name of a scan, without hidden ones, in the order of their names."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES) and p.name[0] != "."
    )


def place_of(folder: Path, root: Path, label_map: Mapping[str, str] | None = None) -> Place:
    """Class, split and patient by the names of the folders from a set's root down to one of its folders.

    The class folder nearest the root decides. Below it, the first folder with a number in its name is a patient
    (``pituitary/PI_00``, ``glioma/ME07``), unless the name is that of a sequence, a plane or a size (``glioma/T1``).
    Sets start counting again in each folder, so the name of a patient with a short number begins with the folders
    above it.

    Raises:
        InputError: A folder below a class folder is named for another class, for masks, or for nothing that is known.
            The message does not name the whole path.
    """
    parts = folder.relative_to(root).parts
    split = next((SPLIT_FOLDERS[part.lower()] for part in parts if part.lower() in SPLIT_FOLDERS), "")
    labels = [class_named(part, label_map) for part in parts]
    typed = next((name for name in labels if name not in ("", TUMOR)), "")
    label = typed or next(filter(None, labels), "")  # tumor/glioma says more than tumor
    if not label:
        return Place(split=split)
    top = labels.index(label)
    patient = ""
    for at, (name, other) in enumerate(zip(parts, labels, strict=True)):
        if at <= top:
            continue
        plain = _letters(name)
        if is_mask_folder(name):
            raise InputError(f"masks of class folders lie next to their pictures (7_mask.png), not in {name}")
        if plain in SPLIT_FOLDERS or _SERIES.fullmatch(plain):
            continue
        if re.search(r"\d", name):
            patient = patient or ("/".join(parts[: at + 1]) if _COUNT.fullmatch(plain) else name)
        elif other not in ("", label):
            raise InputError(f"the folder {name} in {parts[top]} says {other}, the outer one {label}")
        elif not other and not patient:
            raise InputError(
                f"{name} is not one of {', '.join(SPLIT_FOLDERS)}, and not the folder of a patient, whose name in "
                f"{parts[top]} has a number"
            )
    return Place(label, split, patient, without_sequence(parts[top])[1])


def class_named(name: str, label_map: Mapping[str, str] | None = None) -> str:
    """The class for which a folder is known to be named, or an empty string; see `classes_by_folder`."""
    return known_label(name, label_map)


def classes_by_folder(
    folders: Sequence[Path], root: Path, label_map: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The classes of folders whose names are in no table, by the names of the folders.

    Such a folder is that of a class where it lies beside folders of known classes, or where it and its neighbors, two
    or more, lie in the root, in one folder of it or in the folders of a split, and are not called as patients are: a
    patient's name has a number that is neither that of a grade nor that of a sequence (``grade_2``, ``Tumor T1C+``).

    Args:
        folders: Those that hold scans.
        root: The data folder.
        label_map: The user's own label names -> classes.
    """
    chains = [_named_parts(folder.relative_to(root).parts) for folder in folders if folder != root]
    chains = [chain for chain in chains if chain]
    known = [[class_named(name, label_map) for name in chain] for chain in chains]
    levels = Counter(_class_level(labels) for labels in known if any(labels))
    if levels:
        level = levels.most_common(1)[0][0]
        chosen = [
            chain[level] for chain, labels in zip(chains, known, strict=True) if len(chain) > level and not any(labels)
        ]
        # A folder of tumors may be divided by type.
        chosen += [
            chain[at + 1]
            for chain, labels in zip(chains, known, strict=True)
            if (at := _class_level(labels)) >= 0 and labels[at] == TUMOR and len(chain) > at + 1 and not labels[at + 1]
        ]
        names = [name for name in chosen if not is_patient_name(name)]
    else:
        level = 0
        while (
            chains and len({chain[level : level + 1] for chain in chains}) == 1 and all(len(c) > level for c in chains)
        ):
            level += 1
        names = [chain[level] for chain in chains if len(chain) > level]
        if len(set(names)) < 2 or any(map(is_patient_name, names)):
            return {}
    return {name: label for name in dict.fromkeys(names) if (label := _own_class(name))}


def _named_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """The folders of a path that may be named for a class or a patient."""
    plain = [(part, _letters(part)) for part in parts]
    return tuple(
        part
        for part, letters in plain
        if letters not in SPLIT_FOLDERS and not _SERIES.fullmatch(letters) and not is_mask_folder(part)
    )


def _class_level(labels: Sequence[str]) -> int:
    """The place of the folder that `place_of` takes the class from, among those of a path; -1 if none is named for
    one."""
    typed = next((at for at, label in enumerate(labels) if label not in ("", TUMOR)), -1)
    return typed if typed >= 0 else next((at for at, label in enumerate(labels) if label), -1)


def is_patient_name(name: str) -> bool:
    """Whether a folder is called as those of patients are: with a number."""
    plain = re.sub(r"[\W_]+", " ", name.lower())
    return bool(re.search(r"\d", _GRADE.sub("", _SEQUENCE.sub("", plain))))


def _own_class(name: str) -> str:
    try:
        return canonical_label(name)
    except InputError:
        return ""


def is_mask_folder(name: str) -> bool:
    """Whether a folder is named for masks, such as ``masks`` or ``Segmentation_2``."""
    return bool(_MASK_FOLDER.fullmatch(_letters(name)))


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def stem(path: Path) -> str:
    """A scan's name in lower case, without its ending."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[0]


def is_mask_name(path: Path) -> bool:
    """Whether a file among pictures is named as the mask of one: ``7_mask.png``, ``7-seg.nii.gz``, ``7_label.png``."""
    return bool(_MASK_BESIDE.search(stem(path)))


def with_masks(images: Sequence[Path], masks: Sequence[Path], listing: Listing) -> list[tuple[Path, Path | None]]:
    """Pictures, each with the mask that has its stem, with or without ``_mask``, or with None.

    Masks without a picture, masks of two pictures and second masks of a picture are reported to the listing.
    """
    images_of: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        images_of[stem(image)].append(image)
    mask_of: dict[Path, Path] = {}
    for mask in masks:
        owners = images_of.get(stem(mask)) or images_of.get(_MASK_APART.sub("", stem(mask))) or []
        if not owners:
            listing.report(mask, "missing_file", "the mask has no image of its name")
        elif len(owners) > 1:
            text = f"the mask could be that of {owners[0].name} and of {owners[1].name}"
            listing.report(mask, "ambiguous_mask", text)
        elif owners[0] in mask_of:
            text = f"there are two masks of it, {mask_of[owners[0]].name} and {mask.name}"
            listing.report(owners[0], "ambiguous_mask", text)
        else:
            mask_of[owners[0]] = mask
    return [(image, mask_of.get(image)) for image in images]
