"""The worst cases: which are kept, and that their picture shows both borders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tumorlens.pipeline.evaluation.segmentation import badness
from tumorlens.pipeline.evaluation.worst_cases import Worst, WorstCase, plot_worst
from tumorlens.segmentation.evaluation.metrics import SliceScores

FLAT = np.tile(np.arange(80, dtype=np.uint8), (64, 1))


def square(top, left, side):
    mask = np.zeros((64, 80), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def scores(dice, truth=100, guess=100):
    overlap = int(dice * (truth + guess) / 2)
    return SliceScores(dice, dice, 1.0, dice, truth, guess, 1, 1, 0, overlap, 5000)


def test_the_lowest_keys_are_kept_in_order_and_the_first_of_equals():
    worst = Worst(3)
    for number, key in enumerate((5, 1, 4, 1, 9)):
        worst.offer((key,), WorstCase(FLAT, str(number), "p"))
    assert [case.title for case in worst.items] == ["1", "3", "2"]
    assert Worst().items == []


def test_of_equal_dice_the_slice_that_misses_most_comes_first():
    found = [scores(0.9), scores(0.0, guess=0), scores(0.0, truth=500, guess=0), scores(0.3)]
    assert sorted(range(4), key=lambda i: badness(found[i])) == [2, 1, 3, 0]


@pytest.mark.parametrize("n", [1, 5])
def test_any_number_of_cases_is_drawn(tmp_path, n):
    color = np.stack([FLAT] * 3, axis=-1)
    cases = [WorstCase(color, "glioma, Dice 0.10", "a" * 60, square(5, 5, 20), 0 * FLAT, 2.0)] * n
    plot_worst(cases, tmp_path / "worst.png", "lowest Dice")
    plot_worst([WorstCase(FLAT, "true: glioma\nmeningioma 0.99", "p")] * n, tmp_path / "mistakes.png", "mistakes")
    for name in ("worst", "mistakes"):
        assert Image.open(tmp_path / f"{name}.png").size > (300, 200)


def test_both_borders_are_drawn(tmp_path):
    truth, guess = square(5, 5, 40), square(20, 30, 40)

    def colored(*masks):
        plot_worst([WorstCase(FLAT, "glioma", "p", *masks)], tmp_path / "x.png", "t")
        pixels = np.array(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3).astype(int)
        return [(abs(pixels - c).max(axis=1) < 12).sum() for c in ((0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00))]

    legend = colored(0 * truth, 0 * guess)
    both, missed = colored(truth, guess), colored(truth, 0 * guess)
    assert both[0] > 2 * legend[0] and both[1] > 2 * legend[1]
    assert missed[0] > 2 * legend[0] and missed[1] == legend[1]
    assert colored() == [0, 0]  # no masks are compared, so no legend
