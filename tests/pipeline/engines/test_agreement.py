"""Comparing engines on labeled slices."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.pipeline.engines.agreement import Answers, compare_answers
from tumorlens.pipeline.engines.engine import Engine


def test_engines_are_compared_on_labeled_slices(
    tumorlens, cache_folder, small_classifier, small_segmenter, phantom_set, tmp_path
):
    arguments = ["evaluate", "engines", "--data", phantom_set]
    weights = ["--classifier", small_classifier, "--segmenter", small_segmenter]
    done = tumorlens(*arguments, "--fold", "0", *weights, "-o", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "table.json").read_text())
    assert (rows[0]["engine"], rows[0]["precision"], rows[0]["labels_agree"]) == ("torch", "fp32", 1.0)
    fast = next(row for row in rows if (row["engine"], row["precision"]) == ("openvino", "fp32"))
    assert fast["n"] == 8
    assert fast["labels_agree"] == 1.0
    assert fast["masks_dice"] > 0.995
    assert len(done.stdout.strip().splitlines()) == 2 + len(rows)
    done = tumorlens(*arguments, "--fold", "9")
    assert (done.exit_code, "no slice of fold 9" in done.stderr) == (2, True)


@dataclass
class Truth:
    labels: np.ndarray
    masks: np.ndarray
    classes: ClassList = SHIPPED_CLASSES

    def __len__(self):
        return len(self.labels)


def test_an_engine_with_other_answers_does_not_hold():
    labels, masks = np.array([0, 1, 1, 2]), np.zeros((4, 8, 8), np.uint8)
    masks[1:, 2:6, 2:6] = 1
    truth, reference = Truth(labels, masks), Answers(labels, masks, 1.0)
    assert compare_answers(Engine(), reference, reference, truth)["holds"]
    other = labels.copy()
    other[1] = 3
    assert not compare_answers(Engine(), Answers(other, masks, 1.0), reference, truth)["holds"]
    shifted = np.roll(masks, 1, axis=2)
    row = compare_answers(Engine(), Answers(labels, shifted, 1.0), reference, truth)
    assert (row["labels_agree"], row["masks_dice"], row["holds"]) == (1.0, 0.75, False)


def test_the_worst_region_counts():
    labels, masks = np.array([0, 1, 1, 2]), np.zeros((4, 8, 8), np.uint8)
    masks[1:, 2:6, 2:6] = 1
    parts = np.stack([masks, masks], axis=1)
    truth, reference = Truth(labels, masks), Answers(labels, masks, 1.0, parts)
    assert compare_answers(Engine(), reference, reference, truth)["holds"]
    other = parts.copy()
    other[:, 1] = np.roll(masks, 1, axis=2)
    row = compare_answers(Engine(), Answers(labels, masks, 1.0, other), reference, truth)
    assert (row["masks_dice"], row["holds"]) == (0.75, False)
