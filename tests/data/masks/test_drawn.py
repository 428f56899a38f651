"""Drawings that are damaged, degenerate or of other pictures: one sentence each, and never an empty or smaller mask."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.errors import InputError
from tumorlens.data.masks.coco import draw_coco, read_coco
from tumorlens.data.masks.geojson import read_geojson
from tumorlens.data.masks.labelme import read_labelme

PATH, SHAPE = Path("a.json"), (9, 7)
SQUARE = [[1, 1], [4, 1], [4, 4], [1, 4]]
DAMAGED, OTHER_SIZE = "or it is damaged", "the mask has"
NO_AREA, FAR, OUTSIDE, REACHES_OUT = "no area", "far outside", "outside of its picture", "reaches out of its picture"

RINGS = [
    ([[1, 1], [4, 4]], NO_AREA),
    ([[1, 1], [4, 4], [1, 1]], NO_AREA),
    ([[1, 1], [2, 2], [4, 4]], NO_AREA),
    ([[1, 1], [float("nan"), 1], [4, 4]], FAR),
    ([[1, 1], [float("inf"), 1], [4, 4]], FAR),
    ([[1, 1], [10**400, 1], [4, 4]], DAMAGED),
    ([[1, 1], [4, 1], [4, 19]], FAR),
    ([[1, 1], [4, 1], [-8, 4]], FAR),
    ([[-4, 1], [-1, 1], [-1, 4]], OUTSIDE),
    ([["a", 1], [4, 1], [4, 4]], DAMAGED),
    ([[1, 1], [4, 1], None], DAMAGED),
]


def is_refused(read, reason):
    with pytest.raises(InputError) as caught:
        read()
    text = str(caught.value)
    assert text.startswith("a.json: ")
    assert reason in text
    assert not re.search(r"[A-Z][a-z]+Error", text)
    assert len(text) < 200


def coco(segmentation, height=9, width=7):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [{"image_id": 1, "segmentation": segmentation}],
    }
    ((_, image),) = read_coco(PATH, content)
    return draw_coco(PATH, image, SHAPE)


def labelme(*shapes, height=9, width=7):
    return read_labelme(PATH, {"imageHeight": height, "imageWidth": width, "shapes": list(shapes)}, SHAPE)


def geojson(coordinates, kind="Polygon", **fields):
    feature = {"geometry": {"type": kind, "coordinates": coordinates}}
    return read_geojson(PATH, {"features": [feature], **fields}, SHAPE)


def png(shape):
    encoded = io.BytesIO()
    Image.fromarray(np.full(shape, 255, np.uint8)).save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def test_good_drawings_of_each_kind():
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:4, 1:4] = 1
    part = {"shape_type": "mask", "points": [[1, 1], [3, 3]], "mask": png((3, 3))}
    for mask in (coco([np.ravel(SQUARE).tolist()]), labelme({"points": SQUARE}), labelme(part), geojson([SQUARE])):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("ring", "reason"), RINGS)
def test_degenerate_polygons(ring, reason):
    flat = [n for point in ring for n in (point or [None])]
    is_refused(lambda: coco([flat]), reason)
    is_refused(lambda: labelme({"points": ring}), reason)
    is_refused(lambda: geojson([ring]), reason)
    is_refused(lambda: geojson([[SQUARE], [ring]], "MultiPolygon"), reason)


@pytest.mark.parametrize("size", [json.loads("1e999"), 10**6, -9, None, "9", 9.5, [9]])
def test_sizes_are_checked_before_memory_is_taken(size):
    is_refused(lambda: coco([], size, 7), OTHER_SIZE)
    is_refused(lambda: coco([], 9, size), OTHER_SIZE)
    is_refused(lambda: labelme(height=size), OTHER_SIZE)
    is_refused(lambda: geojson([SQUARE], imageHeight=size), OTHER_SIZE)


@pytest.mark.parametrize(
    ("size", "counts", "reason"),
    [
        ([9, 7], [-5, 68], "do not cover"),
        ([9, 7], [-5, 3], "do not cover"),
        ([9, 7], [3, 4], "do not cover"),
        ([9, 7], [2**62, 2**62], "do not cover"),
        ([9, 7], [10**30], "do not cover"),
        ([9, 7], [], "do not cover"),
        ([9, 7], "", "do not cover"),
        ([9, 7], "oooooooooooooo", DAMAGED),
        ([9, 7], "\u00e9!", DAMAGED),
        ([9, 7], None, "do not cover"),
        ([10**6, 10**6], [10**12], OTHER_SIZE),
        (7, [63], DAMAGED),
        ([9], [63], OTHER_SIZE),
    ],
)
def test_damaged_run_lengths(size, counts, reason):
    is_refused(lambda: coco({"size": size, "counts": counts}), reason)


def test_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask as tools

    random = np.random.default_rng(4)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = (random.random((70, 90)) < share).astype(np.uint8)
        encoded = tools.encode(np.asfortranarray(mask))
        outline = {"size": [70, 90], "counts": encoded["counts"].decode("ascii")}
        image = {"height": 70, "width": 90, "outlines": [outline]}
        np.testing.assert_array_equal(draw_coco(PATH, image, (70, 90)), mask)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"images": [{"id": 7}], "annotations": []}, DAMAGED),
        ({"images": [7], "annotations": []}, DAMAGED),
        ({"images": None, "annotations": []}, DAMAGED),
        ({"images": [], "annotations": [{"image_id": 7, "segmentation": []}]}, DAMAGED),
        ({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "the same id"),
        ({"images": [{"id": [], "file_name": "a"}], "annotations": []}, DAMAGED),
    ],
)
def test_damaged_coco_files(content, reason):
    is_refused(lambda: list(read_coco(PATH, content)), reason)


@pytest.mark.parametrize("segmentation", [[], [[]], {}, None, 5, "a", [5]])
def test_annotations_without_an_outline(segmentation):
    is_refused(lambda: coco(segmentation), "")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("a", DAMAGED),
        (None, DAMAGED),
        ({}, DAMAGED),
        ({"points": SQUARE, "shape_type": "rectangle"}, DAMAGED),
        ({"points": [[1, 1], [1, 1]], "shape_type": "circle"}, NO_AREA),
        ({"points": [[1, 1], [1, 5]], "shape_type": "rectangle"}, NO_AREA),
        ({"points": [[1, 1]], "shape_type": ["a"]}, NO_AREA),
        ({"points": [[-1, 1]], "shape_type": "mask", "mask": png((3, 3))}, REACHES_OUT),
        ({"points": [[5, 1]], "shape_type": "mask", "mask": png((3, 3))}, REACHES_OUT),
        ({"points": [[1, 7]], "shape_type": "mask", "mask": png((3, 3))}, REACHES_OUT),
        ({"points": [[0, 0]], "shape_type": "mask", "mask": png((900, 900))}, REACHES_OUT),
        ({"points": [[float("nan"), 1]], "shape_type": "mask", "mask": png((3, 3))}, REACHES_OUT),
        ({"points": [[1, 1]], "shape_type": "mask", "mask": "YWJj"}, DAMAGED.removeprefix("or it ")),
        ({"points": [[1, 1]], "shape_type": "mask", "mask": None}, DAMAGED),
    ],
)
def test_shapes_that_are_none(shape, reason):
    is_refused(lambda: labelme(shape), reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"features": ["a"]}, DAMAGED),
        ({"features": [{"geometry": None}]}, DAMAGED),
        ({"features": [{"geometry": {"type": "Polygon", "coordinates": []}}]}, "no points"),
        ({"features": [{"geometry": {"type": "Polygon", "coordinates": [[]]}}]}, "no points"),
        ({"features": [{"geometry": {"type": "Polygon", "coordinates": [[1, 2, 3]]}}]}, DAMAGED),
        ({"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}, NO_AREA),
    ],
)
def test_damaged_geojson(content, reason):
    is_refused(lambda: read_geojson(PATH, content, SHAPE), reason.replace("no area", "has no area"))
