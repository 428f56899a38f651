"""Drawing on a mask."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan
from tumorlens.pipeline.services.reviews.editor import Editor
from tumorlens.pipeline.services.reviews.store import Store
from tumorlens.pipeline.services.views import View

SHAPE = (20, 24, 7)


def _disc(radius, center=(10, 12), shape=(24, 20)):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - center[1]) ** 2 + (columns - center[0]) ** 2 <= radius**2).astype(np.uint8)


@pytest.fixture
def make_editor(tmp_path):
    """Opens the scan again, as a reload does."""
    voxels = np.random.default_rng(0).normal(size=SHAPE)
    scan = Scan.from_array(voxels, np.diag([1.0, 1.0, 5.0, 1.0]))

    def make(reviewer="Ann"):
        mask = np.zeros(SHAPE, np.uint8)
        mask[8:12, 8:12, 3] = 1
        return Editor(View(scan, mask), Store(tmp_path), "a.nii.gz", reviewer)

    return make


def test_what_is_drawn_is_in_the_mask_where_it_was_drawn(make_editor):
    editor = make_editor()
    axis = editor.view.axes[0]
    drawn = editor.view.mask_slice(axis, 2).copy()
    drawn[1, 4] = 1  # far from the middle, so that a flip would show
    assert editor.draw("brush", 2, drawn) == [2]
    (place,) = np.argwhere(editor.view.mask[..., 2])
    scan = editor.view.scan
    assert scan.place_in_view([*place]) == (1, 4)
    assert editor.changed and editor.n_undo == 1


def test_undo_gives_the_very_mask_back_and_redo_repeats(make_editor):
    editor = make_editor()
    before = editor.view.mask.copy()
    editor.draw("brush", 3, _disc(5))
    editor.draw("eraser", 3, _disc(2))
    after = editor.view.mask.copy()
    assert editor.undo() == [3] and editor.undo() == [3]
    np.testing.assert_array_equal(editor.view.mask, before)
    assert not editor.changed and editor.undo() == []
    editor.redo(), editor.redo()
    np.testing.assert_array_equal(editor.view.mask, after)


def test_a_reload_keeps_strokes_and_the_way_back(make_editor):
    editor = make_editor()
    original = editor.view.mask.copy()
    editor.draw("brush", 3, _disc(5))
    editor.draw("brush", 4, _disc(3))
    editor.undo()
    again = make_editor()
    np.testing.assert_array_equal(again.view.mask, editor.view.mask)
    assert (again.n_undo, again.n_redo) == (1, 1)
    again.undo()
    np.testing.assert_array_equal(again.view.mask, original)
    assert not make_editor("Bob").changed, "another reviewer begins with the model's mask"


def test_the_neighbor_is_copied(make_editor):
    editor = make_editor()
    axis = editor.view.axes[0]
    assert editor.copy(4, -1) == [4]
    np.testing.assert_array_equal(editor.view.mask_slice(axis, 4), editor.view.mask_slice(axis, 3))
    assert editor.copy(2, 1) == [2]
    with pytest.raises(InputError, match="no slice -1"):
        editor.copy(0, -1)


def test_slices_between_outlines_are_interpolated(make_editor):
    editor = make_editor()
    axis = editor.view.axes[0]
    editor.clear()
    editor.draw("brush", 1, _disc(8))
    editor.draw("brush", 5, _disc(4))
    assert editor.interpolate(3) == [2, 3, 4]
    areas = [int(editor.view.mask_slice(axis, k).sum()) for k in range(7)]
    assert areas[0] == areas[6] == 0
    assert areas[1] > areas[2] > areas[3] > areas[4] > areas[5] > 0
    expected = int(_disc(6).sum())
    assert abs(areas[3] - expected) < 0.15 * expected, "halfway it is a disc of the mean radius"
    assert editor.undo() == [2, 3, 4], "it is one change"


@pytest.mark.parametrize(("index", "words"), [(6, "below and on one above"), (3, "nothing between")])
def test_interpolation_says_what_it_needs(make_editor, index, words):
    editor = make_editor()
    editor.draw("brush", 4, _disc(3))
    with pytest.raises(InputError, match=words):
        editor.interpolate(index)


def test_nonsense_is_refused_and_nothing_is_stored(make_editor):
    editor = make_editor()
    for tool, index, mask in (("spray", 3, _disc(3)), ("brush", 99, _disc(3)), ("brush", 3, np.ones((3, 3), np.uint8))):
        with pytest.raises(InputError):
            editor.draw(tool, index, mask)
    assert editor.n_undo == 0 and make_editor().n_undo == 0


def test_a_stroke_that_changes_nothing_is_not_a_change(make_editor):
    editor = make_editor()
    same = editor.view.mask_slice(editor.view.axes[0], 3).copy()
    assert editor.draw("brush", 3, same) == [] and editor.n_undo == 0
