"""The sequence head: it tells kinds of pictures apart, and fits to the tensors in the file of the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.network import TorchNetwork
from tumorlens.classification.refusal import Refusal
from tumorlens.classification.sequence import SequenceHead, likeliest_sequence, take_sequence_head
from tumorlens.classification.trust.refusal_fit import feature_layer
from tumorlens.classification.trust.sequence_fit import fit_sequence_head, sequence_figures
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SEQUENCES
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet, prepare


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    architecture = find_architecture("cnn")
    return TorchNetwork(build_classifier(architecture, 64).eval(), torch.device("cpu"), architecture.normalization)


def two_sequences(prepared: PreparedSet) -> PreparedSet:
    """Every slice as it is, called T1, and with its gray levels turned, called T2."""
    turned = np.where(prepared.images > 10, 255 - prepared.images, prepared.images)
    samples = [replace(s, sequence=name) for name in ("t1", "t2") for s in prepared.samples]
    masks, labels = np.concatenate([prepared.masks] * 2), np.concatenate([prepared.labels] * 2)
    return PreparedSet(samples, np.concatenate([prepared.images, turned]), masks, labels)


def test_sequences_that_training_showed_are_told_apart(network, phantom_set):
    both = two_sequences(prepare(load_samples(phantom_set), Preprocess(64)))
    layer = feature_layer(network.model, 64)
    _, features = network.predict_with_features(both.images, layer)
    mean, std = features.mean(axis=0), features.std(axis=0).clip(1e-4)
    refusal = Refusal(layer, mean, std, np.zeros_like(mean), 0.0, 0.0)
    head = fit_sequence_head(network, refusal, both)
    probabilities = head.probabilities(refusal.standardize(features))
    assert sequence_figures(probabilities, both.samples)["t1"] == {"n": 40, "recall": pytest.approx(1, abs=0.05)}
    assert sequence_figures(probabilities, both.samples)["t2"]["recall"] > 0.95
    assert probabilities[:, [1, 3]].max() < 1e-6  # T1c and FLAIR were never shown
    named = [likeliest_sequence(probabilities[start : start + 40])[0] for start in (0, 40)]
    assert named == ["t1", "t2"]
    one = replace(both, samples=[replace(s, sequence="t1") for s in both.samples])
    assert fit_sequence_head(network, refusal, one) is None


def test_one_odd_slice_does_not_name_the_scan():
    sure = np.array([[0.9, 0.05, 0.04, 0.01]] * 9 + [[0.0, 0.0, 1.0, 0.0]], np.float32)
    name, probability = likeliest_sequence(sure)
    assert name == "t1"
    assert 0.5 < probability < 1


def test_a_card_that_does_not_fit_its_tensors(tmp_path):
    head = SequenceHead(np.ones((4, 6), np.float32), np.zeros(4, np.float32))
    refusal = Refusal("layer3", *(np.ones(6, np.float32),) * 3, 0.0, 0.0)
    card = {"sequence": {"names": list(SEQUENCES)}}
    path = tmp_path / "w.safetensors"
    for wrong, tensors, features in (
        ({}, head.tensors(), refusal),
        (card, {}, refusal),
        (card, head.tensors(), None),
        (card, head.tensors(), replace(refusal, mean=np.ones(5, np.float32))),
        ({"sequence": {"names": ["t1", "t2"]}}, head.tensors(), refusal),
    ):
        with pytest.raises(InputError, match=r"w\.json: the card's sequence does not fit"):
            take_sequence_head(dict(tensors), wrong, features, path)
    state = {"fc.weight": torch.ones(2), **head.tensors()}
    np.testing.assert_array_equal(take_sequence_head(state, card, refusal, path).weight, head.weight)
    assert list(state) == ["fc.weight"]
    assert take_sequence_head({}, {}, refusal, path) is None
