"""Both stages learn, resume exactly, and leave a run folder that others can read."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file

from tumorlens.classification import train as classification
from tumorlens.classification.predict import Classifier
from tumorlens.classification.trust.evidence import write_predictions
from tumorlens.data.errors import InputError
from tumorlens.data.training.run_folder import changed_setting, check_run, write_config
from tumorlens.data.training.trainer import fit, make_trainer
from tumorlens.pipeline.cli.app import app
from tumorlens.segmentation import train as segmentation
from tumorlens.segmentation.evaluation.metrics import write_scores
from tumorlens.segmentation.predict import Segmenter

QUICK = {"size": 64, "epochs": 2, "batch_size": 8, "init": "none", "device": "cpu", "precision": "fp32"}


@pytest.fixture(params=["classification", "segmentation"])
def stage(request, phantom_set):
    if request.param == "classification":
        config = classification.ClassifierConfig(data=(str(phantom_set),), **QUICK)
        return classification, config, classification.train_classifier
    config = segmentation.SegmenterConfig(data=(str(phantom_set),), encoder="resnet18", **QUICK)
    return segmentation, config, segmentation.train_segmenter


def quiet(*_, **__):
    pass


def test_training_steps_lower_the_loss(stage, phantom_set):
    module_of, config, _ = stage
    L.seed_everything(0, verbose=False)
    parts = module_of.load_partition(config)
    module = module_of.build_module(replace(config, learning_rate=1e-3, warmup=0.3), parts)
    batch = {
        "image": torch.from_numpy(parts.train.images[:8]),
        "mask": torch.from_numpy(parts.train.masks[:8]),
        "label": torch.from_numpy(parts.train.labels[:8]),
        "blank": torch.zeros(8, dtype=torch.bool),
        "source": torch.zeros(8, dtype=torch.int64),
    }
    module.log = quiet
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module.train()
    losses = []
    for _ in range(6):
        loss = module.training_step(batch, 0)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_an_encoder_learns_to_name_the_tumor_beside_drawing_it(phantom_set):
    config = segmentation.SegmenterConfig(data=(str(phantom_set),), encoder="resnet18", label_weight=1.0, **QUICK)
    L.seed_everything(0, verbose=False)
    module = segmentation.build_module(config, segmentation.load_partition(config))
    module.log = quiet
    images = torch.randn(4, 3, 64, 64)
    module.eval()
    drawn, named = module._draw_and_name(images, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(drawn, module.model(images))  # the mask's way through the network is the usual one
    assert named.shape == (4, 4)
    batch = {"image": torch.zeros(4, 64, 64, dtype=torch.uint8), "mask": torch.zeros(4, 64, 64, dtype=torch.uint8)}
    batch["source"] = torch.zeros(4, dtype=torch.int64)
    module.train()
    for labels, teaches in (([0, 1, 2, -1], True), ([-1, -1, -1, -1], False)):
        module.zero_grad()
        module.training_step(batch | {"label": torch.tensor(labels)}, 0).backward()
        assert (module.label_head[-1].weight.grad is not None) == teaches
    taught = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert taught == {id(p) for p in module.parameters()}  # the layer itself learns, and its gradients are cleared


def test_each_set_teaches_its_own_outlines(phantom_set, tmp_path):
    """Slices of the second set leave the first one's layer alone; what is kept is the mean of both."""
    twice = (str(phantom_set), str(phantom_set))
    config = segmentation.SegmenterConfig(data=twice, encoder="resnet18", own_outlines=True, duplicates="drop", **QUICK)
    L.seed_everything(0, verbose=False)
    parts = segmentation.load_partition(config)
    assert {sample.source for sample in parts.train.samples} == {0, 1}
    module = segmentation.build_module(config, parts)
    module.log = quiet
    batch = {
        "image": torch.randint(0, 255, (4, 64, 64), dtype=torch.uint8),
        "mask": torch.ones(4, 64, 64, dtype=torch.uint8),
        "label": torch.ones(4, dtype=torch.int64),
        "source": torch.ones(4, dtype=torch.int64),
    }
    module.training_step(batch, 0).backward()
    moved = module.own.layer.weight.grad.abs().sum((1, 2, 3))
    assert moved[0] == 0 and moved[1] > 0
    with torch.no_grad():
        module.own.layer.weight.add_(torch.randn_like(module.own.layer.weight))
        module.own.layer.bias.add_(torch.tensor([1.0, 3.0]))
    module.on_train_epoch_end()
    module.eval()
    images = torch.randn(2, 3, 64, 64)
    own = [module._draw_and_name(images, torch.full((2,), number))[0] for number in (0, 1)]
    torch.testing.assert_close(module.model(images), (own[0] + own[1]) / 2)  # both sets have as many lesions
    taught = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert {id(p) for p in module.own.parameters()} <= taught


