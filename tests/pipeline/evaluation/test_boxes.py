"""Evaluation on sets whose truth is boxes: presence and boxes, and no Dice."""

from __future__ import annotations

import pytest

from tests.pipeline.evaluation.test_evaluate import measure
from tests.segmentation.test_module import with_boxes

DICE = ("dice", "hd95", "nsd")


def test_the_segmenter_on_boxes(phantom_set, weights, tmp_path):
    data = with_boxes(phantom_set, tmp_path)
    measured = measure(tmp_path / "out", "segmentation", [data], folds=(0,), segmenter=weights["segmenter"])
    figures = measured.report["figures"]
    assert (figures["n"], figures["n_tumor"], figures["boxes"]["n"]) == (8, 0, 6)
    assert all(figures["slice"][f"{name}_{part}"] is None for name in DICE for part in ("all", "tumor"))
    assert figures["slice"]["false_masks"] is not None
    boxed = [row for row in measured.rows if row["label"] != "no_tumor"]
    assert figures["boxes"]["iou"]["value"] == pytest.approx(sum(float(row["box_iou"]) for row in boxed) / 6, abs=1e-6)
    assert {row["dice"] for row in boxed} == {""}
    screen = measured.messages[-2]
    assert "overlap of boxes (IoU)" in screen
    assert "Dice" not in screen
    text = (measured.out / "report.md").read_text()
    assert "## Boxes: 6 slices, 6 boxes; no Dice" in text
    assert "a box is not the truth of a mask" in text
    assert "## Masks" not in text


def test_outlines_keep_their_dice_beside_boxes(phantom_set, weights, tmp_path):
    data = with_boxes(phantom_set, tmp_path, lambda row: row["label"] == "glioma")
    rest = {"folds": (0,), "segmenter": weights["segmenter"]}
    mixed = measure(tmp_path / "mixed", "segmentation", [data], **rest).report["figures"]
    outlined = measure(tmp_path / "outlined", "segmentation", phantom_set, **rest).report["figures"]
    assert (mixed["n"], mixed["n_tumor"], mixed["boxes"]["n"]) == (8, 4, 2)
    dice = outlined["slice"]["dice_by_label"]
    assert mixed["slice"]["dice_by_label"] == {name: dice[name] for name in ("meningioma", "pituitary")}


def test_the_pipeline_on_boxes(phantom_set, weights, tmp_path):
    data = with_boxes(phantom_set, tmp_path)
    measured = measure(tmp_path / "out", "pipeline", [data], protocol="p2", folds=(0,), **weights)
    figures = measured.report["figures"]["slices"]
    assert figures["n"] == 8
    assert figures["sensitivity"] is not None
    assert figures["dice_tumor"] is None
    assert figures["boxes"]["n"] == 6
    missed = [row for row in measured.rows if row["label"] != "no_tumor" and row["predicted"] == "no_tumor"]
    assert figures["boxes"]["missed"]["value"] >= len(missed) / 6
    assert [bool(row["box_iou"]) for row in measured.rows] == [row["label"] != "no_tumor" for row in measured.rows]
    assert "no Dice" in (measured.out / "report.md").read_text()


def test_a_box_of_less_than_a_pixel_is_measured(phantom_set, weights, tmp_path):
    (tmp_path / "tiny.txt").write_text("0 0.5 0.5 0.001 0.001\n")
    (tmp_path / "index.csv").write_text(f"image,mask,label\nimages/1_0.png,{tmp_path / 'tiny.txt'},glioma\n")
    data = f"{tmp_path / 'index.csv'}@{phantom_set}"
    measured = measure(tmp_path / "out", "segmentation", data, segmenter=weights["segmenter"])
    assert measured.report["figures"]["boxes"]["n"] == 1
