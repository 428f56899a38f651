"""Augmentation of prepared slices for training, in OpenCV: 1 to 1.5 ms a slice of 192 pixels.

What may differ between two pictures of one head must not change the answer: scanner, sequence, skull, field of view,
lettering. So each of these is drawn at random. Left and right are swapped freely, because viewers show slices both
ways. Up and down are not: a head is upside down only where an export went wrong. Such slices have a small share of
their own (`Augment.turn`).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_LETTERS = tuple("ABCDEFGHILMNPRSTVW0123456789:./-")
_TISSUE = 10  # gray levels from which a pixel of a prepared slice is head and not air

Image = NDArray[np.uint8]
Rng = np.random.Generator


class Augment:
    """The whole augmentation. The result depends on the seed alone, not on earlier calls.

    Args:
        strength: Scales rotation, zoom, shift and shear, and how often the appearance changes. A short run learns more
            with a low strength. A long run works on more scanners with full strength (docs/notebook/experiments.md).
        turn: Share of the slices that are turned by one, two or three right angles.
    """

    def __init__(self, strength: float = 1.0, turn: float = 0.0) -> None:
        self.strength, self.turn = strength, turn

    def __call__(self, image_hw: Image, mask_hw: Image, seed: int, cut: bool = True) -> tuple[Image, Image]:
        """One prepared slice and its mask (non-zero is lesion), augmented, both ``(size, size)``.

        Args:
            image_hw: The slice.
            mask_hw: Its mask. It moves with the slice; no values are mixed.
            seed: The same seed gives the same result.
            cut: Whether the field of view may end within the head.
        """
        rng = np.random.default_rng(seed)

        def happens(share: float) -> bool:
            return bool(rng.uniform() < min(1.0, share * self.strength))

        image = image_hw
        if happens(0.15):
            image = _without_rim(image, mask_hw, rng)
        if happens(0.12) and cut:
            image = _cut_field(image, mask_hw, rng)
        image = cv2.LUT(image, self._gray_levels(rng))
        image, mask = self._move(image, mask_hw, rng)
        if happens(0.25):
            image = _coarser(image, rng)
        if happens(0.2):
            image = _shaded(image, rng)
        if happens(0.2):
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
        if happens(0.25):
            image = _noisy(image, rng)
        if happens(0.1):
            image = _lettered(image, rng)
        if happens(0.1):
            image = _framed(image, rng)
        if happens(0.3):
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))]
            image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_GRAYSCALE))
        return image, mask

    def _move(self, image: Image, mask: Image, rng: Rng) -> tuple[Image, Image]:
        """Both, mirrored, turned, rotated, zoomed, shifted and sheared in one step."""
        size = len(image)
        middle = (size - 1) / 2
        quarters = int(rng.integers(1, 4)) * int(rng.uniform() < self.turn)
        # Rounded, so that right angles and mirrors move whole pixels and no more.
        angle = rng.uniform(-0.25, 0.25) * self.strength
        turned = np.round([[np.cos(quarters * np.pi / 2), -np.sin(quarters * np.pi / 2)]])[0]
        cosine, sine = np.cos(angle), np.sin(angle)
        zoom = 1 + rng.uniform(-0.15, 0.15, 2) * self.strength
        shear = rng.uniform(-0.06, 0.06) * self.strength
        shift = rng.uniform(-0.06, 0.06, 2) * self.strength * size
        mirror = -1.0 if rng.uniform() < 0.5 else 1.0
        linear = (
            np.array([[turned[0], turned[1]], [-turned[1], turned[0]]])
            @ np.array([[cosine, -sine], [sine, cosine]])
            @ np.array([[zoom[0], shear], [0, zoom[1]]])
            @ np.diag([mirror, 1.0])
        )
        offset = middle - linear @ [middle, middle] + shift
        matrix = np.column_stack([linear, offset])
        moved = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
        return np.asarray(moved), np.asarray(cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST))

    def _gray_levels(self, rng: Rng) -> Image:
        """A look-up table of all changes to the gray level: ``(256,)``. Air stays air.

        Another sequence gives tissues another order of brightness. A monotone table changes their distances, a table
        that rises and falls changes their order, as between T1 and T2.
        """
        level = np.linspace(0, 1, 256)
        draw = rng.uniform()
        if draw < 0.08 * self.strength:
            knots = int(rng.integers(4, 7))
            level = np.interp(level, np.linspace(0, 1, knots), [0.0, *rng.uniform(0.05, 1, knots - 1)])
        elif draw < 0.14 * self.strength:
            level = np.where(level * 255 < _TISSUE, level, 1 - level * rng.uniform(0.75, 1))
        elif draw < 0.4 * self.strength:
            steps = rng.exponential(1, int(rng.integers(4, 8)))
            knots_at = np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])
            level = np.interp(level, np.linspace(0, 1, len(knots_at)), knots_at)
        if rng.uniform() < 0.6 * self.strength:
            level = level ** np.exp(rng.uniform(-0.55, 0.55))
        if rng.uniform() < 0.3 * self.strength:
            level = level * rng.uniform(0.8, 1.2)
        return np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)


def _without_rim(image: Image, mask: Image, rng: Rng) -> Image:
    """Masking like skull stripping: the head's rim (skin, fat, skull) becomes air, except for an outlined lesion there.

    It is done to healthy and sick slices alike, so that the missing skull of a stripped scan speaks for neither.
    """
    head = cv2.morphologyEx((image > _TISSUE).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    depth = cv2.distanceTransform(cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[1:-1, 1:-1]
    inner = depth > rng.uniform(0.04, 0.12) * len(image)
    if inner.mean() < 0.1:
        return image
    return np.where(inner | (_grown(mask, 7) > 0), image, 0).astype(np.uint8)


def _cut_field(image: Image, mask: Image, rng: Rng) -> Image:
    """A field of view that ends within the head, as where the neck is cut; no outlined lesion is lost."""
    size = len(image)
    quarters = int(rng.choice([0, 0, 0, 1, 2, 3]))  # mostly at the bottom
    upright, lesion = np.rot90(image, quarters).copy(), np.rot90(mask, quarters)
    rows = np.flatnonzero(lesion.any(axis=1))
    first = int(size * rng.uniform(0.6, 0.95))
    upright[max(first, int(rows[-1]) + 4 if len(rows) else 0) :] = 0
    return np.rot90(upright, -quarters).copy()


def _coarser(image: Image, rng: Rng) -> Image:
    """Fewer pixels, enlarged again; sometimes along one axis only, as in planes across thick slices."""
    size = len(image)
    rows = int(size * rng.uniform(0.35, 0.9))
    columns = rows if rng.uniform() < 0.6 else size
    if rng.uniform() < 0.5:
        rows, columns = columns, rows
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def _shaded(image: Image, rng: Rng) -> Image:
    """A smooth field of brightness, as a receiver coil leaves it."""
    coarse = rng.uniform(0.7, 1.25, (3, 3)).astype(np.float32)
    field = cv2.resize(coarse, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.multiply(image, field, dtype=cv2.CV_8U), np.uint8)


def _noisy(image: Image, rng: Rng) -> Image:
    """Noise of Rician distribution (H. Gudbjartsson and S. Patz, Magn Reson Med 1995), sometimes coarse-grained."""
    noise = rng.standard_normal((2, *image.shape), np.float32) * np.float32(rng.uniform(3, 16))
    if rng.uniform() < 0.3:
        noise = np.stack([cv2.GaussianBlur(part, (0, 0), 0.8) * 2 for part in noise])
    return np.asarray(np.clip(cv2.magnitude(image.astype(np.float32) + noise[0], noise[1]), 0, 255), np.uint8)


def _lettered(image: Image, rng: Rng) -> Image:
    """Lines of letters and digits at the borders, as viewers write them."""
    written, size = image.copy(), len(image)
    for _ in range(int(rng.integers(1, 4))):
        text = "".join(rng.choice(_LETTERS, int(rng.integers(1, 9))))
        place = int(rng.uniform(0, 0.8) * size), int(size * (rng.uniform(0.04, 0.12) if rng.uniform() < 0.5 else 0.97))
        cv2.putText(written, text, place, cv2.FONT_HERSHEY_PLAIN, rng.uniform(0.5, 1), int(rng.integers(120, 256)), 1)
    return written


def _framed(image: Image, rng: Rng) -> Image:
    """A line around the picture, or bars of any gray level along its sides, as a careless crop leaves them."""
    framed, size = image.copy(), len(image)
    level = int(rng.integers(0, 256))
    if rng.uniform() < 0.3:
        inset = int(rng.integers(0, size // 16))
        cv2.rectangle(framed, (inset, inset), (size - 1 - inset, size - 1 - inset), level, int(rng.integers(1, 3)))
        return framed
    top, bottom, left, right = (int(width) for width in rng.uniform(0, 0.06, 4) * size)
    framed[:top] = framed[size - bottom :] = level
    framed[:, :left] = framed[:, size - right :] = level
    return framed


def _grown(mask: Image, side: int) -> Any:
    return cv2.dilate((mask > 0).astype(np.uint8), np.ones((side, side), np.uint8))
