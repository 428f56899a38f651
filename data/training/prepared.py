"""Prepared slices kept on disk, so that the next run over the same data need not read and prepare them again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Sample, read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.formats.open import source_files
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    pass


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


_READING = 2  # goes up when the same files are read in another way: 2 keeps every class of a mask


def prepare_once(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    folder: str | Path,
    progress: Callable[[int], None] | None = None,
) -> PreparedSet:
    """`prepare`, whose result is kept in a folder and found there by the next call.

    A kept set is named by all that it was made of: the files' paths, sizes and times, what is taken of them, and the
    preprocessing. One that is damaged is made again. Two arrays of bytes a slice, the masks as bits: 40 kB at 192 px.

    Args:
        samples: What to read.
        preprocess: How.
        folder: Where sets are kept; made if it is not there.
        progress: Called with the number done after each sample that has to be read.

    Raises:
        InputError: A sample cannot be used, or the folder not be written to.
    """
    path = Path(folder) / f"{_key(samples, preprocess)}.npz"
    kept = _load(path, samples, preprocess.size)
    if kept is not None:
        return kept
    made = prepare(samples, preprocess, progress)
    patients = np.array([sample.patient for sample in made.samples], dtype=np.str_)
    try:
        with whole_file(path) as part:
            np.savez(part, images=made.images, masks=np.packbits(made.masks), labels=made.labels, patients=patients)
    except OSError as error:
        raise InputError(f"{folder}: prepared slices cannot be kept there ({error.strerror or error})") from None
    return made


def _key(samples: Sequence[Sample], preprocess: Preprocess) -> str:
    digest = hashlib.sha256(json.dumps([_READING, asdict(preprocess)], sort_keys=True).encode())
    stamps: dict[Path, list[Any]] = {}
    for sample in samples:
        facts: list[Any] = [sample.slice_index, sample.channel, sample.plane, sample.label, sample.patient]
        for file in (sample.image, sample.mask):
            if file is not None and file not in stamps:  # a header may keep its voxels in another file
                stamps[file] = [fact for part in source_files(file) for fact in _stamp(part)]
            facts.append(None if file is None else stamps[file])
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _stamp(file: Path) -> list[Any]:
    try:
        state = file.stat()
    except OSError:  # its reader will say so
        return [str(file.absolute())]
    return [str(file.absolute()), state.st_size, state.st_mtime_ns]


def _load(path: Path, samples: Sequence[Sample], size: int) -> PreparedSet | None:
    shape = (len(samples), size, size)
    try:
        with np.load(path) as kept:
            images, labels, patients = kept["images"], kept["labels"], kept["patients"]
            masks = np.unpackbits(kept["masks"], count=len(samples) * size * size).reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if images.shape != shape or labels.shape != patients.shape or len(labels) != len(samples):
        return None
    known = [replace(sample, patient=str(patient)) for sample, patient in zip(samples, patients, strict=True)]
    return PreparedSet(known, images, masks, labels)
