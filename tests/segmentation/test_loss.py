"""What teaches the segmenter, and the score that its epochs are compared by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tumorlens.segmentation.evaluation.metrics import dice_scores
from tumorlens.segmentation.loss import CrossEntropyDice, taught_logits


@pytest.mark.parametrize("level", [-4.0, 0.0, 4.0])
def test_tumor_free_slices_teach(level):
    """On an empty truth the loss must push every false pixel down; a plain soft Dice does not."""
    logits = torch.full((1, 1, 16, 16), level, requires_grad=True)
    CrossEntropyDice()(logits, torch.zeros(1, 1, 16, 16)).backward()
    assert (logits.grad > 0).all()


def test_the_dice_half_of_the_loss_alone_teaches_on_empty_slices():
    logits = torch.full((1, 1, 8, 8), -1.0, requires_grad=True)
    CrossEntropyDice(dice_weight=1.0)(logits, torch.zeros(1, 1, 8, 8)).backward()
    assert (logits.grad > 0).all()


def test_a_false_pixel_costs_about_the_same_on_a_healthy_slice_as_on_a_sick_one():
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, 0, :12, :12] = 1
    logits = torch.full((2, 1, 32, 32), -4.0)
    logits[:, 0, :12, 16:28] = 4.0  # the same false area on both
    logits[0, 0, :12, :12] = 4.0
    logits.requires_grad_(True)
    CrossEntropyDice()(logits, truth).backward()
    sick, healthy = logits.grad[:, 0, :12, 16:28].mean((1, 2))
    assert 0 < sick / 4 < healthy < sick


def test_empty_cases_of_dice():
    none, some = np.zeros((1, 8, 8), np.uint8), np.ones((1, 8, 8), np.uint8)
    assert dice_scores(none, none).tolist() == [1]
    assert dice_scores(some, none).tolist() == [0]
    assert dice_scores(none, some).tolist() == [0]
    half = some.copy()
    half[:, 4:] = 0
    assert dice_scores(half, some)[0] == pytest.approx(2 / 3)


def test_a_slice_without_a_lesion_teaches_the_highest_of_its_channels():
    logits = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).repeat(2, 1, 4, 4)
    truth = torch.zeros(2, 1, 4, 4)
    truth[0, 0, 0, 0] = 1
    taught = taught_logits(logits, truth, torch.tensor([0, 0]))
    assert taught.shape == truth.shape
    assert taught[0].unique() == 1 and taught[1].unique() == 3
