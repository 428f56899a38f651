"""Which slices of a data set show the same picture: equal files, re-encoded copies, mirror images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.cards import sha256_of
from data.labels import CLASSES, NO_TUMOR
from data.samples import Sample
from data.splits import alike_by_nature, near_duplicates

_THE_SAME = 0.9999  # correlation that only equal pixels reach
_BLOCK = 1000  # rows of the likeness matrix at a time: 5000 slices need 20 MB for it, not 100


@dataclass(frozen=True)
class Pair:
    """Two slices that look alike.

    Attributes:
        first: Index of the earlier one.
        second: Index of the later one.
        likeness: Correlation of their signatures, the better of the two as they are and one mirrored.
        mirrored: Whether it was the mirror image.
    """

    first: int
    second: int
    likeness: float
    mirrored: bool


def alike_pairs(signatures_nd: NDArray[np.float32]) -> list[Pair]:
    """All pairs of slices that `data.splits.near_duplicates` takes for one picture, the closest first."""
    pairs = []
    for start in range(0, len(signatures_nd), _BLOCK):
        block = signatures_nd[start : start + _BLOCK]
        for i, j, likeness in near_duplicates(block, signatures_nd[start:]):
            if j > i:
                plain = float(block[i] @ signatures_nd[start + j])
                pairs.append(Pair(start + i, start + j, likeness, likeness > plain + 1e-5))
    return sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def telling_pairs(samples: Sequence[Sample], signatures_nd: NDArray[np.float32]) -> list[Pair]:
    """The pairs of `alike_pairs` but for those that `data.splits.alike_by_nature` explains."""
    pairs = alike_pairs(signatures_nd)
    return [pair for pair in pairs if not alike_by_nature(samples[pair.first], samples[pair.second])]


def of_one_volume(first: Sample, second: Sample) -> bool:
    """Whether two slices are neighbours in one file, which look alike by nature."""
    return first.image == second.image and first.place != second.place


def contradict(first: Sample, second: Sample, pair: Pair) -> bool:
    """Whether two look-alikes have labels that cannot both be right.

    Tumor and no_tumor of one patient can: the last slice with a lesion and the first without look alike. Only the very
    same picture cannot be both.
    """
    if not first.label or not second.label or first.label == second.label or of_one_volume(first, second):
        return False
    healthy = CLASSES[NO_TUMOR] in (first.label, second.label)
    neighbours = healthy and bool(first.patient) and first.patient == second.patient
    return not neighbours or pair.likeness >= _THE_SAME


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


def group_patients(samples: Sequence[Sample], pairs: Sequence[Pair]) -> list[int]:
    """A group per sample: slices of one patient, and slices that look alike, are in one group, and so is all that
    hangs together by such links."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first_of: dict[str, int] = {}
    links = [(first_of.setdefault(s.patient, i), i) for i, s in enumerate(samples) if s.patient]
    links += [(pair.first, pair.second) for pair in pairs]
    rows, columns = [a for a, _ in links], [b for _, b in links]
    graph = coo_matrix((np.ones(len(links)), (rows, columns)), shape=(len(samples), len(samples)))
    return [int(group) for group in connected_components(graph, directed=False)[1]]
