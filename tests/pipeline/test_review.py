"""Reasons for a second look: what a DICOM header says and the picture does not show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tumorlens.data.labels import SEQUENCES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.gate import Scores, Verdict
from tumorlens.pipeline.review import reasons_to_review


def reasons(weighting, contrast, sequence, refused=False):
    scan = Scan.from_array(phantom_slice(3, "no_tumor").image)
    facts = {"weighting": weighting, "contrast_agent": contrast}
    case = prepare(open_source(replace(scan, dicom=SimpleNamespace(facts=facts))), 64)
    verdict = Verdict("no_tumor", np.array([0.99, 0.01, 0, 0], np.float32))
    if refused:
        verdict = Verdict("refused", np.zeros(4, np.float32), doubt="no head")
    sequences = None
    if sequence is not None:
        sequences = np.full((1, 4), (1 - sequence[1]) / 3, np.float32)
        sequences[0, SEQUENCES.index(sequence[0])] = sequence[1]
    scores = Scores(np.array([[0.99, 0.01, 0, 0]], np.float32), None, sequences)
    return reasons_to_review(case, scores, verdict, [])


@pytest.mark.parametrize(
    ("weighting", "contrast", "name"),
    [
        ("T1", True, "t1c"),
        ("T1", False, "t1"),
        ("T1", None, "t1c"),
        ("T2", True, "flair"),  # headers call FLAIR a T2, whatever was injected before
        ("T2", None, "t2"),
        (None, None, "t2"),
    ],
)
def test_a_header_that_fits_the_picture_is_no_reason(weighting, contrast, name):
    assert reasons(weighting, contrast, (name, 0.99)) == []


@pytest.mark.parametrize(
    ("weighting", "contrast", "name", "text"),
    [
        ("T1", True, "t2", "the header says T1 after contrast agent, but the picture looks like t2 (0.97)"),
        ("T1", False, "t1c", "the header says T1 without contrast agent, but the picture looks like t1c (0.97)"),
        ("T2", None, "t1", "the header says T2, but the picture looks like t1 (0.97)"),
    ],
)
def test_a_header_that_the_picture_contradicts_is_reported(weighting, contrast, name, text):
    assert reasons(weighting, contrast, (name, 0.97)) == [text]
    assert text in reasons(weighting, contrast, (name, 0.97), refused=True)
    assert reasons(weighting, contrast, (name, 0.7)) == []  # not sure enough to contradict


@pytest.mark.parametrize(
    ("weighting", "contrast", "text"),
    [
        ("T2", None, "weighting is T2"),
        ("T1", False, "no contrast agent was given"),
        ("T1", None, "names no contrast agent"),
    ],
)
def test_models_that_name_no_sequence_know_one_only(weighting, contrast, text):
    (reason,) = reasons(weighting, contrast, None)
    assert text in reason
    assert reasons("T1", True, None) == []


def test_a_weighting_that_no_model_knows_is_reported():
    assert "weighting is diffusion" in reasons("diffusion", None, ("t2", 0.99))[0]


@pytest.mark.parametrize(("sick", "reported"), [(2, False), (5, True)])
def test_a_volume_whose_slices_look_sick_although_no_lesion_holds_is_looked_at(sick, reported):
    scan = phantom_volume(3, "no_tumor", shape=(48, 56, 12), spacing_mm=(3.0, 3.0, 6.0)).scan
    case = prepare(open_source(scan), 64)
    probabilities = np.tile(np.array([0.99, 0.01, 0, 0], np.float32), (scan.n_slices, 1))
    probabilities[np.flatnonzero(case.used)[:sick]] = [0.03, 0.97, 0, 0]
    verdict = Verdict("no_tumor", np.array([0.98, 0.02, 0, 0], np.float32))
    found = reasons_to_review(case, Scores(probabilities, None), verdict, [])
    assert (f"{sick} slices look like a tumor (up to 0.97), but no lesion is sure enough" in found) == reported
