"""Volumes whose lesions have parts, as those of BraTS: edema, in it the core, and in that what takes up contrast."""

import nibabel as nib
import numpy as np

from tumorlens.data.phantom import phantom_volume

BRATS = ("whole=1,2,4", "core=1,4", "enhancing=4")
SHAPE, SPACING_MM = (64, 72, 8), (2.6, 2.8, 9.0)
_LEVELS = {2: 260, 1: 40, 4: 1400}  # of edema, of the core, and of what takes up contrast agent, in the scan
_RADII = {2: 1.0, 1: 0.7, 4: 0.42}  # as shares of the lesion's


def brats_volume(seed):
    """A head with nested ellipsoids, and their labels 2, 1 and 4 from the outside in."""
    head = phantom_volume(seed, "no_tumor", SHAPE, SPACING_MM)
    rng = np.random.default_rng(seed)
    middle = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3) * (9, 10, 1)
    half_axes = np.array([13, 12, 3.2]) * rng.uniform(0.85, 1.15, 3)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    distance = np.sqrt((((places - middle) / half_axes) ** 2).sum(axis=-1))
    image, labels = head.image.copy(), np.zeros(SHAPE, np.uint8)
    for label, radius in _RADII.items():
        inside = distance < radius
        labels[inside] = label
        image[inside] = (_LEVELS[label] + rng.normal(0, 25, inside.sum())).clip(1).astype(np.int16)
    return image, labels, head.affine


def brats_set(folder, count, seed=0, relabel=None):
    """A data set ``images/`` + ``masks/`` of such volumes; returns its folder.

    Args:
        folder: A new folder.
        count: Number of volumes, each of a patient.
        seed: Of the first volume.
        relabel: Applied to each mask.
    """
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for k in range(count):
        image, labels, affine = brats_volume(seed + k)
        nib.save(nib.Nifti1Image(image, affine), folder / "images" / f"v{k:02d}.nii.gz")
        labels = labels if relabel is None else relabel(labels)
        nib.save(nib.Nifti1Image(labels, affine), folder / "masks" / f"v{k:02d}.nii.gz")
    return folder
