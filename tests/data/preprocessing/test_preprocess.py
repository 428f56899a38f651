"""The one path to the networks: golden values, the way back, and nothing of the frame left."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tumorlens.data.augmentation.variants import picture_variants
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess, to_gray
from tumorlens.pipeline.evaluation.end_to_end import dice

PREPROCESS = Preprocess(224)
GOLDEN = Path(__file__).parent / "golden"


def likeness(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


@pytest.mark.parametrize(("size", "box"), [(256, (17, 238, 43, 213)), (512, (32, 478, 83, 427))])
def test_golden_values(size, box):
    """Any change here changes what shipped weights see: raise PREPROCESS_VERSION, train again, write new pictures.

    256 pixels are enlarged on their way to 224, since the head's box is cut out first; 512 are reduced.
    """
    prepared = PREPROCESS(phantom_slice(7, "glioma", size=size, pixel_mm=230 / size).image)
    assert prepared.image.dtype == np.uint8
    assert prepared.placement.box == box
    golden = cv2.imread(str(GOLDEN / f"prepared_{size}.png"), cv2.IMREAD_UNCHANGED).astype(int)
    assert prepared.image.shape == golden.shape == (224, 224)
    apart = np.abs(prepared.image - golden)
    assert apart.max() <= 3  # rounding of another processor or library version
    assert (apart > 0).mean() < 0.02


@pytest.mark.parametrize("label", ["glioma", "meningioma", "pituitary"])
@pytest.mark.parametrize("size", [100, 256, 600])
def test_mask_round_trip(label, size):
    phantom = phantom_slice(3, label, size=size, pixel_mm=230 / size)
    prepared = PREPROCESS(phantom.image)
    there = PREPROCESS.mask_to_input(phantom.mask, prepared.placement)
    back = PREPROCESS.mask_to_source(there * np.uint8(255), prepared.placement)
    assert back.shape == phantom.mask.shape
    assert set(np.unique(back)) <= {0, 1}
    assert dice(back, phantom.mask) > 0.95


def test_mask_comes_back_in_place_not_only_in_shape():
    phantom = phantom_slice(3, "meningioma")
    canvas = np.zeros((400, 700), np.uint8)
    canvas[90:346, 400:656] = phantom.image
    prepared = PREPROCESS(canvas)
    there = PREPROCESS.mask_to_input(np.pad(phantom.mask, ((90, 54), (400, 44))), prepared.placement)
    back = PREPROCESS.mask_to_source(there * np.uint8(255), prepared.placement)
    assert dice(back[90:346, 400:656], phantom.mask) > 0.95
    assert back.sum() == back[90:346, 400:656].sum()


@pytest.mark.parametrize("name", picture_variants(np.zeros((256, 256), np.uint8)))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_frame_is_gone(name, seed):
    image = phantom_slice(seed, "glioma").image
    reference = PREPROCESS(image).image
    assert likeness(PREPROCESS(picture_variants(image)[name]).image, reference) > 0.92


def test_nothing_outside_the_head_is_left():
    prepared = PREPROCESS(phantom_slice(5, "no_tumor").image)
    assert (prepared.image[~prepared.head] < 8).mean() > 0.97
    assert prepared.image[:3].max() == 0


def test_anisotropic_pixels_get_their_true_aspect():
    image = phantom_slice(4, "glioma").image
    flat = cv2.resize(image, (256, 128), interpolation=cv2.INTER_AREA)  # pixels twice as high as wide
    assert likeness(PREPROCESS(flat, pixel_aspect=2.0).image, PREPROCESS(image).image) > 0.96
    assert likeness(PREPROCESS(flat).image, PREPROCESS(image).image) < 0.9


def test_a_picture_without_a_head_is_used_whole():
    noise = np.random.default_rng(0).integers(0, 255, (50, 60), np.uint8)
    prepared = PREPROCESS(noise)
    assert prepared.image.shape == (224, 224)
    assert prepared.image.any()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((9, 9)), "same value"),
        (np.zeros((0, 9)), "no pixels"),
        (np.full((9, 9), np.nan), "NaN"),
        (np.zeros((9, 9, 7)), "shape"),
        (np.zeros(9), "shape"),
    ],
)
def test_unusable_slices(array, reason):
    with pytest.raises(InputError, match=reason):
        PREPROCESS(array)


def test_a_mask_of_another_size_is_refused():
    prepared = PREPROCESS(phantom_slice(1).image)
    with pytest.raises(InputError, match="mask has shape"):
        PREPROCESS.mask_to_input(np.zeros((5, 5)), prepared.placement)


def test_gray_is_weighted():
    pixel = np.zeros((2, 2, 3), np.uint8)
    pixel[0, 0] = (255, 0, 0)
    assert to_gray(pixel)[0, 0] == pytest.approx(0.299 * 255)
