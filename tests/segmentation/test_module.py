"""The segmenter's module: an encoder that also classifies, and a channel for each kind of outline."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch

from tests.data.training.runs import quiet, segmenter_config, train
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SEQUENCES, SHIPPED_CLASSES, outline_of
from tumorlens.data.training.partition import load_partition
from tumorlens.segmentation.module import SegmenterModule, build_module, new_segmenter
from tumorlens.segmentation.postprocess import clean_mask
from tumorlens.segmentation.predict import Segmenter


def test_an_encoder_learns_to_classify_beside_drawing(phantom_set):
    config = segmenter_config(phantom_set, label_weight=1.0)
    L.seed_everything(0, verbose=False)
    module = build_module(config, load_partition(config))
    module.log = quiet
    images = torch.randn(4, 3, 64, 64)
    module.eval()
    logits, class_logits = module.draw_and_classify(images)
    torch.testing.assert_close(logits, module.model(images))  # the mask's way through the network is the usual one
    assert class_logits.shape == (4, 4)
    batch = {"image": torch.zeros(4, 64, 64, dtype=torch.uint8), "mask": torch.zeros(4, 64, 64, dtype=torch.uint8)}
    batch |= {"source": torch.zeros(4, dtype=torch.int64), "sequence": torch.full((4,), -1)}
    module.train()
    for labels, teaches in (([0, 1, 2, -1], True), ([-1, SHIPPED_CLASSES.untyped, -1, SHIPPED_CLASSES.untyped], False)):
        module.zero_grad()
        module.training_step(batch | {"label": torch.tensor(labels)}, 0).backward()
        assert (module.label_head[-1].weight.grad is not None) == teaches
    learning = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert learning == {id(p) for p in module.parameters()}  # the layer itself learns, and its gradients are cleared


def test_each_set_teaches_its_own_outlines(phantom_set):
    """A lesion teaches the channel of its data set's convention alone; a slice without one teaches all channels."""
    config = segmenter_config(phantom_set, phantom_set, outline=("extent", "enhancing"), duplicates="drop")
    assert config.outlines == ("enhancing", "extent")
    L.seed_everything(0, verbose=False)
    module = build_module(config, load_partition(config))
    module.log = quiet
    last = module.model.segmentation_head[0]
    assert last.weight.shape[0] == 2
    batch = {
        "image": torch.randint(0, 255, (4, 64, 64), dtype=torch.uint8),
        "label": torch.full((4,), SHIPPED_CLASSES.untyped),
        "sequence": torch.full((4,), -1),
    }

    def moved(source, mask):
        module.zero_grad()
        masks = torch.full((4, 64, 64), mask, dtype=torch.uint8)
        module.training_step(batch | {"source": torch.full((4,), source), "mask": masks}, 0).backward()
        return (last.weight.grad.abs().sum((1, 2, 3)) > 0).tolist()

    assert moved(0, 1) == [False, True]
    assert moved(1, 1) == [True, False]
    assert moved(0, 0) == moved(1, 0) == [True, True]


def test_the_outline_may_follow_the_sequence(phantom_set):
    config = segmenter_config("a", "b", outline=("extent", "sequence"))
    module = SegmenterModule(config, new_segmenter(config), 2)
    slices = [(0, "t1c"), (1, "t1c"), (1, "flair"), (1, "t1"), (1, "")]
    numbers = [SEQUENCES.index(sequence) if sequence else -1 for _, sequence in slices]
    batch = {"source": torch.tensor([source for source, _ in slices]), "sequence": torch.tensor(numbers)}
    expected = [1, 0, 1, 1, 0]
    assert module.channel_n(batch).tolist() == expected
    assert [config.channel_of(*one) for one in slices] == expected


def test_one_convention_is_the_network_of_before(phantom_set):
    assert segmenter_config("a").outlines == ()
    assert segmenter_config("a").channel_of(0, "flair") == 0
    assert segmenter_config("a", "b", outline=("extent", "extent")).outlines == ("extent",)
    with pytest.raises(InputError, match="outline 'edema' is not one of enhancing, extent, sequence"):
        new_segmenter(segmenter_config("a", outline=("edema",)))


def test_each_set_needs_an_outline_or_none_has_one(tmp_path, phantom_set, command):
    arguments = ["--data", phantom_set, "--data", phantom_set, "--out", tmp_path / "run", "--init", "none"]
    done = command("train", "segmentation", *arguments, "--outline", "extent", "--size", "64")
    assert done.exit_code == 2
    assert "1 of --outline for 2 of --data; give one for each, or none" in done.stderr
    assert not (tmp_path / "run").exists()


def test_both_channels_come_through_training_and_prediction(phantom_set, tmp_path):
    """The card lists the conventions with a point of each, and `predict` gives the channel that is asked for."""
    settings = {"outline": ("enhancing", "extent"), "duplicates": "drop", "epochs": 1}
    card = train(segmenter_config(phantom_set, phantom_set, **settings), tmp_path)
    assert card["outlines"] == ["enhancing", "extent"]
    assert set(card["operating_point"]["by_outline"]) == {"enhancing", "extent"}
    assert set(card["metrics"]["test"]["by_source"]) == {str(phantom_set)}
    segmenter = Segmenter.load(tmp_path / "segmenter.safetensors", "cpu")
    assert [segmenter.channel_of(outline_of(sequence)) for sequence in ("t1c", "flair", "t2", "t1", None)] == [
        0,
        1,
        1,
        1,
        0,
    ]
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    maps = segmenter.network(images)
    assert maps.shape == (3, 2, 64, 64)
    segmenter.card["operating_point"] = {"mask_threshold": 0.3, "min_lesion_px": 0}
    np.testing.assert_array_equal(segmenter.predict(images), maps[:, 0])
    np.testing.assert_array_equal(segmenter.predict(images, [1, 0, 1]), maps[[0, 1, 2], [1, 0, 1]])


def test_a_channel_has_a_threshold_of_its_own():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    thresholds = {"enhancing": 0.3, "extent": 0.7}
    points = {name: {"mask_threshold": threshold, "min_lesion_px": 0} for name, threshold in thresholds.items()}
    card = {"outlines": list(points), "operating_point": points["enhancing"] | {"by_outline": points}}
    segmenter = Segmenter(lambda images: np.broadcast_to(levels, (2, 2, 16, 16)), card)
    maps = segmenter.predict(np.zeros((2, 16, 16), np.uint8), [0, 1])
    np.testing.assert_array_equal(maps[0], levels)
    for map_hw, threshold in zip(maps, thresholds.values(), strict=True):
        mask = clean_mask(map_hw, segmenter.mask_threshold, 0)
        np.testing.assert_array_equal(mask, clean_mask(levels, threshold, 0))
