"""A result in words: what a page says of it, and that no text of a file becomes HTML."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tumorlens.data.phantom import phantom_slice
from tumorlens.data.plotting import shown_probability
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.services.facts import (
    answer_of,
    doubts_of,
    facts_html,
    measurements_html,
    probabilities_html,
    progress_of,
    stored_sizes_html,
)
from tumorlens.pipeline.services.jobs import DONE, QueuedJob


@pytest.fixture(scope="module")
def sick(pipeline):
    return pipeline.run(phantom_slice(2, "meningioma").image)


@pytest.fixture(scope="module")
def noise(pipeline):
    return pipeline.run(np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8))


class Words(HTMLParser):
    """The text of some HTML, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)


def test_every_class_has_its_probability(sick):
    words = Words(probabilities_html(sick)).words
    for name, probability in sick.probabilities.items():
        row = words.index({"no_tumor": "no tumor", "pituitary": "pituitary tumor"}.get(name, name))
        assert words[row + 1] == shown_probability(probability)
    assert "At 95 % coverage, no other class remains possible." in words


def test_no_probability_looks_certain(sick):
    sure = dict.fromkeys(sick.probabilities, 0.001) | {"meningioma": 0.997}
    result = replace(sick, probabilities=sure)
    words = Words(probabilities_html(result)).words
    assert words.count("<0.01") == 3 and words.count(">0.99") == 1
    assert answer_of(result) == "meningioma >0.99"
    job = QueuedJob(Job(Path("a"), "a"), RunOptions(), Path(), state=DONE)
    job.content = {"label": "meningioma", "confidence": 0.997}
    assert progress_of(job, 0, True) == "meningioma >0.99"


def test_classes_that_remain_possible_are_named(sick):
    unsure = replace(sick, prediction_set=["meningioma", "glioma", "pituitary"])
    assert (
        "At 95 % coverage, glioma and pituitary tumor cannot be ruled out." in Words(probabilities_html(unsure)).words
    )
    untyped = replace(sick, label="tumor", prediction_set=["meningioma", "glioma"])
    assert "A tumor whose type is uncertain: meningioma and glioma." in Words(probabilities_html(untyped)).words


def test_lesions_are_measured_in_pixels_where_the_spacing_is_not_known(sick):
    words = Words(measurements_html(sick)).words
    assert f"{sick.tumor_area_px} px" in words
    assert not any("mm" in word for word in words)


def test_a_refused_scan_has_a_reason_and_no_figures(noise, pipeline):
    assert answer_of(noise) == "refused"
    assert probabilities_html(noise) == measurements_html(noise) == ""
    words = Words(doubts_of(noise)).words
    assert words[0] == "Why it was refused"
    assert not any("--force" in word or "refused: " in word for word in words)
    forced = pipeline.run(noise.scan, RunOptions(force=True))
    assert any("as you asked" in word for word in Words(doubts_of(forced)).words)


def test_texts_of_files_do_not_become_html(sick):
    bad = "<script>alert(1)</script>"
    result = replace(sick, review=[bad], scan=replace(sick.scan, notes=(bad,)), sequence=(bad, 0.9))
    for html in (doubts_of(result), facts_html(result, 1.0), probabilities_html(result)):
        parsed = Words(html)
        assert "script" not in parsed.tags
        assert any(bad in word for word in parsed.words)


def test_a_stored_result_shows_its_lesions_and_regions():
    lesion = {"number": 1, "voxels": 90, "volume_ml": 8.04, "longest_diameter_mm": 21.6, "slice_index": 7}
    regions = [{"name": "whole", "volume_mm3": 7993.4}, {"name": "<b>", "volume_mm3": None, "area_px": 12}]
    words = Words(stored_sizes_html({"lesions": [lesion], "regions": regions})).words
    for word in ("8.0 ml", "22 mm", "whole", "<b>", "12 pixels"):
        assert word in words
    assert "Region" not in Words(stored_sizes_html({"lesions": [lesion]})).words
    assert stored_sizes_html({"lesions": [], "regions": regions}) == ""
