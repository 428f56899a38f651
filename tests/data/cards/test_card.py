"""Weights that are damaged, foreign or of another architecture are refused before they are used."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.predict import Classifier
from tumorlens.classification.trust.calibration import TEMPERATURES
from tumorlens.data.cards.card import _TEMPERATURES
from tumorlens.data.cards.weights import load_weights
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization, normalization_of
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER
from tumorlens.segmentation.predict import Segmenter

HASHES = {"train": ["a"], "validation": [], "test": [], "start": None}
THRESHOLDS = dict.fromkeys(CLASSES, 0.2)
RESNET = find_architecture("resnet50")


@pytest.fixture
def copy(tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(CLASSIFIER.with_suffix(suffix), tmp_path / f"classifier{suffix}")
    return tmp_path / "classifier.safetensors"


@pytest.mark.parametrize("place", ["folder", "folder.json", "picture.png"])
def test_a_path_that_is_not_a_weight_file(place, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder.json", "picture.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{place}: not a weight file; a model is a .safetensors file"):
        Classifier.load(tmp_path / place, "cpu")


def test_a_missing_card(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"classifier\.json: no such file"):
        Classifier.load(copy, "cpu")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 100_000, "", "\ufeff{}"])
def test_a_card_that_is_not_json(copy, text):
    copy.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"classifier\.json: the card is not valid JSON"):
        Classifier.load(copy, "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preprocess_version": 0}, "preprocessing version 0"),
        ({"classes": ["glioma"]}, "its 1 classes are not 2 to 50"),
        ({"architecture": "resnet18"}, "the checkpoint is of another architecture"),
        ({"architecture": "nonet"}, "architecture 'nonet' is not one of cnn, mlp"),
        ({"architecture": 7}, "architecture 7 is not a name"),
        ({"classes": ["a", "b"]}, "is not a JSON object with a threshold for each of a, b"),
        ({"stage": "segmentation"}, "for segmentation, not for classification"),
        ({"schema_version": 99}, "unknown schema"),
        ({"operating_point": {}}, "operating_point.tumor_threshold None is not a number from 0 to 1"),
        ({"operating_point": "high"}, "operating_point 'high' is not a JSON object"),
        ({"operating_point": {"tumor_threshold": 5}}, "tumor_threshold 5 is not a number from 0 to 1"),
        ({"input_size": 0}, "input_size 0 is not a whole number from 32 on"),
        ({"input_size": "abc"}, "input_size 'abc' is not a whole number from 32 on"),
        ({"calibration": None}, "calibration None is not a JSON object"),
        ({"calibration": [1.5]}, r"calibration \[1.5\] is not a JSON object"),
        ({"calibration": {}}, "calibration.temperature None is not a number from 0.05 to 20"),
        ({"calibration": {"temperature": 0}}, "calibration.temperature 0 is not a number from 0.05 to 20"),
        ({"calibration": {"temperature": "1"}}, "calibration.temperature '1' is not a number"),
        ({"calibration": {"temperature": float("nan")}}, "calibration.temperature nan is not a number"),
        ({"calibration": {"temperature": True}}, "calibration.temperature True is not a number"),
        ({"conformal": None}, "conformal None is not a JSON object"),
        ({"conformal": {}}, r"conformal \{\} is not a JSON object with thresholds, or with too_few"),
        ({"conformal": {"thresholds": None}}, "conformal.thresholds None is not a JSON object"),
        (
            {"conformal": {"thresholds": {"glioma": 0.1}}},
            r"conformal.thresholds \{'glioma': 0.1\} is not a JSON object with a threshold for each of no_tumor",
        ),
        (
            {"conformal": {"thresholds": THRESHOLDS | {"glioma": 2}}},
            "conformal.thresholds.glioma 2 is not a number from 0 to 1 or null",
        ),
        (
            {"conformal": {"thresholds": THRESHOLDS | {"metastasis": 0.1}}},
            "'metastasis': 0.1} is not a JSON object with",
        ),
        ({"calibration": {"temperature": 10**400}}, "is not a number from 0.05"),
        ({"refusal": {"layer": "layer3", "bias": 0, "limit": 10**400}}, "refusal.limit 1"),
        ({"refusal": []}, r"refusal \[\] is not a JSON object"),
        ({"refusal": None}, "refusal None is not a JSON object"),
        ({"refusal": {"bias": 0, "limit": 1}}, "refusal.layer None is not a name"),
        ({"refusal": {"layer": "layer3", "bias": None, "limit": 1}}, "refusal.bias None is not a number"),
        ({"refusal": {"layer": "layer3", "bias": 0, "limit": float("inf")}}, "refusal.limit inf is not a number"),
        ({"normalization": None}, "normalization None is not a JSON object"),
        ({"normalization": {"mean": [0, 0, 0]}}, "normalization.std None is not a list of three numbers above 0"),
        (
            {"normalization": {"mean": [0, 0], "std": [1, 1, 1]}},
            r"normalization.mean \[0, 0\] is not a list of three numbers",
        ),
        (
            {"normalization": {"mean": [0, 0, 0], "std": [1, 1, 0]}},
            r"normalization.std \[1, 1, 0\] is not a list of three",
        ),
    ],
)
def test_a_card_that_does_not_fit(copy, change, reason):
    card = copy.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(InputError, match=reason):
        Classifier.load(copy, "cpu")


def test_a_card_with_calibration_and_prediction_sets(copy):
    """Thresholds of classes that were never seen are null; whole numbers are numbers; all of it may be absent."""
    card = copy.with_suffix(".json")
    content = json.loads(card.read_text())
    trust = {
        "calibration": {"temperature": 20},
        "conformal": {"thresholds": THRESHOLDS | {"glioma": None, "pituitary": 0}},
        "normalization": {"mean": [0, 0, 0.5], "std": [1, 0.5, 0.5]},
    }
    card.write_text(json.dumps(content | trust))
    load_weights(copy, "classification")
    bare = {k: v for k, v in content.items() if k not in (*trust, "refusal")}
    card.write_text(json.dumps(bare))
    load_weights(copy, "classification")


def test_cards_take_every_temperature_that_is_fitted():
    assert _TEMPERATURES == TEMPERATURES


def test_the_normalization_of_a_card():
    half = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert normalization_of({"normalization": {"mean": [0.5] * 3, "std": [0.25] * 3}}, IMAGENET) == half
    assert normalization_of({}, half) == half


def test_a_segmenter_has_the_normalization_of_its_card(tmp_path):
    """The network gets what the card says, not what the encoder's first weights expected."""
    shutil.copy(SEGMENTER, tmp_path / "segmenter.safetensors")
    card = json.loads(SEGMENTER.with_suffix(".json").read_text())
    card["normalization"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "segmenter.json").write_text(json.dumps(card))
    model = Segmenter.load(tmp_path / "segmenter.safetensors", "cpu")
    image = np.random.default_rng(0).integers(0, 255, (1, model.input_size, model.input_size), dtype=np.uint8)
    assert model.network.normalization == Normalization((0.5,) * 3, (0.5,) * 3)
    seen = []
    hook = model.network.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(image)
    hook.remove()
    np.testing.assert_allclose(seen[0][0, 0].numpy(), (image[0] / 255 - 0.5) / 0.5, atol=1e-5)


