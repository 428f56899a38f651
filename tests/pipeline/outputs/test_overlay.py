"""The overlay: true proportions, the window of the header where it fits, and the directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.scans.results import result_of
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs import overlay
from tumorlens.pipeline.outputs.overlay import draw_heat, draw_overlay


def scan_of(windows=(), spacing=(1.0, 1.0, 6.0)):
    voxels = np.tile(np.linspace(0, 1000, 60, dtype=np.float32)[:, None, None], (1, 50, 8))
    return replace(Scan.from_array(voxels, np.diag([*spacing, 1])), windows=windows)


def drawn(scan, index=3):
    result = replace(result_of(scan, np.zeros(scan.voxels.shape, np.uint8)), shown_slice=index)
    return draw_overlay(result)[-1, :, 0]  # the last row, below the caption; the patient's right is on the left


def test_thick_slices_seen_from_the_side_have_true_proportions():
    side = scan_of().with_plane("coronal")
    result = replace(result_of(side, np.zeros(side.voxels.shape, np.uint8)), shown_slice=3)
    assert draw_overlay(result).shape == (512, 640, 3)
    upright = scan_of()
    result = replace(result_of(upright, np.zeros(upright.voxels.shape, np.uint8)), shown_slice=3)
    assert draw_overlay(result).shape == (533, 640, 3)


@pytest.mark.parametrize(
    ("window", "fits"),
    [
        ((200.0, 600.0), True),
        (None, False),
        ((5000.0, 6000.0), False),
        ((0.0, 90000.0), False),
        ((500.0, 501.0), False),
    ],
)
def test_the_window_of_the_header_is_used_where_it_fits(window, fits):
    plain, row = drawn(scan_of()), drawn(scan_of(windows=(window,) * 8))
    assert (not np.array_equal(row, plain)) == fits
    if fits:
        values = np.interp((np.arange(640) + 0.5) * 60 / 640 - 0.5, np.arange(60), np.linspace(1000, 0, 60))
        assert (row[values >= 620] == 255).all() and (row[values <= 180] == 0).all()
        assert 100 < row[np.abs(values - 400).argmin()] < 155


def test_the_window_belongs_to_the_slices_as_acquired():
    windows = ((200.0, 600.0),) * 8
    assert np.array_equal(drawn(scan_of(windows).with_plane("coronal")), drawn(scan_of().with_plane("coronal")))


@pytest.fixture
def written(monkeypatch):
    """What is written on pictures, and at which column."""
    texts = []
    real = overlay.draw_text
    monkeypatch.setattr(overlay, "draw_text", lambda *a, **k: (texts.append((a[1], a[2])), real(*a, **k))[1])
    return texts


@pytest.mark.parametrize(("plane", "letters"), [("axial", "RL"), ("coronal", "RL"), ("sagittal", "AP")])
def test_a_volume_shows_its_directions(plane, letters, written):
    scan = scan_of().with_plane(plane)
    picture = draw_overlay(replace(result_of(scan, np.zeros(scan.voxels.shape, np.uint8)), shown_slice=3))
    places = dict(written)
    assert places[letters[0]] < picture.shape[1] / 4 and places[letters[1]] > picture.shape[1] * 3 / 4
    assert f"{plane} slice 3, research only" in places


def picture_of(rows, columns):
    """The result of a picture with a lesion, and one beside it."""
    mask = np.zeros((rows, columns), np.uint8)
    mask[rows // 4 : rows // 2, columns // 4 : columns // 2] = mask[-rows // 4 : -rows // 8, -columns // 8 :] = 1
    ramp = np.tile(np.linspace(0, 255, columns).astype(np.uint8), (rows, 1))
    return result_of(Scan.from_array(ramp), mask)


def test_a_picture_has_no_directions_and_is_for_research_only(written):
    draw_overlay(replace(picture_of(64, 64), lesions=[]))
    assert [text for text, _ in written] == ["research only"]


@pytest.mark.parametrize(
    ("rows", "columns", "shown"),
    [
        (160, 160, (640, 640)),
        (256, 200, (640, 500)),
        (512, 512, (640, 640)),
        (1024, 900, (1024, 900)),
        (80, 1600, (80, 1600)),
        (40, 400, (64, 640)),
    ],
)
def test_a_picture_is_large_enough_to_be_read(rows, columns, shown):
    assert draw_overlay(picture_of(rows, columns)).shape[:2] == shown


def test_contours_are_smooth_at_the_size_of_the_picture():
    """They are drawn after enlarging: a line of a pixel or two, not blocks of a slice's pixels."""
    picture = draw_overlay(picture_of(64, 64))
    line = (picture == (255, 225, 0)).all(axis=2)
    assert 0 < np.count_nonzero(line[200]) <= 8


def test_several_lesions_have_numbers_inside_of_the_picture(written):
    picture = draw_overlay(picture_of(64, 64))
    numbers = {text: x for text, x in written if text.isdigit()}
    assert set(numbers) == {"1", "2"} and max(numbers.values()) < picture.shape[1]


def test_a_flat_slice_is_explained_below_itself():
    for rows, columns in ((64, 64), (40, 400)):
        result = picture_of(rows, columns)
        picture = draw_heat(replace(result, heat=np.ones((rows, columns), np.float32)))
        height, width = draw_overlay(result).shape[:2]
        assert (picture.shape[1] > 2 * width) == (rows == columns)
        assert (picture.shape[0] > 2 * height) == (rows != columns)


@pytest.mark.parametrize(("label", "sought"), [("no_tumor", "no tumor"), ("tumor", "meningioma"), ("glioma", "glioma")])
def test_an_explanation_says_what_it_is(label, sought, monkeypatch):
    said = []
    real = overlay.band
    monkeypatch.setattr(overlay, "band", lambda lines, *a: (said.extend(lines), real(lines, *a))[1])
    odds = {"no_tumor": 0.1, "glioma": 0.3, "meningioma": 0.5, "pituitary": 0.1}
    draw_heat(replace(picture_of(64, 64), label=label, probabilities=odds, heat=np.ones((64, 64), np.float32)))
    assert said == [
        f"Grad-CAM: where the classifier looked for '{sought}'; not an outline of the tumor. Research only."
    ]
