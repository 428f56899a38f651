"""Pieces of volumes and pictures are those of SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tumorlens.data.components import label_pieces, linked


def snakes():
    """A single piece that goes up and down through the slices, and one that crosses each slice before it goes up."""
    up = np.zeros((9, 40, 40), bool)
    up[:, ::2], up[-1, 1::4], up[0, 3::4] = True, True, True
    across = np.zeros((9, 40, 40), bool)
    across[::2], across[1::4, 0, 0], across[3::4, -1, -1] = True, True, True
    return [up, across]


def masks():
    rng = np.random.default_rng(7)
    for shape in (
        (1, 1, 1),
        (5, 40, 30),
        (40, 30, 5),
        (30, 5, 40),
        (20, 20, 20),
        (1, 30, 40),
        (30, 40),
        (1, 9),
        (9, 1),
    ):
        for share in (0.0, 0.05, 0.2, 0.3, 0.5, 1.0):
            yield rng.random(shape) < share
    yield ndimage.gaussian_filter(rng.normal(size=(60, 50, 40)), 2) > 0
    yield from snakes()


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("mask", list(masks()))
def test_pieces_are_those_of_scipy(mask, corners):
    numbers, count = label_pieces(mask, corners)
    expected, n = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim if corners else 1))
    assert count == n and numbers.shape == mask.shape
    # One number of ours for each of theirs, and the other way round.
    pairs = np.unique(np.stack([numbers.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected)) == len(np.unique(numbers))
    np.testing.assert_array_equal(numbers > 0, mask)
    assert numbers.max(initial=0) == count


def test_parts_of_arrays_have_pieces_too():
    whole = np.zeros((12, 14, 16), bool)
    whole[2:5, 3:6, 4:8] = whole[7:9, 3:6, 4:8] = True
    assert label_pieces(whole.T[4:12, 2:8:2, ::-1], True)[1] == 2


@pytest.mark.parametrize("n", [0, 10, 300, 2000])
def test_groups_are_those_of_scipy(n):
    links = np.random.default_rng(n).integers(0, 500, (2, n))
    graph = coo_array((np.ones(n), tuple(links)), shape=(500, 500))
    np.testing.assert_array_equal(linked(500, links), connected_components(graph, directed=False)[1])


def test_a_long_chain_is_one_group():
    order = np.random.default_rng(3).permutation(10_000)
    assert (linked(10_000, np.stack([order[:-1], order[1:]])) == 0).all()
