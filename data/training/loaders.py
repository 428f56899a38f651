"""Prepared slices -> batches for training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.augmentation.blank import blank_head
from tumorlens.data.augmentation.transplant import Donors
from tumorlens.data.config import TrainingConfig
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.prepared import PreparedSet, lesion_free


class SliceDataset(Dataset[dict[str, torch.Tensor]]):
    """Training items of a prepared set. An index is ``(epoch, i)``: augmentation depends on it and the seed alone.

    Args:
        prepared: The slices.
        augment: Applied to image and mask; None for none.
        seed: Of everything that is drawn at random.
        blank: Share of the items whose head is blanked (`data.augmentation.blank.blank_head`); ``"blank"`` marks them.
        transplant: Share of the other items whose lesion is moved (`data.augmentation.transplant`); label and mask
            follow.
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
        self._donors: Donors | None = None
        if transplant > 0:
            patients = [sample.patient for sample in prepared.samples]
            self._donors = Donors(prepared.images, prepared.masks, prepared.labels, patients)

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, i = index
        image, mask, label = self.prepared.images[i], self.prepared.masks[i], int(self.prepared.labels[i])
        draws = [int(n) for n in np.random.SeedSequence((self.seed, epoch, i)).generate_state(4)]
        outlined = i
        blank = draws[1] < self.blank * 2**32
        if blank:
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


class EpochSampler(Sampler[tuple[int, int]]):
    """Indices ``(epoch, i)``, shuffled by seed and epoch alone, so that a resumed run sees the same order.

    Args:
        n: Number of samples.
        seed: Of the order.
        shuffle: Whether to shuffle and to limit the epoch.
        most: An epoch has at most this many samples, different ones every time; 0 is no limit.
        negative: ``(n,)`` bool: samples of which an epoch shows fewer; None shows all.
        negative_share: Their share of an epoch's samples, at most, before `SliceDataset` changes any.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        shuffle: bool = True,
        most: int = 0,
        negative: NDArray[np.bool_] | None = None,
        negative_share: float = 0.0,
    ) -> None:
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0
        self.negative = negative if shuffle else None
        self.length = min(n, most) if most and shuffle else n
        if self.negative is not None:
            self.length, self.negatives = epoch_length(self.negative, most, negative_share)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(self.n)
        if self.negative is not None:
            few = generator.permutation(np.flatnonzero(self.negative))[: self.negatives]
            many = generator.permutation(np.flatnonzero(~self.negative))[: self.length - self.negatives]
            order = generator.permutation(np.concatenate([many, few]))
        elif self.shuffle:
            order = generator.permutation(self.n)
        return ((self.epoch, int(i)) for i in order[: self.length])


def epoch_length(negative: NDArray[np.bool_], most: int, share: float) -> tuple[int, int]:
    """Length of an epoch in which at most a share of the samples is negative, and the number of negative ones.

    Args:
        negative: ``(n,)`` bool.
        most: Longest epoch; 0 is no limit.
        share: Below 1.
    """
    few, many = int(negative.sum()), int((~negative).sum())
    length = min(few, int(many * share / (1 - share))) + many
    length = min(length, most) if most else length
    negatives = min(few, int(length * share))
    return min(length, many + negatives), negatives


def make_loader(
    dataset: SliceDataset, batch_size: int, sampler: EpochSampler | None = None, workers: int = 0
) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader over a data set, in its own order by default.

    Args:
        dataset: The items.
        batch_size: Items a batch. A shuffled epoch leaves an incomplete last batch out.
        sampler: Chooses items and order.
        workers: Processes that load ahead. With 0, the default, an error reaches the user as it was raised.
    """
    sampler = sampler or EpochSampler(len(dataset), 0, shuffle=False)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=sampler.shuffle and len(sampler) > batch_size,
    )


def loaders(
    config: TrainingConfig, parts: Partition, blank: float = 0.0, negative_share: float = 0.0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Augmented, shuffled training batches and plain validation batches.

    Args:
        config: Settings of the run.
        parts: Its slices.
        blank: Share of the training slices with blanked heads.
        negative_share: See `epoch_length`; 0 takes slices as they come.
    """
    augment = Augment(config.augment, config.turn) if config.augment > 0 else None
    dataset = SliceDataset(parts.train, augment, config.seed, blank, config.transplant)
    negative = lesion_free(parts.train) if negative_share else None
    sampler = EpochSampler(
        len(dataset), config.seed, most=config.epoch_slices, negative=negative, negative_share=negative_share
    )
    training = make_loader(dataset, config.batch_size, sampler, config.workers)
    return training, make_loader(SliceDataset(parts.validation), 2 * config.batch_size)


def epoch_slices(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Number of slices that an epoch shows."""
    if negative_share:
        return epoch_length(lesion_free(parts.train), config.epoch_slices, negative_share)[0]
    return min(len(parts.train), config.epoch_slices or len(parts.train))


def total_steps(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Number of optimizer steps of the whole run; at least the two that a one-cycle schedule needs."""
    steps = epoch_slices(config, parts, negative_share) // config.batch_size
    return max(2, max(1, steps) * config.epochs)
