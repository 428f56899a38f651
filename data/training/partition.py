"""What a training run asks of its data: read, prepare, split by patient, refuse or drop what lies on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.duplicates import (
    check_near_duplicates,
    drop_near_duplicates,
    group_by_likeness,
    leaking,
    signatures,
)
from tumorlens.data.datasets.folds import Split, share_of_patients, split_by_fold, split_official
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet, prepare, prepare_once


@dataclass(frozen=True)
class Partition:
    """The three parts of a run's data.

    Attributes:
        train: What the network learns from.
        validation: What the epoch and the operating point are chosen on.
        test: What it is measured on.
        dropped: Samples that were left out as near-duplicates.
        left_out: How many samples were of no use to the stage.
        leaks: How many test slices are also, as copies or by their patient, in training or validation. None where that
            would have been an error.
    """

    train: PreparedSet
    validation: PreparedSet
    test: PreparedSet
    dropped: tuple[Sample, ...]
    left_out: int = 0
    leaks: int | None = None

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{name} {len(part)} slices of {len({s.patient for s in part.samples})} patients"
            for name, part in (("training", self.train), ("validation", self.validation), ("test", self.test))
        )
        sizes += f"; dropped {len(self.dropped)} near-duplicates" if self.dropped else ""
        if self.leaks is not None:
            sizes += (
                f"; leaks: {self.leaks} of the test slices are copies of others in training or validation, or of "
                "patients there, so the test figures do not hold for new patients"
            )
        return sizes + (f"; left out {self.left_out} slices without a label or mask" if self.left_out else "")


def load_partition(
    config: DataConfig,
    keep: Callable[[Sample], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Partition:
    """Read, prepare and split the data of a run.

    Args:
        config: Which data, which split.
        keep: Only samples for which it is true.
        progress: Called with the number of slices done and of all.

    Raises:
        InputError: Unusable data, an unknown setting, an empty part, or an overlap between the parts.
    """
    if config.split not in ("folds", "official", "all"):
        raise InputError(f"split {config.split!r} is none of folds, official, all")
    if config.duplicates not in ("error", "drop", "keep"):
        raise InputError(f"duplicates {config.duplicates!r} is none of error, drop, keep")
    if config.duplicates == "keep" and config.split != "official":
        raise InputError("duplicates are kept in an official split only (--split official): folds are for new patients")
    whole, marks, left_out = _read(config, keep, progress)
    if config.split == "all":
        nothing = whole.subset([])
        everyone = range(len(whole))
        kept = share_of_patients(whole.samples, everyone, config.patients, config.seed)
        return Partition(whole if len(kept) == len(whole) else whole.subset(kept), nothing, nothing, (), left_out)
    split, dropped = _split(whole.samples, config)
    if config.duplicates == "drop":
        split, alike = drop_near_duplicates(whole.samples, split, marks)
        dropped += alike
    if config.duplicates != "keep":
        check_near_duplicates(whole.samples, split, marks)
    split = replace(split, train=share_of_patients(whole.samples, split.train, config.patients, config.seed))
    leaks = len(leaking(whole.samples, split, marks)) if config.duplicates == "keep" else None
    for name, members in (("training", split.train), ("validation", split.validation), ("test", split.test)):
        if not members:
            raise InputError(f"the {name} part of fold {config.fold} is empty")
    return Partition(
        whole.subset(split.train),
        whole.subset(split.validation),
        whole.subset(split.test),
        tuple(whole.samples[i] for i in dropped),
        left_out,
        leaks,
    )


_Read = tuple[PreparedSet, NDArray[np.float32], int]
_STAGES = 2  # each keeps what it can use; thousands of slices are half a gigabyte
_shelf: dict[Any, _Read] | None = None


@contextmanager
def kept_in_memory() -> Iterator[None]:
    """Inside, data that were read once are not read again: the folds of a cross-validation differ in the split only."""
    global _shelf
    _shelf = {}
    try:
        yield
    finally:
        _shelf = None


def _read(
    config: DataConfig, keep: Callable[[Sample], bool] | None, progress: Callable[[int, int], None] | None
) -> _Read:
    """All samples of use, prepared; their signatures; and how many samples are of none."""
    key = (config.data, config.label_map, config.channel, config.size, keep)
    if _shelf is not None and key in _shelf:
        return _shelf[key]
    samples: list[Sample] = []
    for number, source in enumerate(config.data):
        found = load_samples(source, dict(config.label_map), config.channel)
        samples += [replace(sample, source=number) for sample in found]
    known = len(samples)
    if keep is not None:
        samples = [s for s in samples if keep(s)]
    if not samples:
        raise InputError(f"{', '.join(config.data)}: no sample of use for this stage")
    report = (lambda done: progress(done, len(samples))) if progress else None
    if config.prepared:
        whole = prepare_once(samples, Preprocess(config.size), config.prepared, report)
    else:
        whole = prepare(samples, Preprocess(config.size), report)
    marks = signatures(whole.images)
    if any(not s.patient for s in whole.samples):
        whole = replace(whole, samples=group_by_likeness(whole.samples, marks))
    if _shelf is not None:
        if len(_shelf) >= _STAGES:
            _shelf.clear()
        _shelf[key] = whole, marks, known - len(samples)
    return whole, marks, known - len(samples)


def _split(samples: Sequence[Sample], config: DataConfig) -> tuple[Split, list[int]]:
    if config.split == "official":
        return split_official(samples, config.seed, config.duplicates == "drop", config.duplicates != "keep")
    return split_by_fold(samples, config.fold, config.seed), []
