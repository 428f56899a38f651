"""Boxes and outlines of YOLO and COCO files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.scans.drawings import coco, yolo_boxes, yolo_outlines
from tests.scans.phantoms import small_slice
from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.sample import Sample, has_truth, read_sample, slices_of
from tumorlens.data.errors import InputError
from tumorlens.data.masks.boxes import fill_boxes
from tumorlens.data.masks.drawings import drawing_of
from tumorlens.data.phantom import phantom_volume

PHANTOM = small_slice(0)
BOXES = fill_boxes(PHANTOM.mask)


@pytest.fixture
def picture(tmp_path):
    return save(tmp_path / "a.png", PHANTOM.image)


def sample_of(picture, text):
    file = picture.with_suffix(".txt")
    file.write_text(text)
    return Sample(picture, "", mask=file)


def test_boxes_of_yolo_are_filled_and_weak(picture):
    sample = sample_of(picture, yolo_boxes(PHANTOM.mask))
    np.testing.assert_array_equal(read_sample(sample).mask, BOXES)
    assert sample.weak
    assert has_truth(sample)


def test_outlines_of_yolo_are_masks_as_any(picture):
    sample = sample_of(picture, "\n" + yolo_outlines(PHANTOM.mask))
    np.testing.assert_array_equal(read_sample(sample).mask, PHANTOM.mask)
    assert not sample.weak


def test_an_outline_of_four_corners_is_a_box(picture):
    assert sample_of(picture, "0 .2 .3 .5 .3 .5 .6 .2 .6\n").weak
    assert sample_of(picture, "0 .2 .3 .5 .3 .5 .6 .2 .6 .2 .3\n").weak, "closed"
    mixed = sample_of(picture, "0 .5 .5 .2 .2\n" + yolo_outlines(PHANTOM.mask))
    assert mixed.weak
    assert (read_sample(mixed).mask >= PHANTOM.mask).all()


def test_an_empty_file_is_a_slice_without_a_lesion(picture):
    sample = sample_of(picture, "\n")
    assert not read_sample(sample).mask.any()
    assert not sample.weak


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 .5 .5 .2", "4 numbers are neither a box"),
        ("0 .5 .5 .2 .2 .9", "6 numbers are neither a box"),
        ("0 .5 .5 .2 1.4", "lies outside of the picture"),
        ("0 120 80 30 30", "YOLO counts in shares"),
        ("0 .5 .5 0 .2", "has no area"),
        ("0.5 .5 .5 .2 .2", "'0.5' is not the number of a class"),
        ("0 nan .5 .2 .2", "not finite"),
        ("glioma .5 .5 .2 .2", "not a box or an outline of YOLO"),
    ],
)
def test_a_line_that_is_no_box_is_named(picture, line, problem):
    sample = sample_of(picture, f"0 .5 .5 .2 .2\n{line}\n")
    with pytest.raises(InputError, match=problem) as caught:
        read_sample(sample)
    assert str(caught.value).startswith(f"{sample.mask}, line 2: ")
    assert "\n" not in str(caught.value)


def test_boxes_of_a_healthy_class_are_not_lesions(picture):
    """The set "brain-tumor" of Ultralytics draws boxes of a class negative."""
    (picture.parent / "data.yaml").write_text("names: [negative, positive]\n")
    sample = sample_of(picture, "0 .3 .3 .2 .2\n")
    assert not read_sample(sample).mask.any()
    assert not sample.weak
    assert drawing_of(sample.mask, picture).lesions == 0
    sample = sample_of(picture, "1 .3 .3 .2 .2\n")
    assert read_sample(sample).mask.any()
    assert drawing_of(sample.mask, picture).names == ("positive",)
    (picture.parent / "classes.txt").write_text("positive\nnegative\n")  # nearer
    assert drawing_of(sample.mask, picture).lesions == 0


@pytest.mark.parametrize("names", ["names: [a", "names: 7", "[1, 2]"])
def test_a_damaged_list_of_classes_is_named(picture, names):
    (picture.parent / "data.yaml").write_text(names)
    with pytest.raises(InputError, match=r"data.yaml: this is not a list of YOLO's classes"):
        read_sample(sample_of(picture, "0 .3 .3 .2 .2\n"))


@pytest.mark.parametrize("outlines", [True, False])
def test_annotations_of_coco(picture, outlines):
    file = coco(picture.with_name("c.json"), {"x/b.png": PHANTOM.mask[:50], "a.png": PHANTOM.mask}, outlines=outlines)
    sample = Sample(picture, "glioma", mask=file)
    np.testing.assert_array_equal(read_sample(sample).mask, PHANTOM.mask if outlines else BOXES)
    assert sample.weak == (not outlines)
    with pytest.raises(InputError, match=r"c.json: the COCO file names no image z.png"):
        read_sample(Sample(save(picture.with_name("z.png"), PHANTOM.image), "", mask=file))
    with pytest.raises(InputError, match=r"c.json, b.png: the mask has shape \(50, 96\), its image \(96, 96\)"):
        read_sample(Sample(save(picture.with_name("b.png"), PHANTOM.image), "", mask=file))


def test_images_of_one_name_in_coco_are_told_apart_by_their_folders(tmp_path):
    pictures = [save(tmp_path / folder / "a.png", PHANTOM.image) for folder in ("one", "two")]
    file = coco(tmp_path / "c.json", {"one/a.png": PHANTOM.mask, "two/a.png": PHANTOM.mask * 0})
    assert [bool(read_sample(Sample(p, "", mask=file)).mask.any()) for p in pictures] == [True, False]


def test_damaged_coco_files_are_named(picture):
    file = picture.with_name("c.json")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": [110, 5, 9, 9]}]}
    for change, problem in (
        ({}, "c.json, a.png: a shape lies outside of its picture"),
        ({"annotations": [{"image_id": 1, "bbox": [2, 5, 0, 9]}]}, "c.json, a.png: a shape has no area"),
        ({"annotations": [{"image_id": 1}]}, "c.json: this is not a COCO file"),
        ({"annotations": [{"image_id": 2, "bbox": [2, 5, 3, 9]}]}, "c.json: this is not a COCO file"),
    ):
        file.write_text(json.dumps(content | change) + " " * len(problem))  # of another size
        with pytest.raises(InputError, match=problem):
            read_sample(Sample(picture, "", mask=file))


def test_boxes_are_for_pictures(tmp_path):
    volume = save_volume(tmp_path / "v.nii.gz", phantom_volume(1, "glioma", (32, 32, 12), (4.0, 4.0, 8.0)))
    sample = sample_of(volume, "0 .5 .5 .2 .2\n")
    with pytest.raises(InputError, match="are for pictures"):
        slices_of(sample)
