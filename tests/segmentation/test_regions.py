"""A segmenter with regions, from the command line to the card: masks with labels in, a channel and a Dice for each."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data.training.runs import SEGMENTER_CARD, segmenter_config, train
from tests.scans.phantoms import read_rows
from tests.scans.pictures import save
from tests.scans.regions import BRATS, brats_set, brats_volume
from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import has_truth, read_sample
from tumorlens.data.datasets.sweep import sweep
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import Regions
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.loaders import SliceDataset
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.prepared import prepare, prepare_once
from tumorlens.segmentation.config import LOSSES
from tumorlens.segmentation.evaluation.metrics import dice_scores, segmentation_metrics
from tumorlens.segmentation.model import initialize_segmenter
from tumorlens.segmentation.module import SegmenterModule, new_segmenter
from tumorlens.segmentation.operating_point import read_evidence
from tumorlens.segmentation.predict import Segmenter

REGIONS = Regions.parse(BRATS)
FEW = {"epochs": 1, "epoch_slices": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return brats_set(tmp_path_factory.mktemp("regions") / "set", 15)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A trained run, its card, and what it said."""
    folder, lines = tmp_path_factory.mktemp("run"), []
    recipe = {"epochs": 12, "learning_rate": 4e-3, "augment": 0.3, "turn": 0.0, "patience": 12}
    card = train(segmenter_config(data, region=BRATS, **recipe), folder, plots=True, say=lines.append, progress=True)
    return folder, card, lines


@pytest.fixture(scope="module")
def prepared(data):
    return prepare(load_samples(data, regions=REGIONS), Preprocess(64))


def nested(bits):
    """Whether every pixel has the bits of one of the values, as regions that lie in each other have."""
    return set(np.unique(bits)) <= {0, 1, 3, 7}


def test_each_region_is_learned(run, data):
    folder, card, _ = run
    for part in ("validation", "test"):
        dice = {name: figures["dice"] for name, figures in card["metrics"][part]["by_region"].items()}
        assert list(dice) == ["whole", "core", "enhancing"]
        assert min(dice.values()) > 0.6, dice
    parts = load_partition(segmenter_config(data), has_truth, regions=REGIONS)
    segmenter = Segmenter.load(folder / "segmenter.safetensors", "cpu")
    finished = np.moveaxis(segmenter.finish_regions(segmenter.look(parts.test.images)), 1, 0)
    bits = REGIONS.pack(finished >= round(255 * segmenter.mask_threshold))
    again = segmentation_metrics(parts.test, bits)["by_region"]
    for name, figures in card["metrics"]["test"]["by_region"].items():
        assert again[name]["n"] == figures["n"]
        assert again[name]["dice"] == pytest.approx(figures["dice"], abs=0.02)  # 16-bit weights


def test_the_card_and_the_tables_name_the_regions(run):
    folder, card, _ = run
    assert checked_card(folder / "segmenter.safetensors", "segmentation") == json.loads(
        (folder / "segmenter.json").read_text()
    )
    assert Regions.from_card(card) == REGIONS
    assert card["training"]["region"] == list(BRATS)
    point = card["operating_point"]
    assert list(point["by_region"]) == ["whole", "core", "enhancing"]
    assert point["by_region"]["whole"] == {k: point[k] for k in ("mask_threshold", "min_lesion_px")}
    assert {row["region"] for row in read_rows(folder / "operating_points.csv")} == set(REGIONS.names)
    for part in ("validation", "test"):
        rows = read_rows(folder / f"{part}.csv")
        assert all(row["truth_px"] == row["truth_px_whole"] for row in rows)  # a lesion is what lies in a region
        assert all(int(row["truth_px_core"]) <= int(row["truth_px"]) for row in rows)
        for name, figures in card["metrics"][part]["by_region"].items():
            own = [float(row[f"dice_{name}"]) for row in rows if int(row[f"truth_px_{name}"])]
            assert len(own) == figures["n"] and np.mean(own) == pytest.approx(figures["dice"], abs=1e-4)
        assert (folder / f"dice_{part}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"regions": {"name": "core"}}, "regions {'name': 'core'} is not a list of regions with a name and values"),
        ({"regions": [{"name": "core", "values": ["1"]}]}, "is not a list of regions with a name and values"),
        ({"regions": [{"name": "core", "values": [1]}]}, "the regions on the card are not those that tumorlens writes"),
        ({"outlines": ["extent"]}, "the card has regions and outlines"),
        ({"operating_point": {"by_region": {"core": {"mask_threshold": 2}}}}, "by_region.core.mask_threshold 2 is not"),
    ],
)
def test_a_card_whose_regions_cannot_be(run, changed, message, tmp_path):
    card = json.loads((run[0] / "segmenter.json").read_text())
    card |= changed | {"operating_point": card["operating_point"] | changed.get("operating_point", {})}
    (tmp_path / "s.json").write_text(json.dumps(card))
    (tmp_path / "s.safetensors").write_bytes((run[0] / "segmenter.safetensors").read_bytes())
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Segmenter.load(tmp_path / "s.safetensors", "cpu")
    assert str(tmp_path) in str(caught.value)