def test_a_plain_u_net_has_no_last_layer_to_multiply(tmp_path, phantom_set):
    arguments = ["--data", str(phantom_set), "--out", str(tmp_path / "run"), "--init", "none", "--arch", "plain-unet"]
    done = CliRunner().invoke(app, ["train", "segmentation", *arguments, "--own-outlines", "--size", "64"])
    assert done.exit_code == 2
    assert "--own-outlines needs a segmenter of segmentation-models-pytorch" in done.stderr
    assert not (tmp_path / "run").exists()


def test_large_gradients_are_clipped(stage):
    module_of, config, _ = stage
    module = module_of.build_module(config, module_of.load_partition(config))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"], 1.0, None)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in module.parameters()]))
    assert float(norm) == pytest.approx(1.0, rel=1e-3)


class Stop(L.Callback):
    """Ends a run in its second epoch, as a power cut or a user would."""

    def __init__(self, reason):
        self.reason = reason

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1:
            raise self.reason


def stopped_by(reason, make_trainer):
    def make(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.callbacks.append(Stop(reason))
        return trainer

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_continues_exactly(stage, tmp_path, monkeypatch, workers):
    module_of, config, train = stage
    config = replace(config, workers=workers, epoch_slices=16)
    whole = train(config, tmp_path / "whole", progress=False, say=quiet)

    real = module_of.make_trainer
    monkeypatch.setattr(module_of, "make_trainer", stopped_by(RuntimeError("power cut"), real))
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path / "cut", progress=False, say=quiet)
    monkeypatch.setattr(module_of, "make_trainer", real)
    resumed = train(config, tmp_path / "cut", resume=True, progress=False, say=quiet)

    last = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "cut")]
    for name, tensor in last[0]["state_dict"].items():
        torch.testing.assert_close(tensor, last[1]["state_dict"][name], rtol=0, atol=0)
    assert resumed["metrics"] == whole["metrics"]
    with (tmp_path / "cut" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_a_resumed_run_draws_the_dropout_it_would_have_drawn(phantom_set, tmp_path, monkeypatch):
    config = classification.ClassifierConfig(data=(str(phantom_set),), arch="alexnet", epoch_slices=16, **QUICK)
    classification.train_classifier(config, tmp_path / "whole", progress=False, say=quiet)
    real = classification.make_trainer
    monkeypatch.setattr(classification, "make_trainer", stopped_by(RuntimeError("power cut"), real))
    with pytest.raises(RuntimeError, match="power cut"):
        classification.train_classifier(config, tmp_path / "cut", progress=False, say=quiet)
    monkeypatch.setattr(classification, "make_trainer", real)
    classification.train_classifier(config, tmp_path / "cut", resume=True, progress=False, say=quiet)
    whole, cut = (load_file(tmp_path / name / "classifier.safetensors") for name in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole)


def test_a_run_that_was_moved_keeps_its_best_epoch(phantom_set, tmp_path):
    config = classification.ClassifierConfig(data=(str(phantom_set),), arch="resnet18", **QUICK)
    classification.train_classifier(config, tmp_path / "here", progress=False, say=quiet)
    (tmp_path / "here").rename(tmp_path / "there")
    kept = torch.load(tmp_path / "there" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (known,) = [state for name, state in kept.items() if name.startswith("_Best")]
    best = make_trainer(tmp_path / "there", config, "val_macro_f1", progress=False).checkpoint_callback
    best.load_state_dict(known)
    assert best.best_model_score == known["best_model_score"]
    assert best.best_model_path == str((tmp_path / "there" / "checkpoints" / "best.ckpt").resolve())
    assert list(best.best_k_models) == [best.best_model_path]


def test_a_class_that_training_lacks_weighs_no_more_than_another(phantom_set):
    config = classification.ClassifierConfig(data=(str(phantom_set),), arch="resnet18", **QUICK)
    parts = classification.load_partition(config)
    few = replace(parts, train=parts.train.subset(np.flatnonzero(parts.train.labels < 2)))
    weights = classification.build_module(config, few).loss.weight
    assert weights[2] == weights[3] <= weights[:2].min()


def test_a_file_name_that_is_no_utf8_costs_no_run(phantom_set, tmp_path):
    config = segmentation.SegmenterConfig(data=(str(phantom_set),), encoder="resnet18", **QUICK)
    part = segmentation.load_partition(config).test
    odd = replace(part.samples[0], image=Path("M\udcfcller.png"), patient="M\udcfcller")
    part = replace(part, samples=[odd, *part.samples[1:]])
    write_scores(tmp_path / "test.csv", part, part.masks)
    write_predictions(tmp_path / "predictions.csv", part, np.full((len(part), 4), 0.25, np.float32))
    for name in ("test.csv", "predictions.csv"):
        with (tmp_path / name).open(encoding="utf-8") as file:
            assert next(csv.DictReader(file))["image"] == "M\\udcfcller.png"


def test_a_run_that_validates_once_can_be_stopped_before_and_ends_with_its_last_epoch(
    phantom_set, tmp_path, monkeypatch
):
    config = classification.ClassifierConfig(data=(str(phantom_set),), arch="resnet18", **QUICK, validate_every=2)
    real = classification.make_trainer
    monkeypatch.setattr(classification, "make_trainer", stopped_by(RuntimeError("power cut"), real))
    with pytest.raises(RuntimeError, match="power cut"):
        classification.train_classifier(config, tmp_path, progress=False, say=quiet)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    monkeypatch.setattr(classification, "make_trainer", real)
    card = classification.train_classifier(config, tmp_path, resume=True, progress=False, say=quiet)
    assert card["best_epoch"] == 1
    assert card["metrics"]["validation"]["slice"]["accuracy"] is not None  # measured, and not twice
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], bool(row["train_loss"])) for row in rows] == [("0", True), ("1", True)]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_stopped_run_says_how_to_go_on(phantom_set, tmp_path, monkeypatch):
    stopped = stopped_by(KeyboardInterrupt(), classification.make_trainer)
    monkeypatch.setattr(classification, "make_trainer", stopped)
    handler = signal.getsignal(signal.SIGINT)
    arguments = ["--data", phantom_set, "--out", tmp_path / "run", "--init", "none", "--epochs", 2, "--size", 64]
    done = CliRunner().invoke(app, ["train", "classification", *(str(a) for a in arguments)])
    signal.signal(signal.SIGINT, handler)  # Lightning turns it off on its way out
    assert done.exit_code == 130
    assert done.stderr.strip().endswith("tumorlens: stopped; go on with --resume")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_resumed_run_may_change_the_device_but_not_the_recipe(tmp_path):
    config = classification.ClassifierConfig(data=("x",), epochs=3)
    write_config(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert check_run(tmp_path, replace(config, device="cpu", workers=4), resume=True).name == "last.ckpt"
    with pytest.raises(InputError, match="the run began with epochs = 3, not 9"):
        check_run(tmp_path, replace(config, epochs=9), resume=True)


def test_a_set_without_masks_trains_no_segmenter(phantom_set, tmp_path):
    lines = [line.split(",") for line in (phantom_set / "index.csv").read_text().splitlines()]
    (tmp_path / "index.csv").write_text("\n".join(",".join([c[0], *c[2:]]) for c in lines))
    config = segmentation.SegmenterConfig(
        data=(f"{tmp_path / 'index.csv'}@{phantom_set}",), init="none", size=32, duplicates="drop"
    )
    said = []
    with pytest.raises(InputError, match="no training slice has a tumor mask"):
        segmentation.train_segmenter(config, tmp_path / "run", progress=False, say=said.append)
    assert "left out 30 slices without a label or mask" in said[-1]


def test_a_class_that_is_not_there_is_told(phantom_set, tmp_path):
    rows = [r for r in (phantom_set / "index.csv").read_text().splitlines() if "no_tumor" not in r]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    said = []
    data = (f"{tmp_path / 'index.csv'}@{phantom_set}",)
    config = classification.ClassifierConfig(data=data, init="none", size=32, epochs=1, duplicates="drop")
    card = classification.train_classifier(config, tmp_path / "run", progress=False, say=said.append)
    assert any("no training slice shows no_tumor" in line for line in said)
    assert card["classes_in_training"] == ["glioma", "meningioma", "pituitary"]


def test_the_run_folder_is_complete_and_its_weights_load(stage, tmp_path):
    module_of, config, train = stage
    config = replace(config, epochs=1)
    card = train(config, tmp_path / "run", progress=False, say=quiet, command="tumorlens train ...")
    name = "classifier" if module_of is classification else "segmenter"
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "curves.png", f"{name}.safetensors", f"{name}.json"} <= files
    picture = "confusion_test.png" if module_of is classification else "dice_test.png"
    assert picture in files
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "last.ckpt"
    }  # one epoch: nothing to choose
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 1
    assert json.loads((tmp_path / "run" / f"{name}.json").read_text()) == card
    assert card["n_slices"] == {"train": 24, "validation": 8, "test": 8}
    loader = Classifier if module_of is classification else Segmenter
    model = loader.load(tmp_path / "run" / f"{name}.safetensors", "cpu")
    assert len(model.predict(np.zeros((2, 64, 64), np.uint8))) == 2


