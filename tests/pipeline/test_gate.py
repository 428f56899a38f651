"""The gate: the rule that turns many slices into one label, and refusal."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.case import prepare
from tumorlens.pipeline.gate import Scores, judge, judge_slice, judge_volume, reason_to_refuse


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


def test_one_bright_slice_is_not_a_tumor():
    tumor = [0.02] * 12
    tumor[6] = 0.97
    verdict = judge_volume(rows(tumor), ALL, 0.5, 5.0)
    assert verdict.label == "no_tumor"
    assert not verdict.positive.any()
    assert verdict.probabilities[0] > 0.5


@pytest.mark.parametrize("at", [0, 11])
def test_one_bright_slice_at_the_rim_is_not_a_tumor(at):
    tumor = [0.02] * 12
    tumor[at] = 0.97
    assert judge_volume(rows(tumor), ALL, 0.5, 5.0).label == "no_tumor"


def test_neighboring_bright_slices_are_a_tumor():
    tumor = [0.02] * 12
    tumor[5:8] = [0.8, 0.95, 0.9]
    verdict = judge_volume(rows(tumor, 3), ALL, 0.5, 5.0)
    assert verdict.label == "pituitary"
    assert np.flatnonzero(verdict.positive).tolist() == [5, 6, 7]
    assert verdict.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert verdict.probabilities.argmax() == 3


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_thin_slices_are_averaged_over_millimetres(threshold):
    """Four slices of 1 mm are not enough for a lesion, eight are."""
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
def test_all_slices_of_a_lesion_are_positive(threshold, first, n, spacing):
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


# ---- refusal ----


@pytest.fixture(scope="module")
def case():
    """A volume of 12 slices, all of which are judged."""
    return prepare(phantom_volume(7, "meningioma", shape=(64, 75, 12), spacing_mm=(3, 3, 10)).scan, 64)


def test_a_volume_is_refused_where_more_than_half_of_its_slices_are_strange(case):
    for n_strange, refused in ((6, False), (7, True)):
        strangeness = np.where(np.arange(12) < n_strange, 9.0, 1.0).astype(np.float32)
        verdict = judge(case, Scores(rows([0.9] * 12, 2), strangeness), 0.5, 5.0)
        assert verdict.refused == refused
        assert verdict.label == ("refused" if refused else "meningioma")
        assert verdict.positive.any() != refused
        assert (verdict.doubt is not None) == refused
    assert "7 of 12 slices do not look like an MRI of the brain (score 9.00, at most 5.00 in brains)" in verdict.doubt


def test_force_judges_a_strange_scan_and_keeps_the_doubt(case):
    strangeness = np.full(12, 9.0, np.float32)
    verdict = judge(case, Scores(rows([0.9] * 12, 2), strangeness), 0.5, 5.0, force=True)
    assert (verdict.label, verdict.refused) == ("meningioma", False)
    assert "12 of 12 slices" in verdict.doubt


def test_weights_without_a_score_refuse_only_scans_without_head(case):
    scores = Scores(rows([0.9] * 12, 2), None)
    assert judge(case, scores, 0.5, None).doubt is None
    headless = [None if p is None else replace(p, head_fraction=0.0) for p in case.prepared]
    verdict = judge(replace(case, prepared=headless), scores, 0.5, None)
    assert (verdict.label, verdict.doubt) == ("refused", "no head stands out from the background")


def test_the_spacing_across_the_slices_sets_the_window():
    """Slices of 1 mm: a lesion of four slices does not fill the window of 8 mm."""
    volume = phantom_volume(7, "meningioma", shape=(40, 46, 120), spacing_mm=(4, 4, 1))
    case = prepare(volume.scan, 64)
    tumor = np.full(120, 0.01)
    tumor[60:64] = 0.95
    assert judge(case, Scores(rows(tumor), None), 0.5, None).label == "no_tumor"
    tumor[60:68] = 0.95
    assert judge(case, Scores(rows(tumor), None), 0.5, None).label == "glioma"


@pytest.mark.parametrize(
    ("head", "scores", "reason"),
    [
        (True, [0.0], None),
        (True, [1.5], "does not look like an MRI of the brain \\(score 1.50, at most 1.00"),
        (False, [0.0], "no head stands out"),
        (True, [2.0, 2, 0, 0], None),
        (True, [2.0, 2, 2, 0], "3 of 4 slices do not look"),
        (True, None, None),
    ],
)
def test_the_rule_for_scans(head, scores, reason):
    message = reason_to_refuse(head, None if scores is None else np.array(scores, np.float32), 1.0)
    if reason is None:
        assert message is None
    else:
        assert re.search(reason, message)
