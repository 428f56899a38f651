"""The overlay: true proportions, the window of the header where it fits, and the directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.scans.results import result_of
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs.overlay import draw_overlay


def scan_of(windows=(), spacing=(1.0, 1.0, 6.0)):
    voxels = np.tile(np.linspace(0, 1000, 60, dtype=np.float32)[:, None, None], (1, 50, 8))
    return replace(Scan.from_array(voxels, np.diag([*spacing, 1])), windows=windows)


def drawn(scan, index=3):
    result = replace(result_of(scan, np.zeros(scan.voxels.shape, np.uint8)), shown_slice=index)
    return draw_overlay(result)[-1, :, 0]  # the last row, below the caption; the patient's right is on the left


def test_thick_slices_seen_from_the_side_have_true_proportions():
    side = scan_of().with_plane("coronal")
    result = replace(result_of(side, np.zeros(side.voxels.shape, np.uint8)), shown_slice=3)
    assert draw_overlay(result).shape == (48, 60, 3)
    upright = scan_of()
    result = replace(result_of(upright, np.zeros(upright.voxels.shape, np.uint8)), shown_slice=3)
    assert draw_overlay(result).shape == (50, 60, 3)


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
        values = np.linspace(1000, 0, 60)
        assert (row[values >= 600] == 255).all() and (row[values <= 200] == 0).all()
        assert 100 < row[np.abs(values - 400).argmin()] < 155


def test_the_window_belongs_to_the_slices_as_acquired():
    windows = ((200.0, 600.0),) * 8
    assert np.array_equal(drawn(scan_of(windows).with_plane("coronal")), drawn(scan_of().with_plane("coronal")))


@pytest.mark.parametrize(("plane", "letters"), [("axial", "RL"), ("coronal", "RL"), ("sagittal", "AP")])
def test_a_volume_shows_its_directions(plane, letters, monkeypatch):
    from tumorlens.pipeline.outputs import overlay

    written = []
    real = overlay.cv2.putText
    monkeypatch.setattr(overlay.cv2, "putText", lambda *a, **k: (written.append((a[1], a[2][0])), real(*a, **k))[1])
    scan = scan_of().with_plane(plane)
    picture = draw_overlay(replace(result_of(scan, np.zeros(scan.voxels.shape, np.uint8)), shown_slice=3))
    places = dict(written)
    assert places[letters[0]] < picture.shape[1] / 4 and places[letters[1]] > picture.shape[1] * 3 / 4
    assert f"{plane} slice 3, research only" in places


def test_a_picture_has_no_directions():
    scan = Scan.from_array(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    result = replace(result_of(scan, np.zeros((64, 64), np.uint8)), shown_slice=0)
    assert (draw_overlay(result)[32:, 0] < 5).all()  # where a letter would stand