def test_what_a_run_was_before_there_was_a_setting():
    kept = {"seed": 0, "epochs": 3, "workers": 2}
    assert changed_setting(kept, kept | {"transplant": 0.0, "turn": 0.0, "workers": 5}) == ""
    assert changed_setting(kept, kept | {"transplant": 0.15}) == "transplant = 0.0, not 0.15"
    assert changed_setting(kept, kept | {"seed": 4}, free=("seed",)) == ""


def test_a_run_that_stopped_early_is_over(tmp_path):
    """Resumed, it must not train on, or it might choose another epoch than it did."""
    state = {"epoch": 3, "callbacks": {"EarlyStopping{'monitor': 'val_dice'}": {"stopped_epoch": 3}}}
    torch.save(state, tmp_path / "last.ckpt")
    fit(None, None, None, None, tmp_path / "last.ckpt")


def test_a_run_is_not_overwritten(stage, tmp_path):
    _, config, train = stage
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="use --resume"):
        train(config, tmp_path, progress=False, say=quiet)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"epochs": 99}))
    with pytest.raises(InputError, match="began with epochs = 99, not 2"):
        train(config, tmp_path, resume=True, progress=False, say=quiet)
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "new", resume=True, progress=False, say=quiet)


def test_bf16_only_where_the_processor_has_it(monkeypatch):
    from tumorlens.data import devices as compute

    for answer in ({}, {"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(compute, "cpu_capabilities", lambda answer=answer: answer)
        assert compute.has_bf16(torch.device("cpu")) == bool(answer)


@pytest.mark.parametrize("wish", ["gpu", "cuda:99", "mps:1", "cpu:0x", "cpu:", "cuda:"])
def test_devices_that_are_not_there(wish):
    from tumorlens.data.devices import pick_device

    with pytest.raises(InputError, match="device"):
        pick_device(wish)


def test_a_plain_u_net_has_no_encoder_that_could_name_tumors(tmp_path):
    arguments = ["--data", "/nowhere", "--out", str(tmp_path / "run"), "--init", "none", "--arch", "plain-unet"]
    done = CliRunner().invoke(app, ["train", "segmentation", *arguments, "--label-weight", "0.3"])
    assert done.exit_code == 2
    assert "--label-weight needs a segmenter with an encoder" in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["--precision", "fp8"], "precision 'fp8' is none of auto, bf16, fp32"),
        (["--frozen", "--arch", "cnn"], "--frozen keeps the first weights of cnn; give it some with --init FILE"),
        (["--arch", "cnn", "--small-epochs", "1", "--small-size", "96"], "cnn does not take inputs of 96 pixels"),
        (["--arch", "mlp", "--freeze-stem", "--init", "imagenet"], "--freeze-stem is for ResNets"),
        (["--out-of-fold", "/nowhere/cv"], "/nowhere/cv: no folds of a cross-validation there"),
        (["--epochs", "5", "--validate-every", "2"], "--epochs 5 is no multiple of --validate-every 2"),
        (["--freeze-stem"], "--freeze-stem keeps the first weights of the stem; give it some with --init FILE"),
        (["--split", "official", "--out-of-fold", "cv"], "--split official cannot be"),
        (["--split", "all"], "needs a cross-validation (--out-of-fold)"),
        (["--out", "/proc/nowhere/run"], "/proc/nowhere/run: --out cannot be written"),
    ],
)
def test_what_cannot_work_is_told_before_the_data_are_read(options, reason, tmp_path):
    arguments = ["--data", "/nowhere", "--out", str(tmp_path / "run"), "--init", "none", *options]
    done = CliRunner().invoke(app, ["train", "classification", *arguments])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert not (tmp_path / "run").exists()
