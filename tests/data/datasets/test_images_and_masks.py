"""Sets of boxes and outlines: YOLO's folders, and pictures with a COCO file."""

from __future__ import annotations

import pytest

from tests.scans.drawings import coco, yolo_boxes, yolo_outlines
from tests.scans.phantoms import small_slice, write_rows
from tests.scans.pictures import save
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare_once

PHANTOMS = [small_slice(0), small_slice(4, "no_tumor"), small_slice(8, "meningioma")]


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def yolo(root, images, labels):
    """Three pictures with boxes, without lesion, and with an outline; and one that no file is about."""
    for name, phantom in zip("abcd", [*PHANTOMS, PHANTOMS[1]], strict=True):
        save(root / images / f"{name}.jpg", phantom.image)
    text(root / labels / "a.txt", yolo_boxes(PHANTOMS[0].mask, 2))
    text(root / labels / "b.txt", "")
    text(root / labels / "c.txt", yolo_outlines(PHANTOMS[2].mask, 0))
    return root


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images", "labels", ""),
        ("images/val", "labels/val", "validation"),
        ("valid/images", "valid/labels", "validation"),
        ("Test/images", "Test/labels", "test"),
    ],
)
def test_folders_of_yolo(tmp_path, images, labels, split):
    samples = load_samples(yolo(tmp_path, images, labels))
    assert [s.image.stem for s in samples] == list("abcd")
    assert [s.weak for s in samples] == [True, False, False, False]
    assert [s.label for s in samples] == ["tumor", "no_tumor", "tumor", ""]
    assert {s.split for s in samples} == {split}
    assert [bool(read_sample(s).mask.any()) for s in samples[:3]] == [True, False, True]


def test_classes_of_yolo_are_labels(tmp_path):
    yolo(tmp_path, "train/images", "train/labels")
    text(tmp_path / "data.yaml", "names:\n  0: Meningioma\n  1: other\n  2: tumeur\n")
    assert [s.label for s in load_samples(tmp_path)] == ["tumor", "no_tumor", "meningioma", ""]
    assert load_samples(tmp_path, {"tumeur": "glioma"})[0].label == "glioma"


def test_several_parts_are_one_set(tmp_path):
    yolo(tmp_path, "images/train", "labels/train")
    save(tmp_path / "images/test/z.png", PHANTOMS[1].image)
    (tmp_path / "labels/test").mkdir()
    assert [(s.image.stem, s.split) for s in load_samples(tmp_path)] == [
        ("z", "test"),
        *((name, "train") for name in "abcd"),
    ]


@pytest.mark.parametrize(
    ("file", "picture"),
    [
        ("train/_annotations.coco.json", "train/a.png"),
        ("annotations.json", "images/a.png"),
        ("annotations.json", "a.png"),
    ],
)
def test_pictures_with_a_coco_file(tmp_path, file, picture):
    folder = (tmp_path / picture).parent
    for name, phantom in zip("abc", PHANTOMS, strict=True):
        save(folder / f"{name}.png", phantom.image)
    masks = {"a.png": PHANTOMS[0].mask, "b.png": PHANTOMS[1].mask}
    coco(tmp_path / file, masks, ["glioma", "meningioma"])
    samples = load_samples(tmp_path)
    assert [(s.image.stem, s.label, s.weak) for s in samples] == [("a", "glioma", True), ("b", "no_tumor", False)]
    assert {s.split for s in samples} == {"train" if picture.startswith("train") else ""}
    assert any("c.png" in line for line in check_set(tmp_path).of("unnamed_file"))
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"no such file .*b.png"):
        load_samples(tmp_path)


def test_a_damaged_coco_file_is_named(tmp_path):
    save(tmp_path / "a.png", PHANTOMS[0].image)
    text(tmp_path / "_annotations.coco.json", "{")
    with pytest.raises(InputError, match=r"_annotations.coco.json: this is not a COCO file, or it is damaged"):
        load_samples(tmp_path)


def test_a_json_file_that_is_not_coco_does_not_make_a_set(tmp_path):
    save(tmp_path / "glioma" / "a.png", PHANTOMS[0].image)
    text(tmp_path / "annotations.json", "[]")
    assert [s.label for s in load_samples(tmp_path)] == ["glioma"]


def test_a_check_lists_every_bad_line_and_notes_boxes(tmp_path):
    yolo(tmp_path, "images", "labels")
    text(tmp_path / "labels/b.txt", "0 .5 .5 2 .2\n")
    text(tmp_path / "labels/d.txt", "0 .5 .5 .1 .1\n0 .5 .5\n")
    report = check_set(tmp_path)
    assert [line.rpartition("/")[2].partition(": ")[0] for line in report.of("bad_drawing")] == [
        "b.txt, line 1",
        "d.txt, line 2",
    ]
    assert report.of("boxes") == ["images/a.jpg"]
    assert report.problems == 2
    with pytest.raises(InputError, match=r"b.txt, line 1: .* lists all 2 problems"):
        load_samples(tmp_path)


def test_an_index_names_boxes_as_masks(tmp_path):
    yolo(tmp_path, "images", "labels")
    coco(tmp_path / "c.json", {"d.jpg": PHANTOMS[0].mask})
    rows = [
        {"image": "images/a.jpg", "mask": "labels/a.txt", "label": "glioma"},
        {"image": "images/d.jpg", "mask": "c.json", "label": "glioma"},
    ]
    write_rows(tmp_path / "index.csv", rows, "image,mask,label")
    assert [s.weak for s in load_samples(tmp_path)] == [True, True]
    text(tmp_path / "data.yaml", "names: [other, other, Glioma]\n")
    write_rows(tmp_path / "index.csv", [row | {"label": ""} for row in rows], "image,mask,label")
    assert [s.label for s in load_samples(tmp_path)] == ["glioma", "tumor"]
    text(tmp_path / "labels/a.txt", "0 9 9 9 9\n")
    assert len(check_set(tmp_path).of("bad_drawing")) == 1


def test_prepared_slices_are_renewed_with_their_boxes(tmp_path):
    yolo(tmp_path / "set", "images", "labels")
    samples = load_samples(tmp_path / "set")[:1]

    def lesion():
        return bool(prepare_once(samples, Preprocess(64), tmp_path / "prepared").masks.any())

    assert lesion()
    text(tmp_path / "set" / "data.yaml", "names: [a, b, no_tumor]\n")
    assert not lesion()
