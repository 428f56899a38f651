"""Slices for the screen."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan
from tumorlens.pipeline.services.views import View


def _oblique(shape=(6, 8, 10)):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, -3.0, 9], [0, 0, 0, 1]])
    return Scan.from_array(np.arange(np.prod(shape), dtype=np.float64).reshape(shape), affine)


def test_planes_show_the_same_voxel_at_the_cross():
    """The viewer finds a voxel in all planes by the steps that `describe` gives."""
    scan = _oblique()
    view = View(scan)
    facts = view.describe()
    assert facts["panes"][0]["axis"] == scan.slice_axis and len(facts["panes"]) == 3
    position, shape = (1, 6, 7), facts["shape"]
    values = []
    for pane in facts["panes"]:
        places = [
            position[pane[f"{line}_axis"]]
            if pane[f"{line}_step"] == 1
            else shape[pane[f"{line}_axis"]] - 1 - position[pane[f"{line}_axis"]]
            for line in ("row", "column")
        ]
        shown = view.slice(pane["axis"], position[pane["axis"]])
        assert shown.shape == (pane["rows"], pane["columns"])
        values.append(int(shown[tuple(places)]))
    expected = round(float(scan.voxels[position]) / float(scan.voxels.max()) * 65535)
    assert values == [expected] * 3


def test_the_mask_lies_on_the_slice():
    scan = _oblique()
    mask = (scan.voxels > 200).astype(np.uint8)
    view = View(scan, mask)
    for axis in view.axes:
        shown = view.slice(axis, 3).astype(np.float64) / 65535 * scan.voxels.max()
        np.testing.assert_array_equal(view.mask_slice(axis, 3) != 0, shown > 200.001)


def test_a_drawn_slice_changes_that_slice_only():
    scan = _oblique()
    view = View(scan)
    drawn = np.zeros(view.slice(view.axes[0], 0).shape, np.uint8)
    drawn[0, 2] = 1
    view.set_mask_slice(4, drawn)
    np.testing.assert_array_equal(view.mask_slice(view.axes[0], 4), drawn)
    assert view.mask.sum() == 1


def test_color_pictures_and_values_that_are_no_numbers_are_shown():
    color = Scan.from_array(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    assert View(color).slice(0, 0).shape == (20, 30)
    holes = np.random.default_rng(0).normal(size=(20, 30))
    holes[3, 4] = np.nan
    shown = View(Scan.from_array(holes)).slice(0, 0)
    assert shown.dtype == np.uint16 and shown.max() == 65535 and shown.min() == 0


@pytest.mark.parametrize(("axis", "index"), [(0, -1), (0, 99), (7, 0)])
def test_a_slice_that_is_not_there_is_named(axis, index):
    with pytest.raises(InputError, match=r"slice|axis"):
        View(_oblique()).slice(axis, index)
