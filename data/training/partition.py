"""Reads, prepares and splits the data of a training run by patient, and refuses or drops copies across the split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.config import SPLITS, DataConfig
from tumorlens.data.datasets.classes import GivenClasses
from tumorlens.data.datasets.duplicates import (
    check_near_duplicates,
    drop_near_duplicates,
    group_by_likeness,
    leaking,
    signatures,
)
from tumorlens.data.datasets.folds import Split, hold_out_fold, share_of_patients, split_by_fold, split_official
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import ClassList
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet, prepare, prepare_once


@dataclass(frozen=True)
class Partition:
    """The three parts of a run's data.

    Attributes:
        train: The network learns from these.
        validation: The epoch and the operating point are chosen on these.
        test: The network is measured on these.
        dropped: Samples that were left out as near-duplicates.
        left_out: Number of samples that the stage cannot use.
        leaks: Number of test slices that are copies of training or validation slices, or of patients there. None where
            that would have been an error.
    """

    train: PreparedSet
    validation: PreparedSet
    test: PreparedSet
    dropped: tuple[Sample, ...]
    left_out: int = 0
    leaks: int | None = None

    @property
    def classes(self) -> ClassList:
        """The classes of the run: those that the user names, or those of all labels."""
        return self.train.classes

    def held_out(self) -> dict[str, PreparedSet]:
        """The parts that the network does not learn from, by name. A run on all patients has none."""
        parts = {"validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if len(part)}

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
    given: GivenClasses | None = None,
    regions: Regions = NO_REGIONS,
) -> Partition:
    """Read, prepare and split the data of a run.

    Args:
        config: The data and the split.
        keep: Only samples for which it is true are read.
        progress: Called with the number of slices done and of all.
        given: The classes that the user names; by default they are those of the labels.
        regions: The parts of lesions that the masks are read for; by default their lesions are whole.

    Raises:
        InputError: Unusable data, a label that is not one of the classes, an unknown setting, an empty part, or an
            overlap between the parts.
    """
    if config.split not in SPLITS:
        raise InputError(f"split {config.split!r} is not one of {', '.join(SPLITS)}")
    if config.duplicates not in ("error", "drop", "keep"):
        raise InputError(f"duplicates {config.duplicates!r} is not one of error, drop, keep")
    if config.duplicates == "keep" and config.split != "official":
        raise InputError(
            "--duplicates keep is for an official split only (--split official); folds measure new patients"
        )
    whole, marks, left_out = _read(config, keep, progress, given, regions)
    if config.split == "all":
        nothing = whole.subset([])
        everyone = range(len(whole))
        chosen = share_of_patients(whole.samples, everyone, config.patients, config.seed)
        return Partition(whole if len(chosen) == len(whole) else whole.subset(chosen), nothing, nothing, (), left_out)
    split, dropped = _split(whole.samples, config)
    if config.duplicates == "drop":
        split, alike = drop_near_duplicates(whole.samples, split, marks)
        dropped += alike
    if config.duplicates != "keep":
        check_near_duplicates(whole.samples, split, marks)
    split = replace(split, train=share_of_patients(whole.samples, split.train, config.patients, config.seed))
    leaks = len(leaking(whole.samples, split, marks)) if config.duplicates == "keep" else None
    for name, members in split.parts.items():
        if not members and not (name == "test" and config.split == "holdout"):
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
_STAGES = 2  # each stage has its own samples; thousands of slices take half a gigabyte
_shelf: dict[Any, _Read] | None = None


@contextmanager
def kept_in_memory() -> Iterator[None]:
    """Inside this context, data are read once: the folds of a cross-validation differ only in the split."""
    global _shelf
    _shelf = {}
    try:
        yield
    finally:
        _shelf = None


def _read(
    config: DataConfig,
    keep: Callable[[Sample], bool] | None,
    progress: Callable[[int, int], None] | None,
    given: GivenClasses | None,
    regions: Regions,
) -> _Read:
    """The samples that the stage can use, prepared; their signatures; and the number of samples that it cannot use."""
    label_map = (given.spellings if given else {}) | dict(config.label_map)
    classes = given.classes if given else None
    key = (config.data, tuple(label_map.items()), config.channel, config.size, keep, classes, regions)
    if _shelf is not None and key in _shelf:
        return _shelf[key]
    samples: list[Sample] = []
    for number, source in enumerate(config.data):
        loaded = load_samples(source, label_map, config.channel, regions)
        samples += [replace(sample, source=number) for sample in loaded]
    total = len(samples)
    if keep is not None:
        samples = [s for s in samples if keep(s)]
    if not samples:
        raise InputError(f"{', '.join(config.data)}: this stage can use none of the samples")
    report = (lambda done: progress(done, len(samples))) if progress else None
    if config.prepared:
        whole = prepare_once(samples, Preprocess(config.size), config.prepared, report, classes)
    else:
        whole = prepare(samples, Preprocess(config.size), report, classes)
    marks = signatures(whole.images)
    if any(not s.patient for s in whole.samples):
        whole = replace(whole, samples=group_by_likeness(whole.samples, marks))
    if _shelf is not None:
        if len(_shelf) >= _STAGES:
            _shelf.clear()
        _shelf[key] = whole, marks, total - len(samples)
    return whole, marks, total - len(samples)


def _split(samples: Sequence[Sample], config: DataConfig) -> tuple[Split, list[int]]:
    if config.split == "official":
        return split_official(samples, config.seed, config.duplicates == "drop", config.duplicates != "keep")
    if config.split == "holdout":
        return hold_out_fold(samples, config.fold, config.seed), []
    return split_by_fold(samples, config.fold, config.seed), []
