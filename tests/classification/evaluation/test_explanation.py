"""Scores of explanations on drawn cases, and the picture of an explanation."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.classification.evaluation.explanation import (
    draw_explanation,
    energy_inside,
    explanation_report,
    pointing_game,
    within,
)


def square(top, left, side=10, size=100):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def spot(row, column, size=100):
    cam = np.zeros((size, size), np.float32)
    cam[row, column] = 1
    return cam


def test_pointing_game_forgives_its_tolerance():
    mask = square(40, 40)  # rows and columns 40 .. 49
    assert pointing_game(spot(45, 45), mask) is True
    assert pointing_game(spot(45, 52), mask) is True  # 3 px of 100 by default
    assert pointing_game(spot(45, 53), mask) is False
    assert pointing_game(spot(52, 52), mask) is False  # 4.2 px along the diagonal
    assert pointing_game(spot(45, 50), mask, tolerance_px=0) is False
    assert pointing_game(spot(0, 0), mask, tolerance_px=100) is True
    assert pointing_game(np.zeros((100, 100)), mask) is False
    assert pointing_game(spot(1, 1), np.zeros((100, 100))) is None
    assert within(mask, 0).sum() == 100 and not within(np.zeros((5, 5))).any()


def test_energy_is_the_share_inside():
    mask = square(0, 0, side=50)
    cam = np.ones((100, 100), np.float32)
    assert energy_inside(cam, mask) == pytest.approx(0.25)
    cam[:50, :50] = 3
    assert energy_inside(cam, mask * 255) == pytest.approx(0.5)
    assert energy_inside(np.zeros((100, 100)), mask) == 0
    assert energy_inside(cam, np.zeros((100, 100))) is None


def test_report_counts_by_class_and_knows_chance():
    """Glioma hit twice, meningioma once of two; a slice without mask says nothing."""
    masks = np.stack([square(40, 40), square(10, 10), square(60, 60), square(60, 60), np.zeros((100, 100), np.uint8)])
    cams = np.stack([spot(44, 44), spot(12, 12), spot(65, 65), spot(5, 5), spot(5, 5)])
    labels = np.array([1, 1, 2, 2, 0])
    report = explanation_report(cams, masks, labels, ["a", "b", "c", "d", "e"], tolerance_px=0)
    assert report["n_without_mask"] == 1 and report["tolerance_px"] == 0
    every = report["all"]
    assert every["n"] == 4
    assert every["pointing_game"]["value"] == every["energy_inside"]["value"] == 0.75
    assert every["pointing_chance"]["value"] == every["energy_chance"]["value"] == pytest.approx(0.01)
    assert report["by_class"]["glioma"]["pointing_game"] == {"value": 1, "low": 1, "high": 1}
    assert report["by_class"]["meningioma"]["energy_inside"] == {"value": 0.5, "low": 0, "high": 1}
    assert report["by_class"]["no_tumor"] == {"n": 0} | dict.fromkeys(set(every) - {"n"})
    assert "pituitary" not in report["by_class"]


def test_chance_and_center_are_those_of_the_region():
    masks, regions = square(20, 20)[None], square(10, 10, side=30)[None]
    cams = spot(0, 0)[None]
    scores = explanation_report(cams, masks, np.array([3]), ["a"], regions, tolerance_px=0)["all"]
    assert scores["energy_chance"]["value"] == scores["pointing_chance"]["value"] == pytest.approx(100 / 900)
    assert scores["pointing_center"]["value"] == 1
    picture = explanation_report(cams, masks, np.array([3]), ["a"], tolerance_px=0)["all"]
    assert picture["pointing_center"]["value"] == 0
    nowhere = explanation_report(cams, masks, np.array([3]), ["a"], np.zeros((1, 100, 100)), tolerance_px=0)["all"]
    assert nowhere == picture


def test_picture_is_the_slice_where_nothing_is_hot():
    image = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    cold = draw_explanation(image, np.zeros((100, 100)))
    assert cold.dtype == np.uint8 and np.array_equal(cold, np.repeat(image[..., None], 3, axis=2))
    cam = np.zeros((100, 100))
    cam[:50] = np.linspace(0, 1, 100)
    hot = draw_explanation(np.full((100, 100), 90, np.uint8), cam, square(70, 70))
    assert (hot[60, :60] == 90).all()
    red_less_blue = hot[10].astype(int) @ [1, 0, -1]
    assert red_less_blue[0] == 0 and red_less_blue[99] > 50
    assert (hot[70, 70] == (0, 255, 255)).all() and (hot[75, 75] == 90).all()
