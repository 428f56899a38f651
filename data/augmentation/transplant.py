"""Transplants: lesions moved between heads in training, so that only the tumor itself is a sign of a tumor.

In public data sets healthy and sick slices come from different scanners, and only sick ones have contrast agent. A
network that learns from them as they are recognizes the kind of picture instead of the lesion. Three operations on
prepared slices prevent that:

- *heal*: a sick slice's lesion is covered with the same place of another head. The slice is now healthy.
- *plant*: a healthy slice gets the lesion of another head, at the same place. The slice is now sick.
- *graft*: a piece without a lesion is exchanged, in healthy and sick slices alike. The label stays. The seams of the
  other two operations therefore do not reveal the label.

Planting is TumorCP (J. Yang et al., MICCAI 2021) and CarveMix (X. Zhang et al., MICCAI 2021) in the target's gray
levels; healing is its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR

_THUMB = 16  # side of the thumbnails by which similar heads are found: same plane, same height
_CANDIDATES = 64  # donors to choose from; the best of all slices would always be the same few
_LIKENESS = 0.5  # least correlation of a donor's thumbnail
_LEAST_PX = 40  # smaller lesions are hardly visible
_GRAFTED = 1 / 3  # share of the transplants that leave the label
_INSIDE = 0.9  # share of a planted region that must lie in the head
Transplanted = tuple[NDArray[np.uint8], NDArray[np.uint8], int, int]  # image, mask, label, index of the mask's slice


class Donors:
    """Transplants between training slices of different patients.

    Args:
        images: ``(n, size, size)`` uint8, prepared.
        masks: ``(n, size, size)`` uint8; non-zero is lesion, and the values move with it.
        labels: ``(n,)`` number of each label. A slice with a tumor's label and no mask takes no part.
        patients: ``(n,)``; no patient is their own donor.
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
        area = _area_px(masks)
        self.sick = area >= _LEAST_PX
        self.free = (area == 0) & (labels == NO_TUMOR)
        self._sick, self._known = np.flatnonzero(self.sick), np.flatnonzero(self.sick | self.free)
        small = np.stack([cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA) for image in images])
        thumbs = small.reshape(len(images), -1).astype(np.float32)
        thumbs -= thumbs.mean(axis=1, keepdims=True)
        self._thumbs = thumbs / np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)

    def transplant(self, index: int, seed: int) -> Transplanted:
        """Image, mask and label of a slice after a transplant, and the index of the slice that the mask comes from.

        They are unchanged if no donor fits.

        Args:
            index: The slice to heal, plant or graft.
            seed: The same seed gives the same picture.
        """
        rng = np.random.default_rng(seed)
        unchanged = self.images[index], self.masks[index], int(self.labels[index]), index
        if not (self.sick[index] or self.free[index]) or len(self._sick) == 0:
            return unchanged
        if rng.uniform() < _GRAFTED:
            return self._graft(index, rng) or unchanged
        return (self._heal(index, rng) if self.sick[index] else self._plant(index, rng)) or unchanged

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
        """The most similar of some random slices of other patients, without a lesion in a region; None if even that one
        is not similar."""
        candidates = rng.choice(among, min(_CANDIDATES, len(among)), replace=False)
        candidates = candidates[self.patients[candidates] != self.patients[index]]
        likeness = self._thumbs[candidates] @ self._thumbs[index]
        for k in np.argsort(-likeness):
            if likeness[k] < _LIKENESS:
                return None
            if without is None or not self.masks[candidates[k]][without > 0].any():
                return int(candidates[k])
        return None


def expected_counts(
    labels: NDArray[np.int64],
    masks: NDArray[np.uint8],
    share: float,
    n_classes: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The mean number of slices of each class that an epoch with transplants shows, ``(n_classes,)``.

    Args:
        labels: ``(n,)`` class index of the training slices; slices of no class do not count.
        masks: ``(n, size, size)`` their lesions. A sick slice without one takes no part.
        share: Share of the slices that are transplanted.
        n_classes: Number of classes.
        weights: ``(n,)`` how often an epoch shows each slice; once by default.
    """
    shows = np.ones(len(labels)) if weights is None else weights
    typed = (labels >= 0) & (labels < n_classes)

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(labels[chosen], shows[chosen], n_classes).astype(np.float64)

    counts = count(typed)
    outlined = _area_px(masks) >= _LEAST_PX
    sick = count(typed & outlined & (labels != NO_TUMOR))
    if not sick.any():
        return counts
    moved = share * (1 - _GRAFTED)
    planted = counts[NO_TUMOR] * moved
    shown = counts - sick * moved + planted * sick / sick.sum()
    shown[NO_TUMOR] += sick.sum() * moved - planted
    return shown


def _area_px(masks_nhw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """``(n,)`` pixels of lesion; counted one by one, because all at once need the masks' memory again."""
    return np.array([np.count_nonzero(mask) for mask in masks_nhw], np.int64)


def _grown(mask_hw: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """The lesion, 0 and 1, with a rim of some pixels."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate((mask_hw != 0).astype(np.uint8), disk), np.uint8)


def _moved(
    target_hw: NDArray[np.uint8], donor_hw: NDArray[np.uint8], region_hw: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The target with the donor's region, in the gray levels of its new surroundings and without a sharp seam."""
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
