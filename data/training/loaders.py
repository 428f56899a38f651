"""Prepared slices -> batches for training and validation."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.augmentation.blank import blank_head
from tumorlens.data.augmentation.transplant import Donors
from tumorlens.data.config import TrainingConfig
from tumorlens.data.devices import pick_device, usable_cores
from tumorlens.data.errors import InputError
from tumorlens.data.labels import NO_TUMOR, SEQUENCES
from tumorlens.data.masks.boxes import box_truth
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.prepared import PreparedSet, lesion_free

_MOST_BARE = 0.1  # of a set's tumor slices without a mask: its lesions may lie anywhere
_FEW_BATCHES = 20  # an epoch with fewer does not pay for a process
_MOST_WORKERS = 8  # they augment some 5000 slices of 192 pixels a second
_FORKS = sys.platform == "linux"


class SliceDataset(Dataset[dict[str, torch.Tensor]]):
    """Training items of a prepared set. An index is ``(epoch, i)``: augmentation depends on it and the seed alone.

    ``"mask"`` is that of `PreparedSet`, and where it comes from boxes `data.masks.boxes.UNKNOWN`, too.

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
        self._weak = [sample.weak for sample in prepared.samples]
        # A cut field might lose a lesion that nobody outlined. Healthy slices of such sets are not cut either.
        self._uncut = _without_outlines(prepared)
        self._donors: Donors | None = None
        if transplant > 0:
            patients = [sample.patient for sample in prepared.samples]
            self._donors = Donors(prepared.images, prepared.masks, prepared.labels, patients)

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, i = index[0], index[1] % len(self.prepared)
        image, mask, label = self.prepared.images[i], self.prepared.masks[i], int(self.prepared.labels[i])
        draws = [int(n) for n in np.random.SeedSequence((self.seed, epoch, i)).generate_state(4)]
        outlined = i
        blank = draws[1] < self.blank * 2**32
        if blank:
            image, mask = blank_head(image, draws[2]), np.zeros_like(mask)
        elif self._donors is not None and draws[3] < self.transplant * 2**32:
            image, mask, label, outlined = self._donors.transplant(i, draws[2])
        if self._weak[outlined]:
            mask = box_truth(mask)  # now, while boxes are upright
        if self.augment is not None:
            cut = self.prepared.samples[i].source not in self._uncut
            image, mask = self.augment(image, mask, draws[0], cut)
        origin = self.prepared.samples[outlined]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "label": torch.tensor(label),
            "blank": torch.tensor(blank),
            "real": torch.tensor(index[1] >= 0),  # else the last slice once more, see `EpochSampler`
            "source": torch.tensor(origin.source),
            "sequence": torch.tensor(SEQUENCES.index(origin.sequence) if origin.sequence else -1),
        }


def _without_outlines(part: PreparedSet) -> set[int]:
    """The data sets in which more than one tumor slice in ten has no mask."""
    sources = np.array([sample.source for sample in part.samples], np.int64)
    bare = part.masks.max(axis=(1, 2)) == 0
    return {
        int(source)
        for source in np.unique(sources)
        if (sick := (sources == source) & (part.labels != NO_TUMOR)).any() and bare[sick].mean() > _MOST_BARE
    }


