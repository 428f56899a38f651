"""Prepared slices, in memory and on disk, so that the next run over the same data does not prepare them again."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Sample, read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.files import whole_file
from tumorlens.data.formats.open import source_files
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.masks.drawings import class_files
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.masks.truth import found_labels, mask_files
from tumorlens.data.preprocessing.preprocess import Preprocess


@dataclass(frozen=True)
class PreparedSet:
    """Slices as the networks see them.

    Attributes:
        samples: Where each slice comes from.
        images: ``(n, size, size)`` uint8.
        masks: ``(n, size, size)`` uint8, 0 and 1, or of samples with regions their bits, see
            `data.masks.regions.Regions.bits`; 0 where the sample has no mask.
        labels: ``(n,)`` number of each slice's label, see `data.labels.ClassList.index`.
        classes: The classes that the numbers stand for.
        found: Of samples with regions, the labels in all masks that were read, and in how many files each is.
    """

    samples: list[Sample]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: ClassList = SHIPPED_CLASSES
    found: Mapping[str, int] = field(default_factory=dict)

    @property
    def regions(self) -> Regions:
        """The parts of lesions that the masks tell apart; none where they hold whole lesions."""
        return _regions_of(self.samples)

    @property
    def planes(self) -> NDArray[np.uint8]:
        """``(c, n, size, size)`` 0 and 1: the masks of each region, or of whole lesions."""
        return self.regions.planes(self.masks) if self.regions else self.masks[None]

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices: Sequence[int]) -> PreparedSet:
        """The slices at some indices."""
        chosen = list(indices)
        return PreparedSet(
            [self.samples[i] for i in chosen],
            self.images[chosen],
            self.masks[chosen],
            self.labels[chosen],
            self.classes,
            self.found,
        )


def prepare(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    progress: Callable[[int], None] | None = None,
    classes: ClassList | None = None,
) -> PreparedSet:
    """Read and preprocess every sample once. Training then works from memory, at 100 kB a slice of 224 pixels.

    Args:
        samples: The samples to read.
        preprocess: The same as in prediction.
        progress: Called with the number of samples done after each sample.
        classes: Number the labels by these; by default by the classes that the labels name.

    Raises:
        InputError: A sample cannot be used, and the message names it; or the classes lack a label.
    """
    labels, classes = _numbered(samples, classes)
    size = preprocess.size
    images = np.zeros((len(samples), size, size), np.uint8)
    masks = np.zeros_like(images)
    complete: list[Sample] = []  # with what only the files know, such as a patient
    regions = _regions_of(samples)
    files = {mask for s in samples if (mask := s.mask or s.volume_mask) is not None} if regions else set()
    for i, sample in enumerate(samples):
        reading = read_sample(sample)
        complete.append(reading.sample)
        try:
            prepared = preprocess(reading.image, reading.aspect)
            images[i] = prepared.image
            placed = reading.mask_to_input(preprocess, prepared.placement)
            if placed is not None:
                masks[i] = placed
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from None
        if progress:
            progress(i + 1)
    found = Counter(label for file in files for label in found_labels(file, regions))
    return PreparedSet(complete, images, masks, labels, classes, dict(sorted(found.items(), key=_by_number)))


def _by_number(found: tuple[str, int]) -> tuple[int, str]:
    """Sorts labels that are numbers by these."""
    return len(found[0]), found[0]


def _regions_of(samples: Sequence[Sample]) -> Regions:
    """The regions of a set, which all its samples share."""
    return samples[0].regions if samples else NO_REGIONS


def _numbered(samples: Sequence[Sample], classes: ClassList | None) -> tuple[NDArray[np.int64], ClassList]:
    """The number of each sample's label, and the classes that they stand for."""
    names = [sample.label for sample in samples]
    numbering = ClassList.of_labels(names) if classes is None else classes
    return np.array(numbering.indices(names), np.int64), numbering


def lesion_free(prepared: PreparedSet) -> NDArray[np.bool_]:
    """Whether each slice's mask is empty, ``(n,)``."""
    return np.asarray(~prepared.masks.any(axis=(1, 2)))


_READING = 2  # goes up when the same files are read in another way: 2 keeps every class of a mask


def prepare_once(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    folder: str | Path,
    progress: Callable[[int], None] | None = None,
    classes: ClassList | None = None,
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
        classes: As in `prepare`.

    Raises:
        InputError: A sample cannot be used, or the folder cannot be written to.
    """
    path = Path(folder) / f"{_key(samples, preprocess)}.npz"
    stored = _load(path, samples, preprocess.size, classes)
    if stored is not None:
        return stored
    fresh = prepare(samples, preprocess, progress, classes)
    patients = np.array([sample.patient for sample in fresh.samples], dtype=np.str_)
    try:
        with whole_file(path) as part:
            arrays: dict[str, Any] = {"images": fresh.images, "masks": np.packbits(fresh.planes), "patients": patients}
            if fresh.regions:
                arrays["found"] = np.array(json.dumps(fresh.found))
            np.savez(part, **arrays)
    except OSError as error:
        raise InputError(f"{folder}: prepared slices cannot be stored there ({error.strerror or error})") from None
    return fresh


def remove_prepared(folder: Path) -> None:
    """Delete the sets that `prepare_once` has stored in a folder, and the folder if it holds nothing else."""
    with suppress(OSError):
        for file in folder.glob("*.npz"):
            if re.fullmatch("[0-9a-f]{32}", file.stem):
                file.unlink()
        folder.rmdir()


def _key(samples: Sequence[Sample], preprocess: Preprocess) -> str:
    regions = _regions_of(samples)
    reading = [_READING, asdict(preprocess), *([regions.to_card()] if regions else [])]
    digest = hashlib.sha256(json.dumps(reading, sort_keys=True).encode())
    stamps: dict[Path, list[Any]] = {}
    for sample in samples:
        facts: list[Any] = [sample.slice_index, sample.channel, sample.plane, sample.label, sample.patient]
        for file in (sample.image, sample.mask):
            if file is not None and file not in stamps:  # a header may keep its voxels in another file
                parts = [*source_files(file), *class_files(file), *mask_files(file, regions)]
                stamps[file] = [fact for part in parts for fact in _stamp(part)]
            facts.append(None if file is None else stamps[file])
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _stamp(file: Path) -> list[Any]:
    try:
        state = file.stat()
    except OSError:  # the reader reports it
        return [str(file.absolute())]
    return [str(file.absolute()), state.st_size, state.st_mtime_ns]


def _load(path: Path, samples: Sequence[Sample], size: int, classes: ClassList | None) -> PreparedSet | None:
    shape = (len(samples), size, size)
    regions = _regions_of(samples)
    n_planes = len(regions) or 1
    try:
        with np.load(path) as stored:
            images, patients = stored["images"], stored["patients"]
            bits = np.unpackbits(stored["masks"], count=n_planes * len(samples) * size * size)
            found = json.loads(str(stored["found"])) if regions else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if images.shape != shape or len(patients) != len(samples):
        return None
    complete = [replace(sample, patient=str(patient)) for sample, patient in zip(samples, patients, strict=True)]
    planes = bits.reshape(n_planes, *shape)
    masks = regions.pack(planes) if regions else planes[0]
    return PreparedSet(complete, images, masks, *_numbered(samples, classes), found)
