"""Regions: named on the command line, kept on a card, read from masks and painted again."""

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import Regions

BRATS = ("whole=1,2,4", "core=1,4", "enhancing=4")


def test_the_values_that_come_out_are_those_that_went_in():
    regions = Regions.parse(BRATS)
    values = np.array([[0, 1, 2, 4], [4, 2, 1, 0]], np.uint8)
    planes = regions.planes(regions.bits(values))
    assert planes.tolist()[0] == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert planes.tolist()[1] == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert planes.tolist()[2] == [[0, 0, 0, 1], [1, 0, 0, 0]]
    assert np.array_equal(regions.paint(planes), values)


def test_regions_that_do_not_lie_in_each_other_keep_their_values():
    regions = Regions.parse(["edema=2", "necrosis=1", "enhancing=4"])
    values = np.array([0, 1, 2, 4, 3, 300, -1])
    assert regions.paint(regions.planes(regions.bits(values))).tolist() == [0, 1, 2, 4, 0, 0, 0]


def test_a_card_keeps_them():
    regions = Regions.parse(BRATS)
    assert Regions.from_card(regions.to_card()) == regions
    assert regions.painted == (2, 1, 4)
    assert not Regions.from_card({}) and Regions().to_card() == {}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["whole"], "--region whole: give it as NAME=VALUES, such as core=1,4"),
        (["whole=1,x"], "give it as NAME=VALUES"),
        (["Whole=1"], "'Whole' is no valid name"),
        (["a=1", "a=2"], "there are two regions a"),
        (["a=0"], "the values of a are not between 1 and 255"),
        (["core=1,4", "whole=1,2,4"], "the regions after core have all of its values; name the largest region first"),
        (["a=1,2", "b=2,3"], "b does not lie in a; regions lie in each other or apart"),
        ([f"r{k}={k}" for k in range(1, 10)], "9 regions are more than 8"),
    ],
)
def test_what_cannot_be_regions_is_said_in_a_sentence(texts, said):
    with pytest.raises(InputError, match=said):
        Regions.parse(texts)


def test_a_broken_card_is_said_in_a_sentence():
    with pytest.raises(InputError, match="regions on the card"):
        Regions.from_card({"regions": [{"name": "whole"}]})