class EpochSampler(Sampler[tuple[int, int]]):
    """Indices ``(epoch, i)``, shuffled by seed and epoch alone, so that a resumed run sees the same order.

    Args:
        weights: ``(n,)`` how often an epoch shows each sample, on average: 0.5 in every second epoch, 2 twice. By
            systematic sampling, the number in one epoch is off by less than one.
        seed: Of the order.
        shuffle: Whether to shuffle; otherwise each sample is shown once, in order.
        most: An epoch has at most this many samples, different ones every time; 0 is no limit.
        process: Which process this is.
        processes: Number of processes that share each batch: the samples are dealt out one by one. All get as many, for
            they work in step: a shuffled epoch leaves the odd ones out, and the other one shows its last sample again,
            by the index -1.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        seed: int,
        shuffle: bool = True,
        most: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.weights, self.seed, self.shuffle, self.epoch = weights, seed, shuffle, 0
        self.process, self.processes = process, processes
        self.length = epoch_length(weights, most) if shuffle else len(weights)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self.length if self.shuffle else self.length + self.processes - 1) // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        shown = np.arange(len(self.weights))
        if self.shuffle and self.length:
            generator = np.random.default_rng((self.seed, self.epoch))
            order = generator.permutation(len(self.weights))
            ends = np.cumsum(self.weights[order])
            places = (np.arange(self.length) + generator.uniform()) * (ends[-1] / self.length)
            chosen = order[np.searchsorted(ends, places, side="right").clip(max=len(order) - 1)]
            shown = generator.permutation(chosen)
        dealt = [*shown[: self.length], *[-1] * (self.processes - 1)][self.process :: self.processes]
        return ((self.epoch, int(i)) for i in dealt[: len(self)])


def epoch_length(weights: NDArray[np.float64], most: int = 0) -> int:
    """Number of samples in an epoch; arguments as in `EpochSampler`."""
    every = round(float(weights.sum()))
    return min(every, most) if most else every


def slice_weights(config: TrainingConfig, part: PreparedSet, negative_share: float = 0.0) -> NDArray[np.float64]:
    """How often an epoch shows each training slice, ``(n,)``: the rate of its data set.

    Args:
        config: The run's settings.
        part: Its training slices.
        negative_share: Slices without a lesion are shown less often, so that they are at most this share of an epoch; 0
            shows them like the others.

    Raises:
        InputError: See `data.config.TrainingConfig.rates`.
    """
    rates = config.rates
    weights = np.array([rates[sample.source] for sample in part.samples], np.float64)
    if negative_share:
        negative = lesion_free(part)
        few, many = weights[negative].sum(), weights[~negative].sum()
        weights[negative] *= min(1.0, many * negative_share / (1 - negative_share) / max(few, 1e-9))
    return weights


def make_loader(
    dataset: SliceDataset, batch_size: int, sampler: EpochSampler | None = None, workers: int = 0, pin: bool = False
) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader over a data set, in its own order by default.

    Args:
        dataset: The items.
        batch_size: Items a batch. A shuffled epoch leaves an incomplete last batch out.
        sampler: Chooses items and order.
        workers: Processes that load ahead. With 0, the default, an error reaches the user as it was raised.
        pin: Put batches into memory from which a GPU copies while it computes.
    """
    if sampler is None:
        sampler = EpochSampler(np.ones(len(dataset)), 0, shuffle=False)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker if workers else None,
        # A forked process shares the slices. Others get a copy each; Python 3.14 starts such on Linux by default.
        multiprocessing_context="fork" if workers and _FORKS else None,
        pin_memory=pin,
        drop_last=sampler.shuffle and len(sampler) > batch_size,
    )


def _begin_worker(number: int) -> None:
    """Let OpenCV compute in one thread: its others are not in a forked process, and the training step needs them."""
    cv2.setNumThreads(0)


def worker_count(config: TrainingConfig, batches: int) -> int:
    """Number of processes that augment beside the step: `config.workers`, or what fits data, device and machine.

    None where an epoch is short, where there is a single core, and on systems where each process would need a copy of
    the data (Windows, macOS). One beside a CPU, because augmentation costs a hundredth of the step. Several beside a
    GPU.

    Args:
        config: The run's settings.
        batches: Of an epoch.
    """
    if config.workers is not None:
        return config.workers
    cores = usable_cores() // config.devices
    if batches < _FEW_BATCHES or cores <= 1 or not _FORKS:
        return 0
    return min(_MOST_WORKERS, cores - 1) if pick_device(config.device).type == "cuda" else 1


def loaders(
    config: TrainingConfig, parts: Partition, blank: float = 0.0, negative_share: float = 0.0, process: int = 0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Augmented, shuffled training batches and plain validation batches.

    Args:
        config: Settings of the run.
        parts: Its slices.
        blank: Share of the training slices with blanked heads.
        negative_share: See `slice_weights`.
        process: Which of the processes that train together this is.

    Raises:
        InputError: An epoch shows fewer slices than there are processes.
    """
    augment = Augment(config.augment, config.turn) if config.augment > 0 else None
    dataset = SliceDataset(parts.train, augment, config.seed, blank, config.transplant)
    weights = slice_weights(config, parts.train, negative_share)
    sampler = EpochSampler(weights, config.seed, most=config.epoch_slices, process=process, processes=config.processes)
    if not len(sampler):
        raise InputError(f"an epoch shows fewer slices than there are processes ({config.processes})")
    own = config.batch_size // config.processes
    workers = worker_count(config, len(sampler) // own)
    pin = pick_device(config.device).type == "cuda"
    training = make_loader(dataset, own, sampler, workers, pin)
    in_order = EpochSampler(
        np.ones(len(parts.validation)), 0, shuffle=False, process=process, processes=config.processes
    )
    return training, make_loader(SliceDataset(parts.validation), 2 * own, in_order, pin=pin)


def epoch_slices(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Number of slices that an epoch shows."""
    return epoch_length(slice_weights(config, parts.train, negative_share), config.epoch_slices)


def total_steps(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Number of optimizer steps of the whole run; at least the two that a one-cycle schedule needs.

    Raises:
        InputError: An epoch shows no slice.
    """
    slices = epoch_slices(config, parts, negative_share)
    if not slices:
        raise InputError("an epoch shows no slice at all; raise --rate")
    batches = max(1, slices // config.batch_size)
    return max(2, math.ceil(batches / config.accumulate) * config.epochs)
