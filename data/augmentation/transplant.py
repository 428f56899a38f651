"""Lesions moved between heads in training: what is left as a sign of a tumor is the tumor.

In public sets healthy and sick slices come from different scanners, and sick ones alone have contrast agent. A network
that learns from them as they are knows the kind of picture before it has seen a lesion. Three operations on prepared
slices take that knowledge from it:

- *heal*: a sick slice's lesion is covered with the same place of another head; the slice is now healthy.
- *plant*: a healthy slice gets the lesion of another head, at its own place; the slice is now sick.
- *graft*: a piece without a lesion is exchanged, in healthy and sick alike; the label stays, so that the seams of the
  other two say nothing.

Planting is TumorCP (J. Yang et al., MICCAI 2021) and CarveMix (X. Zhang et al., MICCAI 2021) with the tones of the
target; healing is its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR

_THUMB = 16  # side of the thumbnails by which alike heads are found: same plane, same height
_CANDIDATES = 64  # donors looked at; the best of all would always be the same few
_LEAST_PX = 40  # smaller lesions are hardly seen
_GRAFTED = 1 / 3  # of the transplants leave the label
_INSIDE = 0.9  # of a planted region has to lie in the head
Transplanted = tuple[NDArray[np.uint8], NDArray[np.uint8], int, int]  # image, mask, label, whose outline


class Donors:
    """The training slices whose lesions are known, and what can be made of each with a piece of another patient's.

    Args:
        images: ``(n, size, size)`` uint8, prepared.
        masks: ``(n, size, size)`` uint8, 0 and 1.
        labels: ``(n,)`` index into `data.labels.CLASSES`. A slice with a tumor's label and no mask is left as it is and
            gives nothing.
        patients: ``(n,)`` whose slice it is; nobody is donor to themselves.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        labels: NDArray[np.int64],
        patients: Sequence[str],
    ) -> None:
        self.images, self.masks, self.labels = images, masks, labels
        self.patients = np.asarray(patients)
        area = masks.reshape(len(masks), -1).sum(axis=1, dtype=np.int64)
        self.sick = area >= _LEAST_PX
        self.free = (area == 0) & (labels == NO_TUMOR)
        self._sick, self._known = np.flatnonzero(self.sick), np.flatnonzero(self.sick | self.free)
        small = np.stack([cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA) for image in images])
        thumbs = small.reshape(len(images), -1).astype(np.float32)
        thumbs -= thumbs.mean(axis=1, keepdims=True)
        self._thumbs = thumbs / np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)

    def transplant(self, index: int, seed: int) -> Transplanted:
        """Heal, plant or graft slice `index`; returns image, mask, label, and which slice's outline the mask is,
        unchanged where no donor fits.

        Args:
            index: Which slice.
            seed: The same seed gives the same picture.
        """
        rng = np.random.default_rng(seed)
        kept = self.images[index], self.masks[index], int(self.labels[index]), index
        if not (self.sick[index] or self.free[index]) or len(self._sick) == 0:
            return kept
        if rng.uniform() < _GRAFTED:
            return self._graft(index, rng) or kept
        return (self._heal(index, rng) if self.sick[index] else self._plant(index, rng)) or kept

    def _heal(self, index: int, rng: np.random.Generator) -> Transplanted | None:
        region = _grown(self.masks[index], int(rng.integers(4, 12)))
        donor = self._donor(index, self._known, rng, without=region)
        if donor is None:
            return None
        image = _moved(self.images[index], self.images[donor], region, rng)
        return image, np.zeros_like(self.masks[index]), NO_TUMOR, index

    def _plant(self, index: int, rng: np.random.Generator) -> Transplanted | None:
        donor = self._donor(index, self._sick, rng)
        if donor is None:
            return None
        region = _grown(self.masks[donor], int(rng.integers(2, 8)))
        if (self.images[index][region > 0] > 0).mean() < _INSIDE:
            return None
        image = _moved(self.images[index], self.images[donor], region, rng)
        return image, self.masks[donor], int(self.labels[donor]), donor

    def _graft(self, index: int, rng: np.random.Generator) -> Transplanted | None:
        shape = self._donor(index, self._sick, rng)
        if shape is None:
            return None
        region = _grown(self.masks[shape], int(rng.integers(2, 12)))
        if (region & _grown(self.masks[index], 3)).any():
            return None
        donor = self._donor(index, self._known, rng, without=region)
        if donor is None:
            return None
        image = _moved(self.images[index], self.images[donor], region, rng)
        return image, self.masks[index], int(self.labels[index]), index

    def _donor(
        self, index: int, among: NDArray[np.int64], rng: np.random.Generator, without: NDArray[np.uint8] | None = None
    ) -> int | None:
        """The most alike of some random slices of other patients, with no lesion in a region; none is found where the
        likest head does not look alike at all."""
        drawn = rng.choice(among, min(_CANDIDATES, len(among)), replace=False)
        drawn = drawn[self.patients[drawn] != self.patients[index]]
        likeness = self._thumbs[drawn] @ self._thumbs[index]
        for k in np.argsort(-likeness):
            if likeness[k] < 0.5:
                return None
            if without is None or not (self.masks[drawn[k]] & without).any():
                return int(drawn[k])
        return None


def expected_counts(
    labels: NDArray[np.int64], masks: NDArray[np.uint8], share: float, n_classes: int
) -> NDArray[np.float64]:
    """How many slices of each class an epoch shows, on average, where this share of them is transplanted.

    Args:
        labels: ``(n,)`` class index of the training slices.
        masks: ``(n, size, size)`` their lesions; a sick slice without one takes no part.
        share: Of the slices that are transplanted.
        n_classes: Length of the answer.
    """
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    outlined = masks.reshape(len(masks), -1).sum(axis=1, dtype=np.int64) >= _LEAST_PX
    sick = np.bincount(labels[outlined & (labels != NO_TUMOR)], minlength=n_classes).astype(np.float64)
    if not sick.any():
        return counts
    moved = share * (1 - _GRAFTED)
    planted = counts[NO_TUMOR] * moved
    shown = counts - sick * moved + planted * sick / sick.sum()
    shown[NO_TUMOR] += sick.sum() * moved - planted
    return shown


def _grown(mask_hw: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask_hw, disk), np.uint8)


def _moved(
    target_hw: NDArray[np.uint8], donor_hw: NDArray[np.uint8], region_hw: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The target with the donor's region, in the tones that the target has around it, and without a sharp seam."""
    ring = (_grown(region_hw, 8) > region_hw) & (target_hw > 0) & (donor_hw > 0)
    patch = donor_hw.astype(np.float32)
    if ring.sum() >= 20:
        there, here = donor_hw[ring].astype(np.float32), target_hw[ring].astype(np.float32)
        gain = float(np.clip((here.std() + 4) / (there.std() + 4), 0.7, 1.4))
        patch = (patch - np.median(there)) * gain + np.median(here)
    share = cv2.GaussianBlur(region_hw.astype(np.float32), (0, 0), float(rng.uniform(1, 3.5)))
    mixed = target_hw + share * (patch - target_hw)
    mixed[(target_hw == 0) & (donor_hw == 0)] = 0
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)