def test_an_epoch_is_a_line_and_a_region_a_column(run):
    folder, card, lines = run
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 12 and all("dice " in line and "\n" not in line for line in epochs)
    assert lines[-1].startswith("test fold 0: tumor-slice Dice 0.") and "; core 0." in lines[-1]
    for row in read_rows(folder / "metrics.csv"):
        each = [float(row[f"val_dice_{name}"]) for name in REGIONS.names]
        assert float(row["val_dice_tumor"]) == pytest.approx(np.mean(each), abs=1e-5)
    best = max(read_rows(folder / "metrics.csv"), key=lambda row: float(row["val_dice"]))
    assert int(best["epoch"]) == card["best_epoch"]


def test_a_run_goes_on_and_starts_another(run, data, tmp_path):
    """Channels come by their names; those that the weights lack start as the first, and one serves all."""
    folder = run[0]
    weights = load_file(folder / "segmenter.safetensors")["segmentation_head.0.weight"].float()

    def start(regions, path):
        model = new_segmenter(segmenter_config(data, region=regions))
        text = initialize_segmenter(model, "tu-test_resnet", str(path), Regions.parse(regions).names)
        return text, model.state_dict()["segmentation_head.0.weight"]

    text, rows = start(("edema=2", "enhancing=4", "whole=9"), folder / "segmenter.safetensors")
    assert "from chance" not in text and text.endswith("; of its regions, whole for edema")
    torch.testing.assert_close(rows, weights[[0, 2, 0]])
    one = new_segmenter(segmenter_config(data))
    save_weights(one.state_dict(), tmp_path / "one.safetensors", SEGMENTER_CARD)
    own = one.state_dict()["segmentation_head.0.weight"]
    torch.testing.assert_close(start(BRATS, tmp_path / "one.safetensors")[1], own.half().float().expand(3, -1, -1, -1))

    settings = {"init": str(folder / "segmenter.safetensors"), "label_weight": 0.1, "negative_share": 0.3}
    config = segmenter_config(data, region=BRATS, start_share=0.5, **settings, **FEW)
    card = train(config, tmp_path / "next")
    assert card["metrics"]["test"]["by_region"]["whole"]["dice"] > 0.5  # it begins where the other ended
    longer = segmenter_config(data, region=BRATS, start_share=0.5, **settings, **FEW | {"epochs": 2})
    assert train(longer, tmp_path / "next", resume=True)["training"]["lengthened"] == [1]
    with pytest.raises(InputError, match=r"the run began with region = .*whole=1,2,4.*; resume with the same settings"):
        train(replace(longer, region=BRATS[:2]), tmp_path / "next", resume=True)


def test_thresholds_of_a_run_on_all_patients_are_those_of_the_held_out(data, tmp_path):
    recipe = {"region": BRATS, **FEW}
    held_out = train(segmenter_config(data, split="holdout", **recipe), tmp_path / "held")
    config = segmenter_config(data, split="all", out_of_fold=str(tmp_path / "held"), **recipe)
    card = train(config, tmp_path / "all")
    assert card["operating_point"] == held_out["operating_point"]
    whole = card["metrics"]["held_out"]["by_region"]["whole"]["dice"]["mean"]
    assert whole == pytest.approx(held_out["metrics"]["validation"]["by_region"]["whole"]["dice"], abs=1e-4)
    other = segmenter_config(data, split="all", out_of_fold=str(tmp_path / "held"), **recipe | {"region": BRATS[:2]})
    with pytest.raises(InputError, match="the fold was trained with region = "):
        read_evidence(tmp_path / "held", {"region": list(other.region)})


