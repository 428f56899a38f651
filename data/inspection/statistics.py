"""Statistics of a data set from one walk over its slices. Only sums per class are kept, so its size does not matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.duplicates import signatures
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Swept, Unread, sweep
from tumorlens.data.labels import ClassList
from tumorlens.data.preprocessing.preprocess import Preprocess, to_gray

BINS = 64  # of the intensity histograms, over 0..255
UNLABELED = "unlabeled"
_FACTS = ("shape", "aspect", "color", "gray", "head_fraction", "lesion_px", "head_px", "signatures")
_THUMBNAIL = 256  # longer side of a picture shown as it is stored


@dataclass
class ClassSums:
    """Sums over the slices of one class.

    Attributes:
        n: Slices.
        masked: Slices with a mask that is not empty.
        image: ``(size, size)`` sum of prepared slices, 0..255 each.
        lesion: ``(size, size)`` sum of masks.
        stored: ``(BINS,)`` sum of the slices' shares of pixels by stored intensity.
        prepared: ``(BINS,)`` the same inside the head of the prepared slices.
    """

    size: int
    n: int = 0
    masked: int = 0
    image: NDArray[np.float64] = field(init=False)
    lesion: NDArray[np.float64] = field(init=False)
    stored: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    prepared: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def __post_init__(self) -> None:
        self.image = np.zeros((self.size, self.size))
        self.lesion = np.zeros((self.size, self.size))


@dataclass(frozen=True)
class Example:
    """A slice that stands for its class in the pictures.

    Attributes:
        sample: The slice.
        stored: ``(rows, columns)`` uint8, as the file has it, reduced, with square pixels.
        prepared: ``(size, size)`` uint8.
        mask: ``(size, size)`` uint8, 0 and 1, or None.
    """

    sample: Sample
    stored: NDArray[np.uint8]
    prepared: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None


@dataclass
class Statistics:
    """The measurements of a data set. Arrays have one entry per slice that could be read.

    Attributes:
        samples: The slices.
        failures: For each of the others, why it could not be read.
        shape: ``(n, 2)`` rows and columns.
        aspect: Width of the picture over its height, pixel spacing counted.
        color: Whether the file has colors.
        gray: Mean stored intensity of the picture, 0..255.
        head_fraction: Share of the picture that is head.
        lesion_px: Pixels of lesion on the prepared grid; -1 without a mask.
        head_px: Pixels of head on the prepared grid.
        signatures: ``(n, 576)``, see `data.datasets.duplicates.signatures`.
        sums: Sums by class.
        examples: Examples by class.
    """

    samples: list[Sample]
    failures: list[str]
    shape: NDArray[np.int64]
    aspect: NDArray[np.float64]
    color: NDArray[np.bool_]
    gray: NDArray[np.float64]
    head_fraction: NDArray[np.float64]
    lesion_px: NDArray[np.int64]
    head_px: NDArray[np.int64]
    signatures: NDArray[np.float32]
    sums: dict[str, ClassSums]
    examples: dict[str, list[Example]]

    @property
    def classes(self) -> list[str]:
        """The classes in the set: known ones in the table's order, the others by the alphabet."""
        return [name for name in (*self.class_list.known, UNLABELED) if name in self.sums]

    @cached_property
    def class_list(self) -> ClassList:
        """The classes that its labels name."""
        return ClassList.of_labels(sample.label for sample in self.samples)

    def color_of(self, name: str) -> str:
        """The color of one of `classes`."""
        return self.class_list.color(name)

    @property
    def labels(self) -> NDArray[np.str_]:
        """``(n,)`` class names."""
        return np.array([class_name(sample) for sample in self.samples])


