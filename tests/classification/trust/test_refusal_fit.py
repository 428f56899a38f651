"""The refusal is fitted on features of brains and of other pictures, and stored with the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.data.training.runs import classifier_config, train
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.predict import Classifier
from tumorlens.classification.refusal import ADMITTED
from tumorlens.classification.trust.refusal_fit import feature_layer, fit_refusal, read_others, training_pictures
from tumorlens.data.augmentation.not_brain import not_brains
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare


def test_the_head_separates_features_and_admits_the_promised_share():
    rng = np.random.default_rng(0)
    brains, strange = rng.normal(0, 1, (400, 30)), rng.normal(0, 1, (300, 30)) + 2
    features = np.concatenate([brains, strange]).astype(np.float32)
    validation = rng.normal(0, 1, (2000, 30)).astype(np.float32)
    taught = fit_refusal("layer3", features, np.arange(700) >= 400)
    head = taught.limited(taught.strangeness(validation))
    assert (head.strangeness(validation) <= head.limit).mean() >= ADMITTED
    near = (validation + 1.2).astype(np.float32)
    assert taught.limited(taught.strangeness(near)).limit > head.limit >= 0
    others = (rng.normal(0, 1, (2000, 30)) + 2).astype(np.float32)
    assert (head.strangeness(others) > head.limit).mean() > 0.99


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet50", "layer3"),
        pytest.param("vgg16", "features.29", marks=pytest.mark.slow),
        pytest.param("inception_v3", "Mixed_6e", marks=pytest.mark.slow),
        ("cnn", "features"),
        ("mlp", None),
    ],
)
def test_the_layer_that_is_read(name, layer):
    architecture = find_architecture(name)
    model = build_classifier(architecture)
    assert feature_layer(model, architecture.input_size) == layer
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_trained_classifier_carries_its_refusal(phantom_set, tmp_path):
    (tmp_path / "others").mkdir()
    for k in range(3):
        noise = np.random.default_rng(k).integers(0, 255, (80, 120), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "others" / f"{k}.png")
    config = classifier_config(phantom_set, arch="cnn", epochs=1, not_brain=(str(tmp_path / "others"),))
    card = train(config, tmp_path / "run", few_pictures=False)
    assert card["refusal"]["layer"] == "features"
    model = Classifier.load(tmp_path / "run" / "classifier.safetensors", "cpu")
    assert model.strangeness_limit == pytest.approx(card["refusal"]["limit"])
    images = prepare(load_samples(phantom_set), Preprocess(64)).images
    seen = model.look(images)
    np.testing.assert_allclose(model.calibrate(seen.logits), model.predict(images), atol=1e-6)
    strange = np.stack([Preprocess(64)(p).image for p in not_brains([], 40, seed=99)])
    assert (seen.strangeness > model.strangeness_limit).mean() < 0.3  # the limit is that of eight validation slices
    assert (model.look(strange).strangeness > model.strangeness_limit).mean() > 0.8


def test_a_network_without_feature_maps_has_none(phantom_set, tmp_path):
    card = train(classifier_config(phantom_set, arch="mlp", epochs=1, epoch_slices=8), tmp_path)
    assert "refusal" not in card
    model = Classifier.load(tmp_path / "classifier.safetensors", "cpu")
    assert model.look(np.zeros((1, 64, 64), np.uint8)).strangeness is None
    assert model.strangeness_limit is None


def test_folders_of_other_pictures(tmp_path):
    with pytest.raises(InputError, match="no such folder of pictures"):
        read_others(tmp_path / "nowhere", 64)
    with pytest.raises(InputError, match="no pictures there"):
        read_others(tmp_path, 64)
    (tmp_path / "a").mkdir()
    Image.fromarray(np.eye(50, dtype=np.uint8) * 200).save(tmp_path / "a" / "x.png")
    Image.fromarray(np.full((50, 50), 9, np.uint8)).save(tmp_path / "a" / "flat.png")
    assert [p.shape for p in read_others(tmp_path, 64)] == [(64, 64)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        read_others(tmp_path, 64)


def test_both_kinds_are_in_the_training_pictures(phantom_set):
    prepared = prepare(load_samples(phantom_set)[:10], Preprocess(64))
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1)) * 4
    pictures, strange = training_pictures(prepared, 64, [ramp])
    assert pictures.shape == (len(strange), 64, 64)
    assert (~strange).sum() == 10 + 20 + 10
    assert strange.sum() == 60 + 3, "as it is, augmented, and cut to an outline"
    assert np.array_equal(pictures[-3], ramp)
    assert not pictures[-1][:4, :4].any()
    assert pictures[-1].any()


class TwoMaps(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, :1].expand(-1, 4)


def test_a_network_of_one_module_without_maps():
    model = TwoMaps()
    model.weight = nn.Parameter(torch.zeros(1))
    assert feature_layer(model, 64) is None
