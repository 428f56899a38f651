"""Samples -> prepared arrays -> batches for training, and arrays -> network inputs for both stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data.errors import InputError
from data.labels import CLASSES
from data.normalization import IMAGENET, Normalization
from data.preprocess import Preprocess
from data.samples import Sample, read_sample

if TYPE_CHECKING:
    from data.augment import Augment
    from data.transplant import Donors


def to_batch(images_nhw: NDArray[np.uint8] | torch.Tensor, normalization: Normalization = IMAGENET) -> torch.Tensor:
    """Prepared slices ``(n, size, size)`` uint8 -> normalised ``(n, 3, size, size)`` float32, channels last."""
    images = torch.as_tensor(images_nhw).float().div_(255)
    mean = torch.tensor(normalization.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(normalization.std, device=images.device).view(1, 3, 1, 1)
    batch = (images[:, None] - mean) / std
    return batch.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class PreparedSet:
    """Slices as the networks see them.

    Attributes:
        samples: Where they came from.
        images: ``(n, size, size)`` uint8.
        masks: ``(n, size, size)`` uint8, 0 and 1; 0 where the sample has no mask.
        labels: ``(n,)`` index into `data.labels.CLASSES`, -1 where the set gives none.
    """

    samples: list[Sample]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices: Sequence[int]) -> PreparedSet:
        picked = list(indices)
        return PreparedSet(
            [self.samples[i] for i in picked], self.images[picked], self.masks[picked], self.labels[picked]
        )


def prepare(
    samples: Sequence[Sample], preprocess: Preprocess, progress: Callable[[int], None] | None = None
) -> PreparedSet:
    """Read and preprocess every sample once; training then works from memory (50 kB a slice at 224 px).

    Args:
        samples: What to read.
        preprocess: The same object that serves prediction.
        progress: Called with the number done after each sample.

    Raises:
        InputError: A sample cannot be used; the message names it.
    """
    size = preprocess.size
    images = np.zeros((len(samples), size, size), np.uint8)
    masks = np.zeros_like(images)
    known: list[Sample] = []
    for i, sample in enumerate(samples):
        reading = read_sample(sample)
        known.append(reading.sample)
        try:
            prepared = preprocess(reading.image, reading.aspect)
            images[i] = prepared.image
            if reading.mask is not None:
                masks[i] = preprocess.mask_to_input(reading.mask, prepared.placement)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from None
        if progress:
            progress(i + 1)
    labels = np.array([CLASSES.index(s.label) if s.label else -1 for s in samples], np.int64)
    return PreparedSet(known, images, masks, labels)


def lesion_free(prepared: PreparedSet) -> NDArray[np.bool_]:
    """Which slices' masks are empty, ``(n,)``."""
    return np.asarray(~prepared.masks.any(axis=(1, 2)))


class SliceDataset(Dataset[dict[str, torch.Tensor]]):
    """Batches' items from a prepared set; an index is ``(epoch, i)``, so that augmentation depends on nothing else.

    Args:
        prepared: The slices.
        augment: Applied to image and mask, or none.
        seed: Of all that is drawn.
        blank: Share of the items whose head is blanked (`data.augment.blank_head`); ``"blank"`` tells which.
        transplant: Share of the other items whose lesion is moved (`data.transplant`); label and mask follow.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        augment: Augment | None = None,
        seed: int = 0,
        blank: float = 0.0,
        transplant: float = 0.0,
    ) -> None:
        self.prepared, self.augment, self.seed = prepared, augment, seed
        self.blank, self.transplant = blank, transplant
        self._donors = _donors(prepared) if transplant > 0 else None

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, i = index
        image, mask, label = self.prepared.images[i], self.prepared.masks[i], int(self.prepared.labels[i])
        draws = [int(n) for n in np.random.SeedSequence((self.seed, epoch, i)).generate_state(4)]
        outlined = i
        blank = draws[1] < self.blank * 2**32
        if blank:
            from data.augment import blank_head

            image, mask = blank_head(image, draws[2]), np.zeros_like(mask)
        elif self._donors is not None and draws[3] < self.transplant * 2**32:
            image, mask, label, outlined = self._donors.transplant(i, draws[2])
        if self.augment is not None:
            image, mask = self.augment(image, mask, draws[0])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "label": torch.tensor(label),
            "blank": torch.tensor(blank),
            "source": torch.tensor(self.prepared.samples[outlined].source),
        }


def _donors(prepared: PreparedSet) -> Donors:
    from data.transplant import Donors

    return Donors(prepared.images, prepared.masks, prepared.labels, [s.patient for s in prepared.samples])


class EpochSampler(Sampler[tuple[int, int]]):
    """Indices ``(epoch, i)``, shuffled by seed and epoch alone: a resumed run sees the very order it would have seen.

    Args:
        weights: ``(n,)`` chance of each sample, drawn with replacement (class balance), or none for each sample once.
        most: An epoch has no more samples than this, others every time; 0 is no limit.
        negative: ``(n,)`` bool: samples that an epoch is to have fewer of, or none for as many as there are.
        negative_share: Their share of an epoch's samples, at most; of these as they are, before `SliceDataset` changes
            them.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        shuffle: bool = True,
        weights: NDArray[np.float64] | None = None,
        most: int = 0,
        negative: NDArray[np.bool_] | None = None,
        negative_share: float = 0.0,
    ) -> None:
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0
        self.negative = negative if shuffle else None
        self.length = min(n, most) if most and shuffle else n
        if self.negative is not None:
            self.length, self.negatives = epoch_length(self.negative, most, negative_share)
        self.weights = None if weights is None else weights / weights.sum()

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it at the start of every epoch
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(self.n)
        if self.weights is not None:
            order = generator.choice(self.n, self.n, p=self.weights)
        elif self.negative is not None:
            few = generator.permutation(np.flatnonzero(self.negative))[: self.negatives]
            many = generator.permutation(np.flatnonzero(~self.negative))[: self.length - self.negatives]
            order = generator.permutation(np.concatenate([many, few]))
        elif self.shuffle:
            order = generator.permutation(self.n)
        return ((self.epoch, int(i)) for i in order[: self.length])


def epoch_length(negative: NDArray[np.bool_], most: int, share: float) -> tuple[int, int]:
    """Samples of an epoch in which at most a share are negative, and how many of them are.

    Args:
        negative: ``(n,)`` bool.
        most: Limit of the epoch; 0 is none.
        share: Below 1.
    """
    few, many = int(negative.sum()), int((~negative).sum())
    length = min(few, int(many * share / (1 - share))) + many
    length = min(length, most) if most else length
    negatives = min(few, int(length * share))
    return min(length, many + negatives), negatives


def make_loader(
    prepared: PreparedSet,
    batch_size: int,
    augment: Augment | None = None,
    seed: int = 0,
    workers: int = 0,
    weights: NDArray[np.float64] | None = None,
    shuffle: bool = False,
    blank: float = 0.0,
    transplant: float = 0.0,
    most: int = 0,
    negative_share: float = 0.0,
) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader over a prepared set. Zero workers is the default: an error then reaches the user as it was raised."""
    negative = lesion_free(prepared) if negative_share else None
    sampler = EpochSampler(len(prepared), seed, shuffle, weights, most, negative, negative_share)
    return DataLoader(
        SliceDataset(prepared, augment, seed, blank, transplant),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=shuffle and len(sampler) > batch_size,
    )
