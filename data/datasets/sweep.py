"""One walk over every slice of a data set: each volume is opened once, and a bad file does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Reading, Sample, channel_of, open_cut, read_mask_of, read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.preprocess import PreparedSlice, Preprocess


@dataclass(frozen=True)
class Swept:
    """A slice that was read and prepared.

    Attributes:
        index: Its place among the samples.
        reading: The arrays as the file has them.
        prepared: The network's input.
        mask: ``(size, size)`` uint8, values as in `reading`, in the grid of `prepared`; None if the set has none.
    """

    index: int
    reading: Reading
    prepared: PreparedSlice
    mask: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Unread:
    """A slice that could not be read or prepared.

    Attributes:
        index: Its place among the samples.
        reason: Why, in one sentence that names the file.
    """

    index: int
    reason: str


def sweep(
    samples: Sequence[Sample], preprocess: Preprocess, progress: Callable[[int, int], None] | None = None
) -> Iterator[Swept | Unread]:
    """The slices of a data set, read and prepared one by one. Only one file is held in memory.

    Args:
        samples: The slices. Those of a volume stand side by side, as `data.datasets.load.load_samples` gives them.
        preprocess: Prepares each slice.
        progress: Called with the number of slices done and of all.
    """
    done = 0
    for _, group in groupby(enumerate(samples), key=_file):
        members = list(group)
        for i, reading in _readings(members):
            done += 1
            if progress:
                progress(done, len(samples))
            if isinstance(reading, InputError):
                yield Unread(i, str(reading))
                continue
            try:
                prepared = preprocess(reading.image, reading.aspect)
                mask = reading.mask_to_input(preprocess, prepared.placement)
            except InputError as error:
                yield Unread(i, f"{samples[i].name}: {error}")
                continue
            yield Swept(i, reading, prepared, mask)


def _file(member: tuple[int, Sample]) -> tuple[str, str] | int:
    """A key that the slices of one volume in one plane share, and that each picture has alone."""
    i, sample = member
    return i if sample.slice_index is None else (str(sample.image), sample.plane)


def _readings(members: list[tuple[int, Sample]]) -> Iterator[tuple[int, Reading | InputError]]:
    """The readings of a picture, or of a volume's slices."""
    first = members[0][1]
    try:
        if first.slice_index is None:
            yield members[0][0], read_sample(first)
            return
        scan = open_cut(first)
        outlined = next((sample for _, sample in members if sample.mask is not None), None)
        mask = None if outlined is None else read_mask_of(outlined, scan)
    except InputError as error:
        yield from ((i, error) for i, _ in members)
        return
    for i, sample in members:
        k = sample.slice_index or 0
        try:
            if sample.channel is not None:
                channel_of(scan, sample.channel)  # raises: a volume has no channels
        except InputError as error:
            yield i, error
            continue
        mask_hw = None if mask is None or sample.mask is None else scan.view(mask, k)
        yield i, Reading(scan.slice(k), mask_hw, scan.pixel_aspect, sample)
