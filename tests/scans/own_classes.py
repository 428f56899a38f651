"""Data sets of phantoms whose classes are not those of the shipped classifier."""

from __future__ import annotations

from pathlib import Path

from tests.scans.phantoms import small_slice
from tests.scans.pictures import save

SEVEN = ("Astrocitoma", "Ependimoma", "Glioma T1C+", "Meningioma", "NORMAL", "Neurocitoma", "Schwannoma")
LOOKS = ("glioma", "meningioma", "pituitary")


def class_folders(root: Path, names, slices: int, patients: bool = False, split: str = "") -> Path:
    """Folders of phantom slices, one for each name; those of healthy heads are called as the table knows them."""
    for number, name in enumerate(names):
        look = "no_tumor" if name.lower() in ("normal", "no", "healthy") else LOOKS[number % 3]
        for k in range(slices):
            folder = root / split / name / (f"P{number}_{k}" if patients else "")
            save(folder / f"{k}.png", small_slice(50 * number + k + 7000 * (split == "Testing"), look).image)
    return root


def seven_classes(root: Path) -> Path:
    """Seven classes in Training and Testing, as sets of Kaggle have them, with a folder for each patient."""
    class_folders(root, SEVEN, 6, patients=True, split="Training")
    return class_folders(root, SEVEN, 2, patients=True, split="Testing")


def yes_or_no(root: Path) -> Path:
    """Slices with and without a tumor, 12 of each."""
    return class_folders(root, ("yes", "no"), 12)


def tumors_only(root: Path) -> Path:
    """Three tumor types, 8 slices of each, and no healthy head."""
    return class_folders(root, ("astro", "ependy", "meningioma"), 8)
