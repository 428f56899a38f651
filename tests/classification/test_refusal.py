"""The refusal scores the features of a picture, and fits to the tensors in the file of the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tumorlens.classification.network import pooled
from tumorlens.classification.refusal import Refusal, take_refusal
from tumorlens.data.errors import InputError


def test_one_wild_feature_does_not_decide():
    ones = np.ones(40, np.float32)
    head = Refusal("x", 0 * ones, ones, ones, 0.0, 10.0)
    wild = np.zeros((1, 40), np.float32)
    wild[0, 0] = 1e6
    assert head.strangeness(wild)[0] == 8


def test_features_are_mean_and_deviation():
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    deviation = np.std([0, 1, 2, 3])
    assert pooled(maps)[0].tolist() == pytest.approx([1.5, 5.5, deviation, deviation])


def test_a_card_that_does_not_fit_its_tensors(tmp_path):
    head = Refusal("layer3", *(np.ones(4, np.float32),) * 3, 0.5, 1.0)
    for facts, tensors in (
        ({"layer": "layer3"}, head.tensors()),
        (head.facts(), {}),
        (None, head.tensors()),
        ("yes", head.tensors()),
    ):
        with pytest.raises(InputError, match=r"w\.json: the card's refusal does not fit"):
            take_refusal(dict(tensors), {"refusal": facts}, tmp_path / "w.safetensors")
    uneven = head.tensors() | {"refusal.mean": torch.ones(3)}
    with pytest.raises(InputError, match="different shapes"):
        take_refusal(uneven, {"refusal": head.facts()}, tmp_path / "w.safetensors")
    state = {"fc.weight": torch.ones(2), **head.tensors()}
    back = take_refusal(state, {"refusal": json.loads(json.dumps(head.facts()))}, tmp_path / "w.safetensors")
    assert list(state) == ["fc.weight"]
    assert back.limit == 1.0
    assert take_refusal({}, {}, tmp_path / "w.safetensors") is None
