"""Samples -> prepared arrays -> batches for training, and arrays -> network inputs for both stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.config import TrainingConfig
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.prepared import PreparedSet, lesion_free

if TYPE_CHECKING:
    from tumorlens.data.augmentation.augment import Augment
    from tumorlens.data.augmentation.transplant import Donors


class SliceDataset(Dataset[dict[str, torch.Tensor]]):
    """Batches' items from a prepared set; an index is ``(epoch, i)``, so that augmentation depends on nothing else.

    Args:
        prepared: The slices.
        augment: Applied to image and mask, or none.
        seed: Of all that is drawn.
        blank: Share of the items whose head is blanked (`data.augmentation.blank.blank_head`); ``"blank"`` tells which.
        transplant: Share of the other items whose lesion is moved (`data.augmentation.transplant`); label and mask follow.
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
            from tumorlens.data.augmentation.blank import blank_head

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
    from tumorlens.data.augmentation.transplant import Donors

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


def loaders(
    config: TrainingConfig, parts: Partition, blank: float = 0.0, negative_share: float = 0.0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Augmented, shuffled training batches and plain validation batches.

    Args:
        config: Of the run.
        parts: Its slices.
        blank: Share of the training slices with blanked heads.
        negative_share: See `epoch_length`; 0 takes slices as they come.
    """
    augment = Augment(config.augment, config.turn) if config.augment > 0 else None
    training = make_loader(
        parts.train,
        config.batch_size,
        augment,
        config.seed,
        config.workers,
        shuffle=True,
        blank=blank,
        transplant=config.transplant,
        most=config.epoch_slices,
        negative_share=negative_share,
    )
    return training, make_loader(parts.validation, 2 * config.batch_size)


def epoch_slices(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """How many slices an epoch shows."""
    if negative_share:
        return epoch_length(lesion_free(parts.train), config.epoch_slices, negative_share)[0]
    return min(len(parts.train), config.epoch_slices or len(parts.train))


def total_steps(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Optimizer steps of the whole run; a one-cycle schedule needs two."""
    steps = epoch_slices(config, parts, negative_share) // config.batch_size
    return max(2, max(1, steps) * config.epochs)
