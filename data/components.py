"""What hangs together: the pieces of a volume or a picture, in slices by OpenCV and from slice to slice by links."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def label_pieces(mask: NDArray[np.bool_], corners: bool) -> tuple[NDArray[np.int32], int]:
    """The number of each voxel's piece, 0 outside of the mask, and how many pieces there are.

    Args:
        mask: A picture or a volume.
        corners: Whether voxels that share only a corner or an edge hang together.
    """
    volume = mask if mask.ndim == 3 else mask[None]
    axis = int(np.argmin(volume.shape))
    slices = np.moveaxis(volume, axis, 0)
    numbers = np.zeros(slices.shape, np.int32)
    count, links = 0, [np.zeros((2, 0), np.int32)]
    connectivity = 8 if corners else 4
    for k, plane in enumerate(slices):
        if not plane.any():
            continue
        below, own = numbers[k - 1] if k else np.zeros_like(numbers[0]), numbers[k]
        count = _label(plane, connectivity, count, own)
        if not corners:
            links.append(_pairs(below, own))
        elif below.any():
            # What touches in the shadow of both slices touches in space, if corners count.
            shadow = np.zeros_like(own)
            count = _label(plane | (below > 0), connectivity, count, shadow)
            links += [_pairs(below, shadow), _pairs(own, shadow)]
    piece_of = linked(count + 1, np.concatenate(links, axis=1))
    for plane in numbers:
        plane[:] = piece_of[plane]
    return np.moveaxis(numbers, 0, axis).reshape(mask.shape), int(piece_of.max())


def _label(plane: NDArray[np.bool_], connectivity: int, count: int, out: NDArray[np.int32]) -> int:
    """Write the numbers of a slice's pieces, from `count` + 1 on. Returns the highest number."""
    pieces, labels = cv2.connectedComponents(plane.astype(np.uint8), connectivity=connectivity)
    np.add(labels, count, out=out, where=labels > 0)
    return count + int(pieces) - 1


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    """``(2, n)`` numbers that two slices have at one place; most of them once."""
    both = (first > 0) & (second > 0)
    pairs = np.stack([first[both], second[both]])
    is_new = np.ones(pairs.shape[1], bool)
    is_new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return pairs[:, is_new]


def linked(count: int, links_2n: NDArray[np.integer]) -> NDArray[np.intp]:
    """The group of each of `count` nodes: links connect all nodes of a group. Groups are numbered by their first nodes.

    Args:
        count: Number of nodes.
        links_2n: ``(2, n)`` both nodes of each link.
    """
    root = np.arange(count)
    while True:
        first, second = root[links_2n]
        apart = first != second
        if not apart.any():
            return np.unique(root, return_inverse=True)[1]
        np.minimum.at(root, np.maximum(first, second)[apart], np.minimum(first, second)[apart])
        while not np.array_equal(root, nearer := root[root]):
            root = nearer
