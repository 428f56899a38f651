"""The mask threshold and the smallest lesion that validation slices choose."""

from __future__ import annotations

import numpy as np

from tumorlens.segmentation.operating_point import PointScore, choose_operating_point, score_points
from tumorlens.segmentation.postprocess import clean_mask


def test_specks_are_dropped_and_the_operating_point_finds_them():
    truth = np.zeros((3, 32, 32), np.uint8)
    truth[:, 5:15, 5:15] = 1
    maps = truth * np.uint8(200)
    maps[:, 25:28, 25:28] = 200
    assert clean_mask(maps[0], 0.5, 15).sum() == 100
    assert clean_mask(maps[0], 0.5, 0).sum() == 109
    assert choose_operating_point(score_points(maps, truth))["min_lesion_px"] > 9


def test_slices_without_a_lesion_do_not_cost_small_tumors():
    """The gate holds them back; they decide only if no slice shows a lesion."""
    truth = np.zeros((5, 32, 32), np.uint8)
    truth[0, 5:9, 5:10] = 1
    maps = truth * np.uint8(200)
    maps[1:, 5:9, 5:10] = 200
    assert choose_operating_point(score_points(maps, truth))["min_lesion_px"] <= 15
    assert {score.n for score in score_points(maps, truth)} == {1}
    assert choose_operating_point(score_points(maps[1:], truth[1:]))["min_lesion_px"] > 20


def test_the_highest_threshold_of_much_the_same_dice_is_taken():
    points = [PointScore(0.3, 0, 0.802, 50), PointScore(0.5, 15, 0.800, 50), PointScore(0.7, 0, 0.790, 50)]
    assert choose_operating_point(points) == {"mask_threshold": 0.5, "min_lesion_px": 15}


def test_folds_are_weighted_by_their_slices():
    few = [PointScore(0.3, 0, 0.9, 10), PointScore(0.5, 0, 0.5, 10)]
    many = [PointScore(0.3, 0, 0.6, 90), PointScore(0.5, 0, 0.7, 90)]
    assert choose_operating_point(few)["mask_threshold"] == 0.3
    assert choose_operating_point(few + many)["mask_threshold"] == 0.5


def test_each_convention_has_a_point_of_its_own():
    one, two = PointScore(0.3, 15, 0.9, 10, "enhancing"), PointScore(0.6, 0, 0.8, 10, "extent")
    point = choose_operating_point([two, one], ("enhancing", "extent"))
    assert (point["mask_threshold"], point["min_lesion_px"]) == (0.3, 15)
    assert point["by_outline"]["extent"] == {"mask_threshold": 0.6, "min_lesion_px": 0}
    assert choose_operating_point([one], ("enhancing",)) == {"mask_threshold": 0.3, "min_lesion_px": 15}
    assert choose_operating_point([one], ("enhancing", "extent"))["by_outline"]["extent"]["mask_threshold"] == 0.5
