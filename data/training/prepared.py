"""Prepared slices, in memory and on disk, so that the next run over the same data does not prepare them again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Sample, read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.formats.open import source_files
from tumorlens.data.labels import KNOWN
from tumorlens.data.masks.drawings import class_files
from tumorlens.data.preprocessing.preprocess import Preprocess


@dataclass(frozen=True)
class PreparedSet:
    """Slices as the networks see them.

    Attributes:
        samples: Where each slice comes from.
        images: ``(n, size, size)`` uint8.
        masks: ``(n, size, size)`` uint8, 0 and 1; 0 where the sample has no mask.
        labels: ``(n,)`` index into `data.labels.KNOWN`, -1 where the set gives none.
    """

    samples: list[Sample]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices: Sequence[int]) -> PreparedSet:
        """The slices at some indices."""
        chosen = list(indices)
        return PreparedSet(
            [self.samples[i] for i in chosen], self.images[chosen], self.masks[chosen], self.labels[chosen]
        )


def prepare(
    samples: Sequence[Sample], preprocess: Preprocess, progress: Callable[[int], None] | None = None
) -> PreparedSet:
    """Read and preprocess every sample once. Training then works from memory, at 100 kB a slice of 224 pixels.

    Args:
        samples: The samples to read.
        preprocess: The same as in prediction.
        progress: Called with the number of samples done after each sample.

    Raises:
        InputError: A sample cannot be used. The message names it.
    """
    size = preprocess.size
    images = np.zeros((len(samples), size, size), np.uint8)
    masks = np.zeros_like(images)
    complete: list[Sample] = []  # with what only the files know, such as a patient
    for i, sample in enumerate(samples):
        reading = read_sample(sample)
        complete.append(reading.sample)
        try:
            prepared = preprocess(reading.image, reading.aspect)
            images[i] = prepared.image
            if reading.mask is not None:
                masks[i] = preprocess.mask_to_input(reading.mask, prepared.placement)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from None
        if progress:
            progress(i + 1)
    labels = np.array([KNOWN.index(s.label) if s.label else -1 for s in samples], np.int64)
    return PreparedSet(complete, images, masks, labels)


def lesion_free(prepared: PreparedSet) -> NDArray[np.bool_]:
    """Whether each slice's mask is empty, ``(n,)``."""
    return np.asarray(~prepared.masks.any(axis=(1, 2)))


_READING = 2  # goes up when the same files are read in another way: 2 keeps every class of a mask


def prepare_once(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    folder: str | Path,
    progress: Callable[[int], None] | None = None,
) -> PreparedSet:
    """`prepare`, with the result stored in a folder for the next call.

    The file's name is a hash of everything that the set depends on: paths, sizes and times of the files, the slices,
    channels and planes, and the preprocessing. A damaged file is made again. A slice of 192 pixels takes 40 kB, because
    masks are stored as bits.

    Args:
        samples: The samples to read.
        preprocess: The same as in prediction.
        folder: The folder for the stored set. A missing folder is made.
        progress: Called with the number of samples done after each sample that has to be read.

    Raises:
        InputError: A sample cannot be used, or the folder cannot be written to.
    """
    path = Path(folder) / f"{_key(samples, preprocess)}.npz"
    stored = _load(path, samples, preprocess.size)
    if stored is not None:
        return stored
    fresh = prepare(samples, preprocess, progress)
    patients = np.array([sample.patient for sample in fresh.samples], dtype=np.str_)
    try:
        with whole_file(path) as part:
            np.savez(part, images=fresh.images, masks=np.packbits(fresh.masks), labels=fresh.labels, patients=patients)
    except OSError as error:
        raise InputError(f"{folder}: prepared slices cannot be stored there ({error.strerror or error})") from None
    return fresh


def _key(samples: Sequence[Sample], preprocess: Preprocess) -> str:
    digest = hashlib.sha256(json.dumps([_READING, asdict(preprocess)], sort_keys=True).encode())
    stamps: dict[Path, list[Any]] = {}
    for sample in samples:
        facts: list[Any] = [sample.slice_index, sample.channel, sample.plane, sample.label, sample.patient]
        for file in (sample.image, sample.mask):
            if file is not None and file not in stamps:  # a header may keep its voxels in another file
                stamps[file] = [fact for part in [*source_files(file), *class_files(file)] for fact in _stamp(part)]
            facts.append(None if file is None else stamps[file])
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _stamp(file: Path) -> list[Any]:
    try:
        state = file.stat()
    except OSError:  # the reader reports it
        return [str(file.absolute())]
    return [str(file.absolute()), state.st_size, state.st_mtime_ns]


def _load(path: Path, samples: Sequence[Sample], size: int) -> PreparedSet | None:
    shape = (len(samples), size, size)
    try:
        with np.load(path) as stored:
            images, labels, patients = stored["images"], stored["labels"], stored["patients"]
            masks = np.unpackbits(stored["masks"], count=len(samples) * size * size).reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if images.shape != shape or labels.shape != patients.shape or len(labels) != len(samples):
        return None
    complete = [replace(sample, patient=str(patient)) for sample, patient in zip(samples, patients, strict=True)]
    return PreparedSet(complete, images, masks, labels)
