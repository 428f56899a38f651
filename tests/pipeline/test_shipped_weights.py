"""The shipped weights: whole, described by their cards, and with the outputs recorded when they were made."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.data.files import sha256_of
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import PREPROCESS_VERSION
from tumorlens.pipeline.evaluation.end_to_end import dice
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

# (label of the phantom, seed) -> label, probabilities in the order of CLASSES, pixels of the mask; on a CPU, in fp32.
RECORDED = {
    ("no_tumor", 1): ("no_tumor", [0.9065, 0.0862, 0.0042, 0.0032], 0),
    ("no_tumor", 2): ("no_tumor", [0.8947, 0.0972, 0.0058, 0.0022], 0),
    ("meningioma", 7): ("meningioma", [0.0004, 0.0038, 0.9954, 0.0004], 1380),
    ("meningioma", 3): ("meningioma", [0.0001, 0.0005, 0.9993, 0.0001], 835),
    ("pituitary", 4): ("meningioma", [0.0010, 0.1031, 0.8855, 0.0104], 669),
    ("glioma", 9): ("meningioma", [0.0008, 0.0289, 0.9696, 0.0007], 1759),
}


@pytest.mark.parametrize("weights", [CLASSIFIER, SEGMENTER], ids=["classification", "segmentation"])
def test_card_describes_the_file(weights):
    text = weights.with_suffix(".json").read_text()
    card = json.loads(text)
    assert card["sha256"] == sha256_of(weights)
    assert card["preprocess_version"] == PREPROCESS_VERSION
    assert {"architecture", "training_data", "licence", "n_slices", "metrics", "date", "command"} <= set(card)
    assert all(source["licence"] and source["credit"] for source in card["training_data"])
    assert card["command"].startswith("tumorlens train ")
    assert not re.search(r'"(/|[A-Za-z]:\\|~)', text), "an absolute path"
    assert {str(t.dtype) for t in load_file(weights).values()} <= {"float16", "int64"}


@pytest.mark.parametrize(("kind", "seed"), RECORDED)
def test_recorded_outputs(pipeline, kind, seed):
    label, probabilities, area = RECORDED[kind, seed]
    result = pipeline.run(phantom_slice(seed, kind).image)
    assert result.label == label
    np.testing.assert_allclose([result.probabilities[c] for c in CLASSES], probabilities, atol=0.01)
    assert result.tumor_area_px == pytest.approx(area, rel=0.05, abs=5)


@pytest.mark.slow
def test_lesions_of_phantoms_are_found(pipeline):
    """The place is checked and the type is not, because only a real tumor has a type."""
    scores = []
    for kind in ("glioma", "meningioma", "pituitary"):
        for seed in range(20, 26):
            phantom = phantom_slice(seed, kind)
            scores.append(dice(pipeline.run(phantom.image).mask, phantom.mask))
    assert np.mean(np.array(scores) > 0.5) > 0.9, np.round(scores, 2)


def test_healthy_phantoms_stay_healthy(pipeline):
    masks = [pipeline.run(phantom_slice(seed, "no_tumor").image).mask.any() for seed in range(20, 30)]
    assert np.mean(masks) <= 0.1
