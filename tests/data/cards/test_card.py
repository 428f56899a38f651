"""Weights that are damaged, foreign or of another architecture are refused before they are used."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import _of_encoder, build_classifier, initialize
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.predict import Classifier
from tumorlens.classification.trust.calibration import TEMPERATURES
from tumorlens.data.cards.card import _TEMPERATURES
from tumorlens.data.cards.weights import card_text, load_weights, read_state, save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization, normalization_of
from tumorlens.segmentation.model import build_segmenter, initialize_encoder
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


def test_a_corrupted_file(copy):
    with copy.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(InputError, match="damaged or changed, their SHA-256"):
        Classifier.load(copy, "cpu")


def test_a_truncated_file(copy):
    copy.write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(InputError, match="SHA-256"):
        Classifier.load(copy, "cpu")


def test_a_missing_card(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"classifier\.json: no such file"):
        Classifier.load(copy, "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preprocess_version": 0}, "preprocessing version 0"),
        ({"classes": ["a", "b"]}, "is needed"),
        ({"architecture": "resnet18"}, "the checkpoint is of another architecture"),
        ({"architecture": "nonet"}, "architecture 'nonet' is not one of cnn, mlp"),
        ({"architecture": 7}, "architecture 7 is not a name"),
        ({"classes": ["a", "b"]}, r"this model is for \['a', 'b'\]"),
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
        ({"conformal": {}}, "conformal.thresholds None is not a JSON object"),
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


def test_a_card_that_says_when_to_believe_it(copy):
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


def test_a_cards_normalisation():
    half = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert normalization_of({"normalization": {"mean": [0.5] * 3, "std": [0.25] * 3}}, IMAGENET) == half
    assert normalization_of({}, half) == half


def test_a_segmenters_normalisation_is_its_cards(tmp_path):
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
        ({"data": "brisc"}, r"training\.data 'brisc' is not a list of names"),
        ({"data": [1]}, r"training\.data \[1\] is not a list of names"),
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


def test_hashes_of_patients_stand_seven_a_line(tmp_path):
    hashes = [f"{i:012x}" for i in range(15)]
    card = {"training": {"fold": 0, "patient_hashes": HASHES | {"train": hashes, "start": hashes[:1]}}, "sha256": "x"}
    text = card_text(card)
    assert json.loads(text) == card
    lines = [line for line in text.splitlines() if "00000000" in line]
    assert [line.count("00000000") for line in lines] == [7, 7, 1, 1]
    assert max(map(len, lines)) <= 120


def test_the_other_stage_is_refused():
    with pytest.raises(InputError, match="for segmentation, not for classification"):
        Classifier.load(SEGMENTER, "cpu")
    with pytest.raises(InputError, match="for classification, not for segmentation"):
        Segmenter.load(CLASSIFIER, "cpu")


def test_a_state_of_another_architecture(tmp_path):
    _, card = load_weights(SEGMENTER, "segmentation")
    other = build_segmenter(encoder="resnet18")
    path = tmp_path / "segmenter.safetensors"
    save_weights(other.state_dict(), path, card)
    with pytest.raises(InputError, match="another architecture"):
        Segmenter.load(path, "cpu")


def test_no_pickle_is_opened(tmp_path):
    """A checkpoint that would run code on loading is refused, and its code does not run."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"weight": Evil()}, file)
    with pytest.raises(InputError, match="cannot be loaded as weights"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_initialisation_reports_what_was_loaded(tmp_path):
    source = build_classifier(RESNET).state_dict()
    partial = {n: t for n, t in source.items() if not n.startswith(("layer4", "fc"))}
    torch.save(partial | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "partial.pth")
    report = initialize(build_classifier(RESNET), RESNET, str(tmp_path / "partial.pth"))
    assert "layer4" in report.fresh
    assert "fc" in report.fresh
    assert report.loaded < report.total
    text = initialize_encoder(build_segmenter(), init=str(tmp_path / "partial.pth"))
    assert "from chance: layer4" in text


def test_a_segmenters_encoder_starts_a_classifier(tmp_path):
    segmenter = build_segmenter("unet", "resnet18")
    save_weights(segmenter.state_dict(), tmp_path / "s.safetensors", {"stage": "segmentation"})
    architecture = find_architecture("resnet18")
    model = build_classifier(architecture, 64)
    report = initialize(model, architecture, str(tmp_path / "s.safetensors"))
    assert report.fresh == ("fc",)
    own = segmenter.encoder.state_dict()["layer3.0.conv1.weight"]
    torch.testing.assert_close(model.state_dict()["layer3.0.conv1.weight"], own.half().float())


def test_a_network_with_an_encoder_of_its_own_keeps_its_names():
    state = {"encoder.layer1.weight": 1, "encoder.conv1.weight": 2, "fc.weight": 3}
    own = {"encoder.layer1.weight": 0, "conv1.weight": 0, "fc.weight": 0}
    assert _of_encoder(state, own) == {"encoder.layer1.weight": 1, "conv1.weight": 2, "fc.weight": 3}


def test_an_initialisation_that_does_not_fit(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="none of its 1 tensors fits"):
        initialize(build_classifier(RESNET), RESNET, str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="none of its 1 tensors fits the encoder"):
        initialize_encoder(build_segmenter(), init=str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="no such weight file"):
        initialize(build_classifier(RESNET), RESNET, "nowhere.pth")


def test_a_segmenter_starts_from_a_classifier():
    model = build_segmenter()
    text = initialize_encoder(model, init=str(CLASSIFIER))
    assert "from chance" not in text
    state, _ = load_weights(CLASSIFIER, "classification")
    torch.testing.assert_close(model.encoder.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
