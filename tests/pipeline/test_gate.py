"""The gate, and the rule that makes one label of many slices."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.pipeline.gate import judge_slice, judge_volume


def rows(tumor, kind=1):
    """Slices with the given tumor probabilities, all of it on one type."""
    table = np.zeros((len(tumor), 4), np.float32)
    table[:, 0] = 1 - np.array(tumor)
    table[:, kind] = tumor
    return table


ALL = np.ones(12, bool)


@pytest.mark.parametrize(("tumor", "label"), [(0.29, "no_tumor"), (0.31, "meningioma"), (0.99, "meningioma")])
def test_a_picture_is_positive_from_the_threshold_on(tumor, label):
    verdict = judge_slice(rows([tumor], 2)[0], 0.3)
    assert verdict.label == label
    assert verdict.positive.tolist() == [label != "no_tumor"]


def test_one_bright_slice_makes_no_tumor():
    tumor = [0.02] * 12
    tumor[6] = 0.97
    verdict = judge_volume(rows(tumor), ALL, 0.5, 5.0)
    assert verdict.label == "no_tumor"
    assert not verdict.positive.any()
    assert verdict.probabilities[0] > 0.5


@pytest.mark.parametrize("at", [0, 11])
def test_one_bright_slice_at_the_rim_makes_no_tumor(at):
    tumor = [0.02] * 12
    tumor[at] = 0.97
    assert judge_volume(rows(tumor), ALL, 0.5, 5.0).label == "no_tumor"


def test_neighbouring_slices_make_a_tumor():
    tumor = [0.02] * 12
    tumor[5:8] = [0.8, 0.95, 0.9]
    verdict = judge_volume(rows(tumor, 3), ALL, 0.5, 5.0)
    assert verdict.label == "pituitary"
    assert np.flatnonzero(verdict.positive).tolist() == [5, 6, 7]
    assert verdict.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert verdict.probabilities.argmax() == 3


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_thin_slices_are_averaged_over_millimetres(threshold):
    """Four slices of 1 mm are too little of a lesion, eight are one."""
    used = np.ones(155, bool)
    tumor = np.full(155, 0.01)
    tumor[60:64] = 0.95
    assert judge_volume(rows(tumor), used, threshold, 1.0).label == "no_tumor"
    tumor[60:68] = 0.95
    verdict = judge_volume(rows(tumor), used, threshold, 1.0)
    assert verdict.label == "glioma"
    assert np.flatnonzero(verdict.positive).tolist() == list(range(60, 68))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(("first", "n", "spacing"), [(4, 6, 6.0), (0, 3, 5.0), (22, 2, 5.0), (5, 6, 1.0), (3, 2, None)])
def test_a_lesion_is_taken_whole(threshold, first, n, spacing):
    tumor = np.full(24, 0.01)
    tumor[first : first + n] = 0.98
    verdict = judge_volume(rows(tumor), np.ones(24, bool), threshold, spacing)
    assert np.flatnonzero(verdict.positive).tolist() == list(range(first, first + n))


def test_few_slices():
    assert judge_volume(rows([0.9]), np.ones(1, bool), 0.5, 5.0).label == "glioma"
    assert judge_volume(rows([0.9, 0.9]), np.ones(2, bool), 0.5, 5.0).positive.all()
    assert judge_volume(rows([0.9, 0.9]), np.zeros(2, bool), 0.5, 5.0).label == "no_tumor"


def test_unused_slices_do_not_count():
    tumor = [0.95] * 4 + [0.01] * 8
    used = np.array([False] * 4 + [True] * 8)
    verdict = judge_volume(rows(tumor), used, 0.5, 5.0)
    assert verdict.label == "no_tumor"


def test_the_type_is_the_likeliest_over_the_positive_slices():
    table = rows([0.9, 0.9, 0.9, 0.1], 1)
    table[1] = rows([0.9], 2)
    assert judge_volume(table, np.ones(4, bool), 0.5, 5.0).label == "glioma"


def test_probabilities_agree_with_the_label_below_the_threshold():
    tumor = [0.6, 0.1, 0.6, 0.1, 0.6, 0.1]
    verdict = judge_volume(rows(tumor), np.ones(6, bool), 0.5, 5.0)
    assert verdict.label == "no_tumor"
    assert verdict.probabilities[0] > 0.5


class CountingSegmenter:
    """Passes on to the real segmenter and remembers how many slices it was given."""

    tta = False

    def __init__(self, real):
        self.real, self.slices = real, 0
        self.input_size, self.mask_threshold, self.card = real.input_size, real.mask_threshold, real.card

    def predict(self, images):
        self.slices += len(images)
        return self.real.predict(images)


def test_the_segmenter_sees_positive_slices_only(pipeline):
    from dataclasses import replace

    from tumorlens.data.phantom import phantom_volume

    volume = phantom_volume(7, "meningioma")
    counting = CountingSegmenter(pipeline.segmenter)
    closed = replace(pipeline, segmenter=counting, threshold=1.0).run(volume.scan)
    assert counting.slices == 0
    assert closed.label == "no_tumor"
    assert not closed.mask.any()
    opened = replace(pipeline, segmenter=counting).run(volume.scan)
    assert counting.slices == sum(s["segmented"] for s in opened.slices)
    assert 0 < counting.slices < volume.scan.n_slices
