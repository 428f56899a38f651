"""The rule for volumes: the features of a suspicion, and its confidence."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.scan import Scan
from tumorlens.pipeline.volumes.planes import PlaneAnswer
from tumorlens.pipeline.volumes.rule import Features, Rule, suspicions_of

SCAN = Scan.from_array(np.zeros((20, 20, 10)), np.diag([1.0, 1.0, 5.0, 1.0]))


def in_plane(axis, tumor, kind=1):
    """A plane whose slices have these tumor probabilities; None for those that the classifier did not see."""
    scan = SCAN.in_plane(axis)
    table = np.full((scan.n_slices, 4), np.nan, np.float32)
    for k, p in enumerate(tumor):
        if p is not None:
            table[k] = 0
            table[k, 0], table[k, kind] = 1 - p, p
    return PlaneAnswer(scan, {}, table)


def one(answers, member, level=204):
    numbers = member.astype(np.uint16)
    (suspicion,) = suspicions_of(numbers, (member * level).astype(np.uint8), answers, 200.0)
    return suspicion


def block(depth=2):
    member = np.zeros(SCAN.voxels.shape, bool)
    member[2:7, 2:6, 3 : 3 + depth] = True
    return member


def test_the_features_of_a_suspicion():
    suspicion = one([in_plane(2, [0.5] * 3 + [0.9, 0.9] + [0.5] * 5)], block())
    features = suspicion.features
    assert suspicion.voxels == 40
    assert features.map == pytest.approx(0.8)
    assert features.slices == pytest.approx(np.log(9), abs=1e-4)
    assert features.both == pytest.approx(0.8 * np.log(9), abs=1e-4)
    assert features.size == pytest.approx(np.log(20 / 200))
    assert features.depth == 2
    np.testing.assert_allclose(suspicion.types, [0.9, 0, 0], atol=1e-6)


def test_slices_count_by_area_and_planes_alike():
    member = block()
    member[2:7, 2:6, 4] = False
    member[2, 2, 4] = True  # 20 pixels in slice 3, one in slice 4
    first = in_plane(2, [0.5] * 3 + [0.9, 0.1] + [0.5] * 5)
    assert one([first], member).features.slices == pytest.approx(np.log(9) * 19 / 21, abs=1e-4)
    other = in_plane(0, [None] * 3 + [0.5] + [None] * 16)
    both = one([first, other], member).features.slices
    assert both == pytest.approx(np.log(9) * 19 / 42, abs=1e-4)


def test_certain_slices_are_bounded_and_unseen_ones_say_nothing():
    assert one([in_plane(2, [1.0] * 10)], block()).features.slices == 4
    unseen = one([in_plane(2, [None] * 10)], block())
    assert unseen.features.slices == 0 and not unseen.types.any()


def test_more_than_four_slices_are_not_surer():
    assert one([in_plane(2, [0.5] * 10)], block(6)).features.depth == 4


def test_only_the_largest_suspicions_are_judged():
    numbers = np.zeros(SCAN.voxels.shape, np.uint16)
    numbers[::2, ::2, 0] = np.arange(1, 101).reshape(10, 10)
    assert len(suspicions_of(numbers, numbers.astype(np.uint8), [in_plane(2, [0.5] * 10)], 200.0)) == 32


def test_confidence_is_a_logistic_regression():
    features = Features(map=0.5, slices=2.0, both=1.0, size=-3.0, depth=4.0)
    assert Rule(1, 2, 0, 0, 0, 0).confidence(features) == pytest.approx(1 / (1 + np.exp(-2)))
    assert Rule(0, 0, 1, -1, 1, 0.5).confidence(features) == pytest.approx(0.5)


def test_the_default_rule_knows_a_lesion_from_a_stripe():
    rule = Rule()
    assert rule.confidence(Features(0.9, 3.1, 2.8, -2.7, 4)) > 0.9
    assert rule.confidence(Features(0.5, -2.0, -1.0, -4.5, 1)) < 0.1
    assert rule.nothing < 0.1


def test_the_rule_is_read_from_a_card():
    assert Rule.of_card({}) == Rule()
    card = {"lesion_rule": {"bias": -1, "map": 2, "method": "words"}}
    assert Rule.of_card(card) == Rule(bias=-1.0, map=2.0)
