"""Phantoms in the layout of the LGG set, to try the protocol without the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.phantom import phantom_volume

_LOWEST_MM, _HIGHEST_MM = -37.0, 73.0  # below and above every phantom glioma
_PIXELS = 96
_PIXEL_MM = 2.3


def write_lgg_phantoms(folder: Path, patients: int = 8, slices: int = 6, seed: int = 0) -> None:
    """Write ``TCGA_PH_NNNN_date/*_k.tif`` and ``*_k_mask.tif`` as `data.datasets.lgg` reads them.

    Pictures have three channels, pre-contrast, FLAIR and post-contrast, of one phantom head (`data.phantom`) each
    patient; the lesion is in some slices, never in the first and last. Masks are 0 and 255.

    Args:
        folder: Where to write; it is made if it is not there.
        patients: Number of patients.
        slices: Slices each patient, 5 or more, evenly spaced from the skull base to the vertex.
        seed: The same seed gives the same files.

    Raises:
        InputError: Fewer than one patient or five slices.
    """
    if patients < 1 or slices < 5:
        raise InputError(f"{patients} patients with {slices} slices: at least 1 patient and 5 slices are needed")
    for number in range(patients):
        name = f"TCGA_PH_{number + 1:04d}_{20000101 + number}"
        pictures, masks = _patient(seed + 1000 * number, slices)
        for k, (picture, mask) in enumerate(zip(pictures, masks, strict=True), start=1):
            _save(picture, folder / name / f"{name}_{k}.tif")
            _save(mask * np.uint8(255), folder / name / f"{name}_{k}_mask.tif")


def _patient(seed: int, slices: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures ``(slices, rows, columns, 3)`` and masks ``(slices, rows, columns)``, anterior up."""
    gap_mm = (_HIGHEST_MM - _LOWEST_MM) / (slices - 1)
    phantom = phantom_volume(seed, "glioma", (_PIXELS, _PIXELS, slices), (_PIXEL_MM, _PIXEL_MM, gap_mm))
    scan = phantom.scan
    post = np.stack([scan.slice(k) for k in range(slices)]) / 1500
    masks = np.stack([scan.view(phantom.mask, k) for k in range(slices)])
    lesion = masks > 0
    head = post > 0.05
    pre = np.where(lesion, 0.7 * post, 0.85 * post)
    # On FLAIR the lesion is brightest, gray matter brighter than white, and fluid dark.
    flair = np.where(head, np.where(post > 0.2, np.clip(0.75 - post, 0.15, None), 0.5 * post), post)
    flair = np.where(lesion, 0.8 + 0.2 * post, flair)
    channels = np.stack([pre, flair, post], axis=-1) * _coil(seed)[None, :, :, None]
    return np.rint(np.clip(channels, 0, 1) * 255).astype(np.uint8), masks


def _coil(seed: int) -> NDArray[np.float64]:
    """A patient's uneven brightness ``(rows, columns)``: low slices of two phantoms would else count as copies."""
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, _PIXELS)] * 2, indexing="ij")
    waves = np.random.default_rng(seed).uniform(0, 2 * np.pi, (3, 2))
    shade = sum(np.cos(5 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase) for angle, phase in waves)
    return 0.8 * (1 + 0.2 * shade)


def _save(pixels: NDArray[Any], path: Path) -> None:
    from PIL import Image

    with whole_file(path) as part:
        Image.fromarray(pixels).save(part)
