"""The gate: the label of a scan, the slices that the segmenter sees, and refusal."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import prepare
from tumorlens.pipeline.gate import Scores, judge, reason_to_refuse, screen


def rows(tumor, kind=1):
    """Slices with the given tumor probabilities, all of it on one type."""
    table = np.zeros((len(tumor), 4), np.float32)
    table[:, 0] = 1 - np.array(tumor)
    table[:, kind] = tumor
    return table


def verdict_of(p_tumor, types=(0.9, 0.05, 0.05), threshold=0.5, possible=None):
    inside = None if possible is None else np.array(possible, bool)
    return judge(p_tumor, np.array(types), threshold, lambda probabilities, label: inside)


# ---- the label ----


@pytest.mark.parametrize(("p_tumor", "label"), [(0.49, "no_tumor"), (0.51, "glioma"), (0.99, "glioma")])
def test_label_probabilities_and_confidence_agree(p_tumor, label):
    verdict = verdict_of(p_tumor, (1, 0, 0))
    assert (verdict.label, verdict.positive) == (label, label != "no_tumor")
    assert verdict.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert 1 - verdict.probabilities[0] == pytest.approx(p_tumor, abs=1e-6)
    assert verdict.confidence == pytest.approx(max(p_tumor, 1 - p_tumor), abs=1e-6)


def test_a_type_that_is_no_likelier_than_no_tumor_is_not_named():
    verdict = verdict_of(0.6, (0.34, 0.33, 0.33))
    assert (verdict.label, verdict.likeliest) == ("tumor", 1)
    assert verdict.confidence == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("possible", "label"),
    [((0, 1, 0, 0), "glioma"), ((1, 1, 0, 0), "glioma"), ((0, 1, 1, 0), "tumor"), ((0, 1, 1, 1), "tumor")],
)
def test_a_tumor_of_several_possible_types_is_called_a_tumor(possible, label):
    verdict = verdict_of(0.95, (0.65, 0.3, 0.05), possible=possible)
    assert verdict.label == label
    assert verdict.confidence == pytest.approx(0.95 if label == "tumor" else 0.95 * 0.65, abs=1e-6)
    assert verdict_of(0.95, (0.75, 0.2, 0.05), possible=possible).label == "glioma"  # one type is likely enough


def test_your_threshold_decides_the_label_but_not_the_probabilities():
    low, high = verdict_of(0.3, threshold=0.2), verdict_of(0.8, threshold=0.9)
    assert (low.label, high.label) == ("tumor", "no_tumor")
    assert low.confidence == pytest.approx(0.3, abs=1e-6)
    assert high.confidence == pytest.approx(0.2, abs=1e-6)


# ---- the slices that the segmenter sees ----


def suspicious(case, tumor, threshold=0.5):
    return np.flatnonzero(screen(case, Scores(rows(tumor), None), threshold, None).suspicious).tolist()


def test_slices_from_a_low_probability_on_and_their_neighbors_are_segmented(case):
    tumor = np.full(12, 0.02)
    tumor[5] = 0.35
    assert suspicious(case, tumor) == [4, 5, 6]
    tumor[5] = 0.25
    assert suspicious(case, tumor) == []
    assert suspicious(case, tumor, threshold=0.2) == [4, 5, 6]  # your threshold is lower


def test_the_neighborhood_is_measured_in_mm():
    case = prepare(phantom_volume(7, "meningioma", shape=(40, 46, 120), spacing_mm=(4, 4, 1)).scan, 64)
    tumor = np.full(120, 0.01)
    tumor[60] = 0.9
    assert suspicious(case, tumor) == list(range(56, 65))


def test_slices_that_are_not_judged_are_not_segmented(case):
    used = case.used.copy()
    used[4:6] = False
    tumor = np.full(12, 0.01)
    tumor[4:6] = 0.9
    assert suspicious(replace(case, used=used), tumor) == []


@pytest.mark.parametrize(("tumor", "goes_on"), [(0.49, False), (0.51, True)])
def test_a_picture_goes_on_from_the_threshold_on(tumor, goes_on):
    picture = prepare(Scan.from_array(phantom_slice(7, "meningioma").image), 64)
    assert screen(picture, Scores(rows([tumor]), None), 0.5, None).suspicious.tolist() == [goes_on]


# ---- refusal ----


@pytest.fixture(scope="module")
def case():
    """A volume of 12 slices, all of which are judged."""
    return prepare(phantom_volume(7, "meningioma", shape=(64, 75, 12), spacing_mm=(3, 3, 10)).scan, 64)


def test_a_volume_is_refused_where_more_than_half_of_its_slices_are_strange(case):
    for n_strange, refused in ((6, False), (7, True)):
        strangeness = np.where(np.arange(12) < n_strange, 9.0, 1.0).astype(np.float32)
        screening = screen(case, Scores(rows([0.9] * 12, 2), strangeness), 0.5, 5.0)
        assert screening.refused == refused
        assert screening.suspicious.any() != refused
        assert (screening.doubt is not None) == refused
    assert "7 of 12 slices do not look like an MRI of the brain (score 9.00, at most 5.00 in brains)" in screening.doubt


def test_force_judges_a_strange_scan_and_keeps_the_doubt(case):
    strangeness = np.full(12, 9.0, np.float32)
    screening = screen(case, Scores(rows([0.9] * 12, 2), strangeness), 0.5, 5.0, force=True)
    assert screening.suspicious.all() and not screening.refused
    assert "12 of 12 slices" in screening.doubt


def test_weights_without_a_score_refuse_only_scans_without_head(case):
    scores = Scores(rows([0.9] * 12, 2), None)
    assert screen(case, scores, 0.5, None).doubt is None
    headless = [None if p is None else replace(p, head_fraction=0.0) for p in case.prepared]
    screening = screen(replace(case, prepared=headless), scores, 0.5, None)
    assert (screening.refused, screening.doubt) == (True, "no head stands out from the background")


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
