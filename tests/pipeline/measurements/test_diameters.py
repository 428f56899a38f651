"""Diameters of shapes with known measures: the longest chord, and the longest one across it."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.pipeline.measurements.diameters import diameters, longest_chord


def test_a_single_pixel_is_as_long_as_a_pixel():
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    assert diameters(mask, (1.0, 1.0)).longest == 1.0


def test_the_longest_chord_against_a_fine_comb():
    import cv2

    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.normal(size=(12, 2)).astype(np.float32)
        polygon = cv2.convexHull(points.reshape(-1, 1, 2)).reshape(-1, 2).astype(np.float64)
        angle = rng.uniform(0, np.pi)
        d = np.array([np.cos(angle), np.sin(angle)])
        along, sideways = polygon @ d, polygon @ np.array([-d[1], d[0]])
        comb = np.linspace(sideways.min(), sideways.max(), 4001)
        top, bottom = np.full(comb.shape, -np.inf), np.full(comb.shape, np.inf)
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            low, high = sorted((i, j), key=lambda v: sideways[v])
            t = np.interp(comb, sideways[[low, high]], along[[low, high]], left=np.nan, right=np.nan)
            top, bottom = np.fmax(top, t), np.fmin(bottom, t)
        assert longest_chord(polygon, d) == pytest.approx((top - bottom).max(), abs=5e-3)
        assert longest_chord(polygon, d) >= (top - bottom).max() - 1e-9


def test_the_perpendicular_is_a_chord_and_not_a_width():
    parallelogram = np.array([[0.0, 0.0], [0.0, 10.0], [4.0, 16.0], [4.0, 6.0]])
    diagonal = np.array([4.0, 16.0])
    across = np.array([-16.0, 4.0]) / np.hypot(4, 16)
    width = np.ptp(parallelogram @ across)
    chord = np.hypot(4, 1)  # from the corner (0, 10) to (4, 9) on the opposite side
    assert abs(across @ diagonal) < 1e-12
    assert chord < 0.9 * width
    assert longest_chord(parallelogram, across) == pytest.approx(chord, abs=1e-9)


def test_of_equal_diameters_the_one_with_the_longest_perpendicular_counts():
    mask = np.zeros((21, 21), bool)
    mask[10, :] = mask[:, 10] = True  # a cross: both arms are longest
    assert diameters(mask, (1.0, 1.0)) == diameters(mask.T, (1.0, 1.0))
    assert diameters(mask, (1.0, 1.0)).perpendicular == pytest.approx(21)


def test_the_perpendicular_of_a_line_and_of_a_point_is_a_pixel():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    assert diameters(mask, (1.0, 1.0)).perpendicular == 1.0
    mask[4, :] = True
    line = diameters(mask, (1.0, 1.0))
    assert (line.longest, line.perpendicular) == (9.0, 1.0)
