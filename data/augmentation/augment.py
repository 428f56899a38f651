"""Augmentation of prepared slices for training, with MONAI's transforms where it has them.

Left and right are swapped freely, because viewers show slices both ways. Up and down are not: a head is upside down
only where an export went wrong. Such slices have a small share of their own (`Augment.turn`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import monai.transforms as mt
import numpy as np
from monai.data.meta_obj import get_track_meta, set_track_meta
from numpy.typing import NDArray


class RandomJpeg(mt.RandomizableTransform):
    """JPEG compression at a random quality, so that its blocks do not reveal a picture's source."""

    def __init__(self, prob: float = 0.3, quality: tuple[int, int] = (30, 95)) -> None:
        super().__init__(prob)
        self.quality = quality

    def __call__(self, image_hw: NDArray[np.float32]) -> NDArray[np.float32]:
        self.randomize(None)
        if not self._do_transform:
            return image_hw
        quality = int(self.R.randint(*self.quality))
        gray = np.clip(np.rint(image_hw * 255), 0, 255).astype(np.uint8)
        _, encoded = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded: Any = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        return decoded.astype(np.float32) / 255


class RandomBorder(mt.RandomizableTransform):
    """A uniform bar of any gray level along some sides, as a careless crop leaves it."""

    def __init__(self, prob: float = 0.15, max_share: float = 0.06) -> None:
        super().__init__(prob)
        self.max_share = max_share

    def __call__(self, image_hw: NDArray[np.float32]) -> NDArray[np.float32]:
        self.randomize(None)
        if not self._do_transform:
            return image_hw
        framed = image_hw.copy()
        height, width = image_hw.shape
        level = self.R.choice([0.0, float(self.R.uniform())])
        top, bottom = (int(v) for v in self.R.uniform(0, self.max_share, 2) * height)
        left, right = (int(v) for v in self.R.uniform(0, self.max_share, 2) * width)
        framed[:top] = level
        framed[height - bottom :] = level
        framed[:, :left] = level
        framed[:, width - right :] = level
        return framed


class RandomRimRemoval(mt.RandomizableTransform):
    """Masking like skull stripping: the head's rim (skin, fat, skull) becomes air, except for a lesion there.

    It is done to healthy and sick slices alike, so that the missing skull of a stripped scan speaks for neither.
    """

    def __init__(self, prob: float = 0.2, share: tuple[float, float] = (0.04, 0.12)) -> None:
        super().__init__(prob)
        self.share = share

    def __call__(self, image_hw: NDArray[np.float32], mask_hw: NDArray[np.float32]) -> NDArray[np.float32]:
        self.randomize(None)
        if not self._do_transform:
            return image_hw
        radius = int(self.R.uniform(*self.share) * image_hw.shape[0])
        head = cv2.morphologyEx((image_hw > 0.04).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        inner = cv2.erode(head, disk, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        lesion = cv2.dilate((mask_hw > 0.5).astype(np.uint8), np.ones((7, 7), np.uint8))
        if inner.mean() < 0.1:
            return image_hw
        return image_hw * np.maximum(inner, lesion)


@contextmanager
def _no_metadata() -> Iterator[None]:
    """Run MONAI's transforms on plain tensors: its record of affines takes a quarter of the time and is not used."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class Augment:
    """The whole augmentation. The result depends on the seed alone, not on earlier calls.

    Args:
        strength: Scales rotation, zoom, shift and shear, and how often the appearance changes. A short run learns more
            with a low strength. A long run works on more scanners with full strength (docs/notebook/experiments.md).
        turn: Share of the slices that are turned by one, two or three right angles.
    """

    def __init__(self, strength: float = 1.0, turn: float = 0.0) -> None:
        both = ["image", "mask"]

        def often(share: float) -> float:
            return min(1.0, share * strength)

        self.turn = turn
        self._rim = RandomRimRemoval(often(0.2))
        self._space = mt.Compose(
            [
                mt.RandFlipd(both, prob=0.5, spatial_axis=1),
                mt.RandAffined(
                    both,
                    prob=0.9,
                    rotate_range=0.30 * strength,
                    scale_range=(0.12 * strength, 0.12 * strength),
                    translate_range=(12 * strength, 12 * strength),
                    shear_range=(0.06 * strength, 0.06 * strength),
                    mode=["bilinear", "nearest"],
                    padding_mode="zeros",
                ),
            ]
        )
        self._level = mt.Compose(
            [
                mt.RandSimulateLowResolution(
                    prob=often(0.25), zoom_range=(0.5, 1.0), downsample_mode="area", upsample_mode="bilinear"
                ),
                mt.RandAdjustContrast(prob=often(0.6), gamma=(0.6, 1.7)),
                # Changes the relative brightness of tissues as other sequences and vendors do; no gamma does that.
                mt.RandHistogramShift(prob=often(0.2), num_control_points=(4, 8)),
                mt.RandBiasField(prob=often(0.25), coeff_range=(0.0, 0.15)),
                mt.RandGaussianSmooth(prob=often(0.2), sigma_x=(0.4, 1.2), sigma_y=(0.4, 1.2)),
                mt.RandGaussianNoise(prob=often(0.25), std=0.04),
                mt.RandScaleIntensity(factors=0.15, prob=often(0.3)),
            ]
        )
        self._jpeg = RandomJpeg(often(0.3))
        self._border = RandomBorder(often(0.15))

    def __call__(
        self, image_hw: NDArray[np.uint8], mask_hw: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One prepared slice and its mask (0 and 1), augmented, both ``(size, size)``.

        Args:
            image_hw: The slice.
            mask_hw: Its mask. It moves with the slice.
            seed: The same seed gives the same result.
        """
        for number, transform in enumerate((self._rim, self._space, self._level, self._jpeg, self._border)):
            transform.set_random_state(seed=(seed * 5 + number) % 2**32)
        image = image_hw.astype(np.float32) / np.float32(255)
        mask: NDArray[Any] = mask_hw.astype(np.float32)
        stripped = self._rim(image, mask)
        with _no_metadata():
            moved: dict[str, Any] = self._space({"image": stripped[None], "mask": mask[None]})
            appearance = self._level(moved["image"])
        mask = np.asarray(moved["mask"])[0]
        level = np.clip(np.asarray(appearance)[0], 0, 1).astype(np.float32)
        level = self._border(self._jpeg(level))
        quarters = self._quarters(seed)
        gray = np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)
        return np.rot90(gray, quarters), np.rot90((mask > 0.5).astype(np.uint8), quarters)

    def _quarters(self, seed: int) -> int:
        """Number of right angles by which the slice is turned."""
        rng = np.random.default_rng((seed, 5))
        return int(rng.integers(1, 4)) if rng.uniform() < self.turn else 0