def measure(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    n_examples: int = 6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """The statistics of a data set. A slice takes a signature and a few numbers of memory, whatever its resolution.

    Args:
        samples: The data set.
        preprocess: Prepares each slice, as in training and prediction.
        n_examples: How many examples to keep of each class, of different patients where there are enough.
        seed: Another seed, other examples.
        progress: Called with the number of slices done and of all.
    """
    chosen = choose_examples(samples, n_examples, seed)
    facts: dict[str, list[Any]] = {name: [] for name in _FACTS}
    read: list[Sample] = []
    failures: list[str] = []
    sums: dict[str, ClassSums] = {}
    examples: dict[str, list[Example]] = defaultdict(list)
    for slice_ in sweep(samples, preprocess, progress):
        if isinstance(slice_, Unread):
            failures.append(slice_.reason)
            continue
        sample = slice_.reading.sample
        gray = gray_levels(slice_.reading.image)
        rows, columns = gray.shape
        read.append(sample)
        facts["shape"].append((rows, columns))
        facts["aspect"].append(columns / (rows * slice_.reading.aspect))
        facts["color"].append(slice_.reading.image.ndim == 3)
        facts["gray"].append(float(gray.mean()))
        facts["head_fraction"].append(slice_.prepared.head_fraction)
        facts["lesion_px"].append(-1 if slice_.mask is None else int(slice_.mask.sum()))
        facts["head_px"].append(max(1, int(slice_.prepared.head.sum())))
        facts["signatures"].append(signatures(slice_.prepared.image[None])[0])
        _add(sums.setdefault(class_name(sample), ClassSums(preprocess.size)), gray, slice_)
        if slice_.index in chosen:
            stored = _thumbnail(gray, slice_.reading.aspect)
            examples[class_name(sample)].append(Example(sample, stored, slice_.prepared.image, slice_.mask))
    arrays = {name: np.array(values) for name, values in facts.items()}
    return Statistics(samples=read, failures=failures, sums=sums, examples=dict(examples), **arrays)


def choose_examples(samples: Sequence[Sample], n: int, seed: int = 0) -> set[int]:
    """Indices of up to `n` samples of each class, of different patients first."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(samples)):
        by_class[class_name(samples[i])].append(int(i))
    chosen: set[int] = set()
    for members in by_class.values():
        patients: set[str] = set()
        of_new_patients: list[int] = []
        others: list[int] = []
        for i in members:
            patient = samples[i].patient or samples[i].name
            (others if patient in patients else of_new_patients).append(i)
            patients.add(patient)
        chosen.update((of_new_patients + others)[:n])
    return chosen


def class_name(sample: Sample) -> str:
    """The sample's label, or `UNLABELED`."""
    return sample.label or UNLABELED


def gray_levels(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Gray values 0..255, ``(rows, columns)``. Those of 8-bit pictures stay, others are stretched to the full range."""
    gray = to_gray(image)
    if image.dtype == np.uint8:
        return gray
    low, high = float(gray.min()), float(gray.max())
    return (gray - low) * np.float32(255 / (high - low))


def _add(sums: ClassSums, gray_hw: NDArray[np.float32], slice_: Swept) -> None:
    image = slice_.prepared.image
    sums.n += 1
    sums.image += image
    sums.stored += _shares(gray_hw)
    sums.prepared += _shares(image[slice_.prepared.head] if slice_.prepared.head.any() else image)
    if slice_.mask is not None and slice_.mask.any():
        sums.masked += 1
        sums.lesion += slice_.mask


def _shares(values: NDArray[np.generic]) -> NDArray[np.float64]:
    levels = np.clip(values, 0, 255).astype(np.uint8).reshape(-1) // np.uint8(256 // BINS)
    return np.bincount(levels, minlength=BINS) / levels.size


def _thumbnail(gray_hw: NDArray[np.float32], aspect: float) -> NDArray[np.uint8]:
    rows, columns = gray_hw.shape[0] * aspect, float(gray_hw.shape[1])
    scale = min(1.0, _THUMBNAIL / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return np.clip(cv2.resize(gray_hw, size, interpolation=cv2.INTER_AREA), 0, 255).astype(np.uint8)
