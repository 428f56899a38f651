"""Letters on pictures: white in a rim that fits, inside of the picture, at a size that fits it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from tumorlens.pipeline.outputs.text import band, draw_caption, draw_text, fitted, letter_size, text_width

GRAY = 120


@pytest.mark.parametrize("size", [11, 20, 32, 48])
@pytest.mark.parametrize("text", ["meningioma 0.99", "R", "axial slice 57, research only"])
def test_white_letters_lie_in_a_rim_that_fits(size, text):
    """OpenCV drew the rim as the same letters with a thicker pen, which are wider: it ran away from them."""
    picture = np.full((100, 1200, 3), GRAY, np.uint8)
    draw_text(picture, text, 20, 20, size)
    white, black = (picture > 170).all(axis=2), (picture < 60).all(axis=2)
    assert white.any() and black.any()
    rim = max(1, round(size / 10))
    assert distance_transform_edt(~white)[black].max() <= rim + 2
    assert distance_transform_edt(~black)[white].max() <= size / 4  # no letter without its rim
    changed = np.argwhere((picture != GRAY).any(axis=2))
    assert np.ptp(changed[:, 1]) <= text_width(text, size)


def test_what_lies_outside_is_cut_off():
    picture = np.zeros((20, 20, 3), np.uint8)
    for x, y in ((-5, 5), (15, 15), (50, 5), (5, 50), (-400, 5)):
        draw_text(picture, "outside", x, y, 12)
    assert picture.any()


@pytest.mark.parametrize("shape", [(640, 640), (640, 90), (80, 1600), (30, 640), (640, 60)])
def test_a_caption_fits_its_picture(shape):
    size = letter_size(*shape)
    assert 11 <= size <= 48 and fitted("meningioma 0.99", size, shape[1] - 8) <= size
    picture = np.full((*shape, 3), GRAY, np.uint8)
    draw_caption(picture, "meningioma 0.99")
    assert (picture[:, -2:] == GRAY).all() and (picture > 200).any()


def test_long_lines_are_broken_between_words():
    text = "Grad-CAM: where the classifier looked for 'glioma'; not an outline of the tumor."
    wide, narrow = band([text], 1200, 20), band([text], 300, 20)
    assert wide.shape[1] == 1200 and narrow.shape[1] == 300 and len(narrow) > 2 * len(wide)
    assert (narrow[:, -3:] < 60).all()
