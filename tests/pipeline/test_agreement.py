"""What is printed is what decides: label, probabilities, confidence, lesions and review never contradict each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.pipeline.fixed import SIZE, fixed_pipeline
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.gate import judge
from tumorlens.pipeline.options import RunOptions

# Around the threshold, some closer to it than any digit that is printed, and at both ends.
CLOSE = [0.49996, 0.4999994, 0.4999996, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 0.5000004, 0.5000006, 0.50004]
SCORES = [0.0, 1e-9, 0.02, 0.23, 0.3, *CLOSE, 0.7, 0.77, 0.9999996, 1.0]
THRESHOLDS = [None, 0.0, 0.02, 0.3, 0.5, 0.7, 0.9, 1.0]
TYPES = [(1, 0, 0), (0.5, 0.3, 0.2), (1, 1, 1), (0, 0, 0), (1e-7, 1, 1e-7), (0.34, 0.33, 0.33), (2, 7, 1)]
POSSIBLE = [None, (0, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)]


def contradictions(content, threshold=None):
    """What in a ``result.json`` contradicts its label; empty if nothing does."""
    label, p, sure = content["label"], content["probabilities"], content["confidence"]
    sizes = [lesion["confidence"] for lesion in content["lesions"]]
    if label == "refused":
        return [] if p is None and sure is None and not sizes else ["a refused scan has figures"]
    limit = 0.5 if threshold is None else threshold
    free, tumor, healthy = p["no_tumor"], round(1 - p["no_tumor"], 6), label == "no_tumor"
    own = [reason for reason in content["review"] if reason.startswith("labeled by your threshold")]
    claims = {
        "the probabilities do not sum to 1": abs(sum(p.values()) - 1) < 1e-9,
        "a probability is negative": min(p.values()) >= 0,
        "the threshold does not decide": healthy == (tumor < limit),
        "the confidence is not that of the label": sure == (tumor if label == "tumor" else p[label]),
        "a named type is not the likeliest class": label in ("no_tumor", "tumor") or p[label] == max(p.values()),
        "a lesion is below the threshold": all(one >= limit for one in sizes),
        "the surest lesion is not as sure as the scan": not sizes or max(sizes) == tumor,
        "a scan without a tumor has lesions": not (healthy and sizes),
        "your threshold decided, and the review does not say so": bool(own) == (healthy != (tumor < 0.5)),
    }
    if threshold is None:
        claims["the label is not that of the likelier side"] = healthy == (free > 0.5)
        claims["the label's side is unlikely"] = (free if healthy else tumor) >= 0.5
    return [claim for claim, holds in claims.items() if not holds]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_verdict_follows_from_its_printed_probabilities(threshold):
    limit = 0.5 if threshold is None else threshold
    for score, types, possible in product(SCORES, TYPES, POSSIBLE):
        inside = None if possible is None else np.array(possible, bool)
        verdict = judge(score, np.array(types, np.float32), limit, lambda _, label, inside=inside: inside)
        printed = [round(float(one), 6) for one in verdict.probabilities]
        assert sum(printed) == pytest.approx(1, abs=1e-9) and min(printed) >= 0
        tumor = round(1 - printed[0], 6)
        assert tumor == pytest.approx(score, abs=6e-7)
        assert verdict.positive == (tumor >= limit) == (verdict.label != "no_tumor")
        named = tumor if verdict.label == "tumor" else printed[CLASSES.index(verdict.label)]
        assert verdict.confidence == pytest.approx(named, abs=1e-7)
        if threshold in (None, 0.5):
            assert (verdict.label == "no_tumor") == (printed[0] > 0.5)
            assert verdict.label == "tumor" or verdict.probabilities[verdict.likeliest] == verdict.probabilities.max()
        if sum(types):
            np.testing.assert_allclose(printed[1:], score * np.array(types) / sum(types), atol=2e-6)


@pytest.fixture(scope="module")
def seen():
    """A volume, one of a single slice, and a picture, with what the networks say about them."""
    volume = phantom_volume(9, "pituitary", shape=(64, 75, 10), spacing_mm=(3, 3, 12))
    scans = {
        "volume": Scan.from_array(volume.image),
        "one slice": Scan.from_array(volume.image[:, :, 5:6], np.diag([3.0, 3.0, 12.0, 1.0])),
        "picture": Scan.from_array(phantom_slice(9, "pituitary").image),
    }
    cases = {name: prepare(scan, SIZE) for name, scan in scans.items()}
    return {name: (case, fixed_pipeline(0.9, "pituitary").decide([case])[0]) for name, case in cases.items()}


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_volume_prints_the_probabilities_that_decide(seen, threshold):
    case, decision = seen["volume"]
    labels = set()
    for score in SCORES:
        bias = float(np.log(np.clip(score, 1e-12, 1 - 1e-12) / (1 - np.clip(score, 1e-12, 1 - 1e-12))))
        rule = dict.fromkeys(("map", "slices", "both", "size", "depth"), 0.0) | {"bias": bias}
        pipeline = fixed_pipeline(threshold=threshold)
        card = pipeline.classifier.card | {"lesion_rule": rule}
        pipeline = replace(pipeline, classifier=replace(pipeline.classifier, card=card))
        result = pipeline.conclude(case, decision)
        content = result.to_dict()
        assert contradictions(content, threshold) == []
        assert round(1 - content["probabilities"]["no_tumor"], 6) == pytest.approx(score, abs=6e-7)
        assert result.mask.any() == bool(content["lesions"]) == result.positive
        labels.add(content["label"])
    assert threshold in (0.0, 1.0) or len(labels) > 1


@pytest.mark.parametrize("threshold", [None, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["one slice", "picture"])
def test_one_slice_prints_the_probabilities_that_decide(seen, kind, threshold):
    case, _ = seen[kind]
    for score in SCORES[2::2]:
        pipeline = fixed_pipeline(score, "pituitary", threshold)
        result = pipeline.conclude(case, pipeline.decide([case])[0])
        content = result.to_dict()
        assert contradictions(content, threshold) == []
        assert [row["segmented"] for row in content["slices"]] == [result.positive]
        assert result.mask.any() == result.positive  # the segmenter of this pipeline always draws


def test_what_no_suspicion_speaks_for_is_as_likely_as_the_card_says():
    volume = phantom_volume(9, "no_tumor", shape=(64, 75, 10), spacing_mm=(3, 3, 12)).image
    for threshold, label in ((None, "no_tumor"), (0.01, "tumor")):
        result = fixed_pipeline(0.005, threshold=threshold).run(volume)
        content = result.to_dict()
        assert (content["label"], content["probabilities"]["no_tumor"]) == (label, 0.98)
        assert contradictions(content, threshold) == []
        assert ("classifier positive but mask empty" in content["review"]) == (label == "tumor")


def test_a_refused_scan_has_no_figures_and_a_forced_one_agrees():
    flat = np.full((70, 60), 12)
    flat[3, 3] = 14
    assert contradictions(fixed_pipeline().run(flat).to_dict()) == []
    forced = fixed_pipeline(0.4).run(flat, RunOptions(force=True)).to_dict()
    assert forced["label"] == "no_tumor" and contradictions(forced) == []


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["progression/02/pre_t1.nii.gz", "progression/04/post_t1.nii.gz", "dicom/brainix_t1", "healthy"],
)
def test_a_real_volume_prints_the_probabilities_that_decide(pipeline, real, name):
    source = real / "volumes" / name
    source = next(source.glob("*.nii.gz")) if name == "healthy" else source
    case = prepare(open_source(source), pipeline.classifier.input_size)
    assert case.size_doubt is None
    (decision,) = pipeline.decide([case])
    for threshold in (None, 0.05, 0.2, 0.8, 0.95):
        content = replace(pipeline, threshold=threshold).conclude(case, decision).to_dict()
        assert content["label"] != "refused" and contradictions(content, threshold) == []
