"""What a training run asks of its data: read, prepare, split by patient, refuse or drop what lies on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.datasets import Sample, load_samples
from data.errors import InputError
from data.loaders import PreparedSet, prepare
from data.preprocess import Preprocess
from data.splits import (
    Split,
    check_near_duplicates,
    drop_near_duplicates,
    group_by_likeness,
    signatures,
    split_by_fold,
    split_official,
)


@dataclass(frozen=True)
class DataConfig:
    """Which data a run uses and how they are split.

    Attributes:
        data: Data folders or index files (see `data.datasets.load_samples`).
        fold: Test fold k; fold k+1 validates.
        split: ``"folds"`` or ``"official"``.
        duplicates: ``"error"`` or ``"drop"``: what near-duplicates across the split lead to.
        label_map: The user's label names -> classes.
        size: Side of the network's input in pixels.
        seed: Of folds, order, augmentation and initialisation.
        channel: Which channel of colour pictures to take, see `data.datasets.load_samples`.
    """

    data: tuple[str, ...]
    fold: int = 0
    split: str = "folds"
    duplicates: str = "error"
    label_map: tuple[tuple[str, str], ...] = ()
    size: int = 224
    seed: int = 0
    channel: int | None = None


@dataclass(frozen=True)
class Partition:
    """The three parts, the samples that were dropped as near-duplicates, and how many were of no use to the stage."""

    train: PreparedSet
    validation: PreparedSet
    test: PreparedSet
    dropped: tuple[Sample, ...]
    left_out: int = 0

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{name} {len(part)} slices of {len({s.patient for s in part.samples})} patients"
            for name, part in (("training", self.train), ("validation", self.validation), ("test", self.test))
        )
        sizes += f"; dropped {len(self.dropped)} near-duplicates" if self.dropped else ""
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
    if config.split not in ("folds", "official"):
        raise InputError(f"split {config.split!r} is none of folds, official")
    if config.duplicates not in ("error", "drop"):
        raise InputError(f"duplicates {config.duplicates!r} is none of error, drop")
    samples: list[Sample] = []
    for source in config.data:
        samples += load_samples(source, dict(config.label_map), config.channel)
    known = len(samples)
    if keep is not None:
        samples = [s for s in samples if keep(s)]
    if not samples:
        raise InputError(f"{', '.join(config.data)}: no sample of use for this stage")
    report = (lambda done: progress(done, len(samples))) if progress else None
    whole = prepare(samples, Preprocess(config.size), report)
    marks = signatures(whole.images)
    if any(not s.patient for s in whole.samples):
        whole = replace(whole, samples=group_by_likeness(whole.samples, marks))
    split = _split(whole.samples, config)
    dropped: list[int] = []
    if config.duplicates == "drop":
        split, dropped = drop_near_duplicates(whole.samples, split, marks)
    check_near_duplicates(whole.samples, split, marks)
    for name, members in (("training", split.train), ("validation", split.validation), ("test", split.test)):
        if not members:
            raise InputError(f"the {name} part of fold {config.fold} is empty")
    return Partition(
        whole.subset(split.train),
        whole.subset(split.validation),
        whole.subset(split.test),
        tuple(whole.samples[i] for i in dropped),
        known - len(samples),
    )


def _split(samples: Sequence[Sample], config: DataConfig) -> Split:
    if config.split == "official":
        return split_official(samples, config.seed)
    return split_by_fold(samples, config.fold, config.seed)
