"""Weights that are damaged, foreign or of another architecture are refused before they are used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from classification.model import build_classifier, initialise
from classification.predict import SHIPPED as CLASSIFIER
from classification.predict import Classifier
from data.cards import load_weights, read_state, save_weights
from data.errors import InputError
from segmentation.model import build_segmenter, initialise_encoder
from segmentation.predict import SHIPPED as SEGMENTER
from segmentation.predict import Segmenter


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
        ({"architecture": "vgg16"}, "a vgg16 for"),
        ({"stage": "segmentation"}, "for segmentation, not for classification"),
        ({"schema_version": 99}, "unknown schema"),
        ({"operating_point": {}}, "tumor_threshold None is no number from 0 to 1"),
        ({"operating_point": "high"}, "tumor_threshold None is no number"),
        ({"operating_point": {"tumor_threshold": 5}}, "tumor_threshold 5 is no number from 0 to 1"),
        ({"input_size": 0}, "input_size 0 is no multiple of 32"),
        ({"input_size": "abc"}, "input_size 'abc' is no multiple of 32"),
    ],
)
def test_a_card_that_does_not_fit(copy, change, reason):
    card = copy.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
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
        ({"decoder_channels": [1, 2]}, "are not five whole numbers"),
        ({"operating_point": {"mask_threshold": 0.5}}, "min_lesion_px None is no number"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=reason):
            Segmenter.load(tmp_path / "s.safetensors", "cpu")


def test_the_other_stage_is_refused():
    with pytest.raises(InputError, match="for segmentation, not for classification"):
        Classifier.load(SEGMENTER, "cpu")
    with pytest.raises(InputError, match="for classification, not for segmentation"):
        Segmenter.load(CLASSIFIER, "cpu")


def test_a_state_of_another_architecture(tmp_path):
    _, card = load_weights(SEGMENTER, "segmentation")
    other = build_segmenter("resnet18")
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
    source = build_classifier().state_dict()
    partial = {n: t for n, t in source.items() if not n.startswith(("layer4", "fc"))}
    torch.save(partial | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "partial.pth")
    report = initialise(build_classifier(), str(tmp_path / "partial.pth"))
    assert "layer4" in report.fresh
    assert "fc" in report.fresh
    assert report.loaded < report.total
    text = initialise_encoder(build_segmenter(), init=str(tmp_path / "partial.pth"))
    assert "from chance: layer4" in text


def test_an_initialisation_that_does_not_fit(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="none of its 1 tensors fits"):
        initialise(build_classifier(), str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="none of its 1 tensors fits the encoder"):
        initialise_encoder(build_segmenter(), init=str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="no such weight file"):
        initialise(build_classifier(), "nowhere.pth")


def test_a_segmenter_starts_from_a_classifier():
    model = build_segmenter()
    text = initialise_encoder(model, init=str(CLASSIFIER))
    assert "from chance" not in text
    state, _ = load_weights(CLASSIFIER, "classification")
    torch.testing.assert_close(model.encoder.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
