"""The segmenter's module: an encoder that also classifies, and a channel for each kind of outline."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.training.runs import classifier_config, quiet, segmenter_config, train
from tests.scans.drawings import yolo_boxes
from tests.scans.phantoms import read_rows, write_rows
from tumorlens.classification.train import has_label
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SEQUENCES, SHIPPED_CLASSES, outline_of
from tumorlens.data.masks.boxes import LESION, UNKNOWN, box_truth
from tumorlens.data.training.loaders import loaders
from tumorlens.data.training.partition import load_partition
from tumorlens.segmentation.evaluation.metrics import segmentation_metrics
from tumorlens.segmentation.loss import LOSSES
from tumorlens.segmentation.module import SegmenterModule, build_module, new_segmenter
from tumorlens.segmentation.postprocess import clean_mask
from tumorlens.segmentation.predict import Segmenter
from tumorlens.segmentation.train import outlined_slices


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
    assert module.outputs == SHIPPED_CLASSES.names  # which a resumed run must have again
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


def test_what_a_box_leaves_open_teaches_nothing():
    config = segmenter_config("a")
    module = SegmenterModule(config, new_segmenter(config), 2)
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    box = np.zeros((32, 32), np.uint8)
    box[8:24, 4:20] = 1
    mask[0, 0] = torch.from_numpy(box_truth(box))
    logits = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module.loss_of(logits, mask, torch.zeros(2, dtype=torch.int64)).backward()
    moved = logits.grad != 0
    assert torch.equal(moved, mask != UNKNOWN)
    assert (logits.grad[mask == LESION] < 0).all(), "descent raises the core"
    assert (logits.grad[mask == 0] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_learns_from_what_a_box_leaves_open(name):
    config = segmenter_config("a", loss=name)
    module = SegmenterModule(config, new_segmenter(config), 2)
    box = np.zeros((32, 32), np.uint8)
    box[8:24, 4:20] = 1
    mask = torch.from_numpy(box_truth(box))[None, None]
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module.loss_of(logits, mask, torch.zeros(1, dtype=torch.int64)).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[mask == UNKNOWN].any()
    assert logits.grad[mask == LESION].any()


def test_boxes_are_validated_by_boxes():
    """A ring whose box is right agrees with a box, and not with an outline."""
    config = segmenter_config("a")
    module = SegmenterModule(config, new_segmenter(config), 2)
    module.log = quiet
    ring = np.zeros((32, 32), np.uint8)
    ring[8:24, 4:20] = 1
    filled = ring.copy()
    ring[10:22, 6:18] = 0
    module.forward = lambda images: torch.from_numpy(ring).float()[None, None] * 20 - 10
    batch = {"image": torch.zeros(1, 32, 32), "source": torch.tensor([0]), "sequence": torch.tensor([-1])}
    module.validation_step(batch | {"mask": torch.from_numpy(box_truth(filled))[None]}, 0)
    assert float(module.dice.aggregate()) == 1
    module.dice.reset()
    module.validation_step(batch | {"mask": torch.from_numpy(filled)[None]}, 0)
    assert float(module.dice.aggregate()) == pytest.approx(2 * ring.sum() / (ring.sum() + filled.sum()))


def with_boxes(phantom_set, folder, boxed=lambda row: True):
    """An index of the phantoms in which boxes stand for some masks."""
    rows = read_rows(phantom_set / "index.csv")
    for number, row in enumerate(rows):
        if row["mask"] and boxed(row):
            mask = np.array(Image.open(phantom_set / row["mask"]))
            (folder / f"{number}.txt").write_text(yolo_boxes(mask))
            row["mask"] = folder / f"{number}.txt"
    return f"{write_rows(folder / 'boxes.csv', rows, 'image,mask,label,patient,fold')}@{phantom_set}"


def test_a_set_of_boxes_trains_and_is_measured_by_boxes(phantom_set, tmp_path):
    lines = []
    card = train(segmenter_config(with_boxes(phantom_set, tmp_path), epochs=1), tmp_path / "run", say=lines.append)
    assert sum("no validation slice has an outline" in line for line in lines) == 1
    assert "overlap of boxes (IoU)" in lines[-1]
    assert card["operating_point"] == {"mask_threshold": 0.5, "min_lesion_px": 0}
    for part in ("validation", "test"):
        figures = card["metrics"][part]
        assert figures["dice_tumor"] is figures["dice_all"] is None
        assert (figures["n"], figures["boxes"]["n"], figures["boxes"]["n_boxes"]) == (2, 6, 6)
        assert 0 <= figures["boxes"]["iou"] <= 1
    rows = read_rows(tmp_path / "run" / "test.csv")
    assert [bool(row["dice"]) for row in rows] == [row["label"] == "no_tumor" for row in rows]
    assert [bool(row["box_iou"]) for row in rows] == [row["label"] != "no_tumor" for row in rows]


def test_outlines_fit_thresholds_where_a_set_has_both(phantom_set, tmp_path):
    """Boxes teach; the operating point and the Dice are those of the outlined slices."""
    data = with_boxes(phantom_set, tmp_path, lambda row: row["label"] != "glioma")
    parts = load_partition(segmenter_config(data))
    outlined = parts.validation.subset(outlined_slices(parts.validation))
    assert {s.label for s in outlined.samples} == {"glioma", "no_tumor"}
    figures = segmentation_metrics(parts.validation, parts.validation.masks)
    assert (figures["n"], figures["n_tumor"], figures["dice_tumor"]) == (4, 2, 1)
    assert (figures["boxes"]["n"], figures["boxes"]["iou"]) == (4, 1)
    batch = next(iter(loaders(segmenter_config(data), parts)[0]))
    assert {0, LESION, UNKNOWN} == set(batch["mask"].unique().tolist())


def test_each_row_of_a_mixed_set_teaches_what_it_knows(phantom_set, tmp_path):
    """Tumors without a mask teach the classifier; masks without a label both, as tumors of unknown type."""
    rows = read_rows(phantom_set / "index.csv")
    for row in rows:
        if row["label"] == "glioma":
            row["label"] = ""
        elif row["label"] == "pituitary":
            row |= {"label": "tumor", "mask": ""}
    data = f"{write_rows(tmp_path / 'mixed.csv', rows, 'image,mask,label,patient,fold')}@{phantom_set}"
    loaded = load_samples(data)
    assert [s.label for s in loaded] == [row["label"] or "tumor" for row in rows]
    drawn = load_partition(segmenter_config(data), has_truth)
    assert {s.label for s in drawn.train.samples} == {"tumor", "meningioma", "no_tumor"}
    assert drawn.left_out == 10
    unlabeled = [i for i, sample in enumerate(drawn.train.samples) if sample.label == "tumor"]
    assert drawn.train.masks[unlabeled].any(axis=(1, 2)).all()
    named = load_partition(classifier_config(data), has_label)
    assert {s.label for s in named.train.samples} == {"tumor", "meningioma", "no_tumor"}
    assert named.left_out == 0


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


def test_a_set_of_boxes_without_healthy_slices_trains(phantom_set, tmp_path):
    index, _, folder = with_boxes(phantom_set, tmp_path).partition("@")
    rows = [row for row in read_rows(Path(index)) if row["label"] != "no_tumor"]
    data = f"{write_rows(tmp_path / 'sick.csv', rows, 'image,mask,label,patient,fold')}@{folder}"
    card = train(segmenter_config(data, epochs=1, duplicates="drop"), tmp_path / "run")
    figures = card["metrics"]["validation"]
    assert figures["dice_tumor"] is figures["dice_all"] is None
    assert (figures["n"], figures["boxes"]["n"] > 0) == (0, True)
