"""Masks as polygons and back, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from shapely.geometry import MultiPolygon, Polygon

from tumorlens.data.masks.outlines import fill, outlines_of, single_ring

RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
MASKS = {
    "one pixel": [[1]],
    "empty": [[0, 0], [0, 0]],
    "all": np.ones((3, 5), int),
    "a hole": RING,
    "touching corners": [[1, 0], [0, 1]],
    "a hole that touches the outside at a corner": [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]],
    "a gap that is open at a corner": [[1, 1, 1], [1, 0, 1], [1, 1, 0]],
    "holes that touch at a corner": [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]],
    "a lesion inside a hole": np.pad(np.pad(RING, 1), 1, constant_values=1),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_form_comes_back(name):
    check(np.array(MASKS[name], np.uint8))


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
def test_noise_comes_back(density):
    random = np.random.default_rng(7)
    for _ in range(40):
        check((random.random(random.integers(1, 13, 2)) < density).astype(np.uint8))


def check(mask):
    outlines = outlines_of(mask)
    polygons = [Polygon(outline.exterior, outline.holes) for outline in outlines]
    assert all(polygon.is_valid and polygon.exterior.is_ccw for polygon in polygons)
    assert MultiPolygon(polygons).is_valid
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    rows, columns = mask.shape
    again, cut, by_coco = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    for outline in outlines:
        again |= fill(outline.rings, mask.shape)
        ring = single_ring(outline)
        cut |= fill([ring], mask.shape)
        by_coco |= coco.decode(coco.merge(coco.frPyObjects([ring.ravel().tolist()], rows, columns)))
    for other in (again, cut, by_coco):
        np.testing.assert_array_equal(other, mask)


def test_a_ring_has_corners_only():
    (outline,) = outlines_of(np.ones((3, 5), np.uint8))
    np.testing.assert_array_equal(outline.exterior, [[0, 0], [5, 0], [5, 3], [0, 3]])


def test_slanted_and_overhanging_polygons_are_filled_at_pixel_centers():
    triangle = np.array([(0.0, 0.0), (4.0, 0.0), (0.0, 4.0)])
    np.testing.assert_array_equal(fill([triangle], (4, 4)), np.tri(4, dtype=int)[::-1] - np.eye(4, dtype=int)[::-1])
    np.testing.assert_array_equal(fill([np.array([(-3, -3), (9, -3), (9, 9), (-3, 9)])], (2, 3)), np.ones((2, 3)))