def test_a_refusal_that_reads_no_layer(copy):
    card = copy.with_suffix(".json")
    content = json.loads(card.read_text())
    content["refusal"]["layer"] = "layer9"
    card.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"refusal\.layer 'layer9' is not a layer of resnet50"):
        Classifier.load(copy, "cpu")


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (None, "training None is not a JSON object"),
        ({"fold": "0"}, r"training\.fold '0' is not a whole number from 0 on"),
        ({"seed": 2**32}, r"training\.seed 4294967296 is not a whole number from 0 to 4294967295"),
        ({"seed": -1}, r"training\.seed -1 is not a whole number from 0"),
        ({"epochs": {}, "validate_every": 2}, r"training\.epochs \{\} is not a whole number from 1 on"),
        ({"epochs": 8, "validate_every": [4]}, r"training\.validate_every \[4\] is not a whole number from 1 on"),
        ({"start": {"epochs": "8"}}, r"training\.epochs '8' is not a whole number from 1 on"),
        ({"data": "brisc"}, r"training\.data 'brisc' is not a list of names"),
        ({"data": [1]}, r"training\.data \[1\] is not a list of names"),
        ({"picture_hashes": "a"}, r"training\.picture_hashes 'a' is not a JSON object"),
        ({"picture_hashes": {"train": "a"}}, r"training\.picture_hashes\.train 'a' is not a text of hashes"),
        ({"picture_hashes": {"train": "=" * 24}}, r"picture_hashes\.train '=+' is not a text of hashes"),
        (
            {"picture_hashes": {"train": "A" * 24, "start": 1}},
            r"\.start 1 is not a text of hashes or null",
        ),
        ({"patient_hashes": ["a"]}, r"training\.patient_hashes \['a'\] is not a JSON object"),
        ({"patient_hashes": HASHES | {"test": "a"}}, r"training\.patient_hashes\.test 'a' is not a list of hashes"),
        ({"patient_hashes": HASHES | {"start": [1]}}, r"hashes\.start \[1\] is not a list of hashes or null"),
        ({"patient_hashes": {"train": []}}, r"training\.patient_hashes\.validation None is not a list of hashes"),
    ],
)
def test_a_card_whose_training_cannot_be(copy, training, reason):
    card = copy.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"training": training}))
    with pytest.raises(InputError, match=reason):
        Classifier.load(copy, "cpu")


def test_a_card_that_lacks_something(copy):
    card = copy.with_suffix(".json")
    content = json.loads(card.read_text())
    del content["operating_point"], content["input_size"]
    card.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"classifier\.json: the card lacks input_size, operating_point"):
        Classifier.load(copy, "cpu")


def test_a_segmenters_card(tmp_path):
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"s{suffix}").write_bytes(SEGMENTER.with_suffix(suffix).read_bytes())
    card = json.loads((tmp_path / "s.json").read_text())
    for change, reason in (
        ({"decoder_channels": [1, 2]}, "is not a list of five whole numbers above 0"),
        ({"encoder": 7}, "encoder 7 is not a name"),
        ({"normalization": [0.5]}, r"normalization \[0.5\] is not a JSON object"),
        ({"operating_point": {"mask_threshold": 0.5}}, "min_lesion_px None is not a number"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=reason):
            Segmenter.load(tmp_path / "s.safetensors", "cpu")


def test_the_other_stage_is_refused():
    with pytest.raises(InputError, match="for segmentation, not for classification"):
        Classifier.load(SEGMENTER, "cpu")
    with pytest.raises(InputError, match="for classification, not for segmentation"):
        Segmenter.load(CLASSIFIER, "cpu")