def test_values_of_no_region_are_said_once_and_an_unseen_region_is_an_error(data, tmp_path):
    lines = []
    train(segmenter_config(data, region=("core=1,4",), **FEW), tmp_path / "run", say=lines.append)
    said = [line for line in lines if "no region" in line]
    assert said == ["values of the masks that are of no region, and count as no lesion: 2 (in 15 masks)"]
    message = r"no training mask shows the region cyst=7,9; the masks have the values 1 \(in 15 masks\), 2 \(in"
    with pytest.raises(InputError, match=message):
        train(segmenter_config(data, region=(*BRATS, "cyst=7,9"), **FEW), tmp_path / "cyst")
    assert not (tmp_path / "cyst" / "checkpoints").exists()


def test_slices_are_sorted_by_what_lies_in_a_region(data):
    whole, core = load_samples(data, regions=REGIONS), load_samples(data, regions=Regions.parse(["core=1,4"]))
    assert len([s for s in core if s.mask]) < len([s for s in whole if s.mask])
    assert {s.label for s in core} == {"tumor", "no_tumor"}
    assert load_samples(data) == [replace(sample, regions=Regions()) for sample in whole]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--region", "core"], "--region core: give it as NAME=VALUES, such as core=1,4"),
        (["--region", "core=1", "--outline", "extent"], "--region and --outline do not go together"),
        (["--region", "tumor=1"], "--region tumor: this name stands for lesions as a whole"),
        (["--region", "core=4", "--region", "whole=1,4"], "the regions after core have all of its values"),
    ],
)
def test_a_wrong_region_is_a_sentence(words, message, data, tmp_path, command):
    done = command("train", "segmentation", "--data", data, "-o", tmp_path / "run", "--init", "none", *words)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_boxes_cannot_teach_regions(tmp_path, command):
    head = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    save(tmp_path / "set" / "images" / "a.png", head)
    (tmp_path / "set" / "labels").mkdir()
    (tmp_path / "set" / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    words = ["--data", tmp_path / "set", "-o", tmp_path / "run", "--init", "none", "--region", "core=1"]
    done = command("train", "segmentation", *words)
    assert done.exit_code == 2 and "cannot hold regions; give masks of whole numbers" in done.stderr


def test_no_values_are_mixed_on_the_way_to_the_network(data, prepared):
    assert prepared.masks.any() and nested(prepared.masks)
    whole = prepare(load_samples(data), Preprocess(64))
    np.testing.assert_array_equal(prepared.masks != 0, whole.masks)
    np.testing.assert_array_equal(prepared.planes[0], whole.masks)
    assert prepared.found == {"1": 15, "2": 15, "4": 15} and whole.found == {}


def test_a_walk_over_a_set_reads_what_training_reads(data, prepared):
    walked = list(sweep(load_samples(data, regions=REGIONS), Preprocess(64)))
    for one in walked:
        expected = prepared.masks[one.index]
        assert not expected.any() if one.mask is None else np.array_equal(one.mask, expected)
    assert sum(one.mask is not None for one in walked) == prepared.masks.any(axis=(1, 2)).sum()


def test_a_mask_that_changes_is_read_again(tmp_path):
    data = brats_set(tmp_path, 1, seed=40)
    samples = [s for s in load_samples(data, regions=REGIONS) if s.mask]
    before = [read_sample(s).mask.copy() for s in samples]
    labels = brats_volume(40)[1]
    nib.save(nib.Nifti1Image((labels > 0) * np.uint8(2), brats_volume(40)[2]), samples[0].mask)
    os.utime(samples[0].mask, (1, 1))
    for sample, old in zip(samples, before, strict=True):
        np.testing.assert_array_equal(read_sample(sample).mask, old > 0)


def test_stored_sets_keep_the_regions(data, prepared, tmp_path):
    samples = load_samples(data, regions=REGIONS)
    reads = []
    first = prepare_once(samples, Preprocess(64), tmp_path, reads.append)
    again = prepare_once(samples, Preprocess(64), tmp_path, reads.append)
    assert len(reads) == len(samples)
    for one in (first, again):
        np.testing.assert_array_equal(one.masks, prepared.masks)
        assert one.found == prepared.found and one.regions == REGIONS
    other = prepare_once(load_samples(data, regions=Regions.parse(BRATS[:1])), Preprocess(64), tmp_path)
    assert set(np.unique(other.masks)) == {0, 1}
    whole = prepare_once(load_samples(data), Preprocess(64), tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 3 and set(np.unique(whole.masks)) == {0, 1}


def test_augmentation_moves_whole_pixels_of_the_mask(prepared):
    i = int(np.argmax(prepared.masks.reshape(len(prepared), -1).max(axis=1)))
    seen = set()
    for seed in range(40):
        _, mask = Augment(1.0, 0.5)(prepared.images[i], prepared.masks[i], seed)
        assert nested(mask)
        seen |= set(np.unique(mask))
    assert seen == {0, 1, 3, 7}


def test_a_transplant_takes_all_regions_along(prepared):
    dataset = SliceDataset(prepared, transplant=1.0, seed=3)
    rows = {mask.tobytes() for mask in prepared.masks}
    moved = 0
    for i in range(len(prepared)):
        mask = dataset[0, i]["mask"].numpy()
        assert mask.tobytes() in rows  # that of a slice, with all its values, or empty
        moved += not np.array_equal(mask, prepared.masks[i])
    assert moved > len(prepared) / 5
    # A lesion is counted in pixels, not in values: one of 20 pixels is too small, whatever its regions.
    small = np.zeros_like(prepared.masks)
    small[:, 10:14, 10:15] = 7
    tiny = SliceDataset(type(prepared)(prepared.samples, prepared.images, small, prepared.labels), transplant=1.0)
    assert not tiny._donors.sick.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_region_is_the_loss_of_before_and_several_their_mean(loss):
    batch = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 3, 32, 32, generator=batch)
    bits = torch.from_numpy(REGIONS.bits(np.random.default_rng(2).integers(0, 5, (4, 1, 32, 32))))
    bits[3] = 0
    channel = torch.zeros(4, dtype=torch.int64)

    def module(**settings):
        config = segmenter_config("a", loss=loss, **settings)
        return SegmenterModule(config, new_segmenter(config), 2)

    before = module()
    each = [before.loss_of(logits[:, k : k + 1], (bits >> k) & 1, channel) for k in range(3)]
    assert torch.equal(module(region=BRATS[:1]).loss_of(logits[:, :1], bits & 1, channel), each[0])
    torch.testing.assert_close(module(region=BRATS).loss_of(logits, bits, channel), torch.stack(each).mean())


def test_every_slice_teaches_every_region():
    config = segmenter_config("a", region=BRATS)
    module = SegmenterModule(config, new_segmenter(config), 2)
    for value in (0, 2, 4):
        logits = torch.zeros(1, 3, 32, 32, requires_grad=True)
        bits = torch.from_numpy(REGIONS.bits(np.full((1, 1, 32, 32), value)))
        module.loss_of(logits, bits, torch.zeros(1, dtype=torch.int64)).backward()
        signs = torch.sign(-logits.grad).mean(dim=(0, 2, 3)).tolist()  # where the logits go
        assert signs == [1.0 if int(bits[0, 0, 0, 0]) >> k & 1 else -1.0 for k in range(3)]


def test_pictures_with_labels_are_read(tmp_path):
    image = np.random.default_rng(0).integers(30, 255, (64, 64)).astype(np.uint8)
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40, 20:40], labels[25:35, 25:35], labels[50:60, 50:60] = 2, 4, 3
    save(tmp_path / "images" / "a.png", image)
    save(tmp_path / "masks" / "a.png", labels)
    save(tmp_path / "images" / "b.png", image[::-1])
    save(tmp_path / "masks" / "b.png", (labels == 3) * np.uint8(3))
    samples = load_samples(tmp_path, regions=REGIONS)
    assert [s.label for s in samples] == ["tumor", "no_tumor"]
    bits = prepare(samples, Preprocess(64)).masks
    assert set(np.unique(bits[0])) == {0, 1, 7} and not bits[1].any()
    assert dice_scores(bits[:1], np.ones_like(bits[:1]))[0] < 1
