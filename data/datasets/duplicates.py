"""Slices that show the same picture (equal files, copies, mirror images), and how a split keeps them together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.components import linked
from tumorlens.data.datasets.folds import CLUSTER, REMEDY, Split
from tumorlens.data.datasets.lgg import is_lgg_slice
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.labels import TUMOR_FREE, labels_agree

# Correlation of two signatures from which two slices count as one picture, re-encoded, rescaled or mirrored. Measured
# on BRISC against figshare: 99 % of 3937 known copies lie above 0.991, every pair of different patients below 0.961.
NEAR_DUPLICATE = 0.985

_GRID = 24  # a slice's signature is a picture of this many pixels squared
_EQUAL = 0.9999  # correlation that only equal pixels reach
_BLOCK = 1000  # rows of the correlation matrix at a time: 5000 slices need 20 MB for it, not 100


@dataclass(frozen=True)
class Pair:
    """Two slices that look alike.

    Attributes:
        first: Index of the earlier one.
        second: Index of the later one.
        likeness: Correlation of their signatures, as they are or with one mirrored, whichever is higher.
        mirrored: Whether it was the mirror image.
    """

    first: int
    second: int
    likeness: float
    mirrored: bool


def signatures(images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small zero-mean, unit-norm pictures of prepared slices; their dot product is a correlation, -1 to 1.

    Args:
        images_nhw: ``(n, size, size)`` output of `data.preprocessing.preprocess.Preprocess`, which removes frames.

    Returns:
        ``(n, 576)``.
    """
    grid = np.stack([cv2.resize(im, (_GRID, _GRID), interpolation=cv2.INTER_AREA) for im in images_nhw])
    flat = grid.reshape(len(grid), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def near_duplicates(first_nd: NDArray[np.float32], second_nd: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs ``(i, j, correlation)`` of signatures that show the same picture, as it is or mirrored left-right."""
    mirrored = second_nd.reshape(-1, _GRID, _GRID)[:, :, ::-1].reshape(second_nd.shape)
    likeness = np.maximum(first_nd @ second_nd.T, first_nd @ mirrored.T)
    pairs = [(int(i), int(j), float(likeness[i, j])) for i, j in np.argwhere(likeness >= NEAR_DUPLICATE)]
    return sorted(pairs, key=lambda pair: -pair[2])


def alike_pairs(signatures_nd: NDArray[np.float32]) -> list[Pair]:
    """All pairs of slices that `near_duplicates` takes for one picture, the closest first."""
    pairs = []
    for start in range(0, len(signatures_nd), _BLOCK):
        block = signatures_nd[start : start + _BLOCK]
        for i, j, likeness in near_duplicates(block, signatures_nd[start:]):
            if j > i:
                unmirrored = float(block[i] @ signatures_nd[start + j])
                pairs.append(Pair(start + i, start + j, likeness, likeness > unmirrored + 1e-5))
    return sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def copy_pairs(samples: Sequence[Sample], signatures_nd: NDArray[np.float32]) -> list[Pair]:
    """The pairs of `alike_pairs` without those that `alike_by_nature` explains."""
    pairs = alike_pairs(signatures_nd)
    return [pair for pair in pairs if not alike_by_nature(samples[pair.first], samples[pair.second])]


def alike_by_nature(first: Sample, second: Sample) -> bool:
    """Whether a likeness means nothing, because both are slices of volumes whose patients the set itself names.

    In whole volumes that are stored slice by slice, slices near the vertex look alike in any two heads, and the set
    names their patients reliably. Such sets are those of `data.datasets.lgg`: each picture has its mask in the same
    folder, and one of its channels is read.
    """
    return all(is_lgg_slice(s) and s.channel is not None and not s.patient.startswith(CLUSTER) for s in (first, second))


def of_one_volume(first: Sample, second: Sample) -> bool:
    """Whether two slices come from one file, where neighbors always look alike."""
    return first.image == second.image and first.place != second.place


def labels_contradict(first: Sample, second: Sample, pair: Pair) -> bool:
    """Whether two look-alikes have labels that cannot both be right.

    Tumor and no_tumor of one patient can both be right: the last slice with a lesion and the first one without look
    alike. Only equal pictures cannot be both.
    """
    if not first.label or not second.label or labels_agree(first.label, second.label) or of_one_volume(first, second):
        return False
    healthy = TUMOR_FREE in (first.label, second.label)
    neighbors = healthy and bool(first.patient) and first.patient == second.patient
    return not neighbors or pair.likeness >= _EQUAL


def equal_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of two and more files with the same bytes (SHA-256). Files that cannot be read are left out."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        try:
            by_size[path.stat().st_size].append(path)
        except OSError:
            continue
    by_hash: dict[str, list[Path]] = defaultdict(list)
    for same_size in by_size.values():
        for path in same_size if len(same_size) > 1 else ():
            try:
                by_hash[sha256_of(path)].append(path)
            except OSError:
                continue
    return [group for group in by_hash.values() if len(group) > 1]


def check_near_duplicates(samples: Sequence[Sample], split: Split, signatures_nd: NDArray[np.float32]) -> None:
    """Raise an `InputError` with the closest pair if a slice, or its mirror image, lies in two parts of a split."""
    for early, late in combinations(split.parts, 2):
        pairs = _pairs_across(samples, split.parts[early], split.parts[late], signatures_nd)
        if pairs:
            i, j, likeness = pairs[0]
            count = f"{len(pairs)} pairs of slices show" if len(pairs) > 1 else "a pair of slices shows"
            raise InputError(
                f"{count} the same picture across the split: {samples[i].name} in {early} and {samples[j].name} in "
                f"{late} (correlation {likeness:.4f}{', the closest' if len(pairs) > 1 else ''}); {REMEDY}"
            )


def drop_near_duplicates(
    samples: Sequence[Sample], split: Split, signatures_nd: NDArray[np.float32]
) -> tuple[Split, list[int]]:
    """The split without look-alikes in two parts. A patient with a near-duplicate in a later part leaves the earlier
    one: training gives way to validation, and both give way to test.

    Returns:
        The clean split, and the indices that were taken out.
    """
    removed: set[int] = set()
    for early, late in combinations(split.parts.values(), 2):
        members = {i for i, _, _ in _pairs_across(samples, early, late, signatures_nd)}
        patients = {samples[i].patient for i in members if samples[i].patient}
        removed |= {i for i in early if i in members or samples[i].patient in patients}
    clean = Split(*([i for i in members if i not in removed] for members in split.parts.values()))
    return clean, sorted(removed)


def leaking(samples: Sequence[Sample], split: Split, signatures_nd: NDArray[np.float32]) -> list[int]:
    """Indices of the test slices that a network may know by heart: slices of a patient who also trains or validates,
    and near-duplicates of such a patient's slices."""
    learned = split.train + split.validation
    patients = {samples[i].patient for i in learned if samples[i].patient}
    copies = {j for _, j, _ in _pairs_across(samples, learned, split.test, signatures_nd)}
    return [i for i in split.test if i in copies or samples[i].patient in patients]


def group_patients(samples: Sequence[Sample], pairs: Sequence[Pair]) -> list[int]:
    """A group number per sample. Slices of one patient, slices that look alike, and all that such links connect are in
    one group."""
    first_of: dict[str, int] = {}
    links = [(first_of.setdefault(s.patient, i), i) for i, s in enumerate(samples) if s.patient]
    return _groups(len(samples), links + [(pair.first, pair.second) for pair in pairs])


def group_by_likeness(samples: Sequence[Sample], signatures_nd: NDArray[np.float32]) -> list[Sample]:
    """The samples, with one invented patient for each group of near-duplicates whose patient is unknown, so that folds
    keep them together."""
    links = [(i, j) for i, j, _ in near_duplicates(signatures_nd, signatures_nd)]
    groups = _groups(len(samples), links)
    patients = {s.patient for s in samples}  # a set that was divided before may hold such groups
    return [s if s.patient else replace(s, patient=_unused(n, patients)) for s, n in zip(samples, groups, strict=True)]


def _groups(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    return linked(count, np.array(links, int).reshape(-1, 2).T).tolist()


def _unused(number: int, patients: set[str]) -> str:
    name = f"{CLUSTER}{number}"
    while name in patients:
        name += "+"
    return name


def _pairs_across(
    samples: Sequence[Sample], first: Sequence[int], second: Sequence[int], signatures_nd: NDArray[np.float32]
) -> list[tuple[int, int, float]]:
    """Near-duplicates ``(i, j, correlation)`` between two parts, as indices into the samples, without those that
    `alike_by_nature` explains."""
    pairs = near_duplicates(signatures_nd[first], signatures_nd[second])
    across = [(first[i], second[j], likeness) for i, j, likeness in pairs]
    return [(i, j, likeness) for i, j, likeness in across if not alike_by_nature(samples[i], samples[j])]
