"""Areas, volumes and diameters of shapes whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest

from data.scan import Scan
from pipeline.lesions import longest_diameter, measure_lesions


def test_a_disk_in_a_picture():
    y, x = np.mgrid[:100, :120]
    mask = ((y - 40) ** 2 + (x - 70) ** 2 <= 15**2).astype(np.uint8)
    mask[90:93, 5:8] = 1
    large, small = measure_lesions(mask, Scan.from_array(mask))
    assert (large.area_px, small.area_px) == (int(mask.sum()) - 9, 9)
    assert large.longest_diameter_px == pytest.approx(31, abs=0.1)
    assert (large.bbox_min, large.bbox_max) == ((25, 55), (56, 86))
    assert large.area_mm2 is large.longest_diameter_mm is large.volume_mm3 is None


def test_a_picture_with_known_spacing():
    mask = np.zeros((20, 20), np.uint8)
    mask[4:8, 3:13] = 1
    (lesion,) = measure_lesions(mask, Scan.from_array(mask, spacing_mm=(2.0, 0.5)))
    assert lesion.area_mm2 == 40
    # 3 steps of 2 mm and 9 of 0.5 mm between centres, and one pixel's mean width
    assert lesion.longest_diameter_mm == pytest.approx(np.hypot(6, 4.5) + 1.25, abs=0.01)


def test_a_ball_in_a_volume():
    spacing = np.array([1.0, 0.8, 4.0])
    shape = (80, 90, 20)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing
    mask = (np.linalg.norm(grid - np.array([40, 35, 40.0]), axis=-1) <= 14).astype(np.uint8)
    scan = Scan.from_array(mask, np.diag([*spacing, 1.0]))
    (lesion,) = measure_lesions(mask, scan)
    assert lesion.volume_mm3 == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.03)
    assert lesion.longest_diameter_mm == pytest.approx(28, abs=1)
    assert lesion.slice_index == 10
    assert lesion.area_mm2 == pytest.approx(np.pi * 14**2, rel=0.02)


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1] = mask[2, 2] = 1
    assert len(measure_lesions(mask, Scan.from_array(mask))) == 1


def test_an_empty_mask_has_no_lesion():
    mask = np.zeros((6, 6), np.uint8)
    assert measure_lesions(mask, Scan.from_array(mask)) == []


def test_a_single_pixel_is_as_long_as_a_pixel():
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    assert longest_diameter(mask, (1.0, 1.0)) == 1.0
