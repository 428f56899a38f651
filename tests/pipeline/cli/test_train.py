"""`tumorlens train` and `crossval`: which settings a training gets, and a short training."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.scans.pictures import save
from tumorlens.classification.config import ClassifierConfig
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.cli.train import _advice, config_of
from tumorlens.pipeline.evaluation import crossval as room
from tumorlens.segmentation.config import SegmenterConfig


@pytest.fixture
def requested(command, monkeypatch):
    """Calls `tumorlens crossval` and returns the request, and whether the folds are measured."""

    def call(*words):
        calls = []
        monkeypatch.setattr(room, "crossval", lambda request, out, measure, *_: calls.append((request, measure)))
        done = command("crossval", *words)
        assert (done.exit_code, done.output) == (0, ""), done.output
        return calls[0]

    return call


def test_without_options_a_training_has_the_stage_s_defaults(trained):
    assert trained("classification", "--data", "x", "-o", "out")[0] == ClassifierConfig(("x",))
    assert trained("segmentation", "--data", "x", "-o", "out")[0] == SegmenterConfig(("x",))


def test_options_of_a_training(trained, tmp_path):
    words = (
        "--data a --data b --map x=glioma --lr 0.001 --no-balance --not-brain n --frame-channel 2 --arch inception_v3"
    )
    config, out, resume, show, *_ = trained("classification", *words.split(), "--resume", "-q", "-o", tmp_path)
    assert config == ClassifierConfig(
        data=("a", "b"),
        label_map=(("x", "glioma"),),
        learning_rate=0.001,
        balance=False,
        not_brain=("n",),
        channel=2,
        arch="inception_v3",
        size=299,  # the architecture's own
    )
    assert (out, resume, show) == (tmp_path, True, False)
    assert trained("classification", *words.split(), "--size", 128, "-o", "out")[0].size == 128


@pytest.mark.parametrize(("words", "workers"), [((), None), (("--workers", "auto"), None), (("--workers", 3), 3)])
def test_the_number_of_workers_may_be_left_to_the_program(trained, words, workers):
    assert trained("classification", "--data", "x", "-o", "out", *words)[0].workers == workers


@pytest.mark.parametrize(("option", "word"), [("--epochs", "auto"), ("--workers", ""), ("--workers", "many")])
def test_a_number_may_be_auto_only_where_the_help_says_so(command, option, word):
    done = command("train", "classification", "--data", "x", "-o", "out", option, word)
    assert done.exit_code == 2
    assert f"{word!r} is not a whole number" in done.output


def test_the_help_says_that_the_number_of_workers_is_chosen(command):
    text = " ".join(command("train", "classification", "--help").stdout.split())
    assert "[default: auto; at least 0]" in text


def test_a_training_with_the_thresholds_of_a_cross_validation_takes_all_patients(trained):
    config = trained("segmentation", "--data", "x", "-o", "out", "--out-of-fold", "cv")[0]
    assert (config.split, config.out_of_fold) == ("all", "cv")


def test_a_cross_validation_of_one_stage(requested):
    request, measure = requested("segmentation", "--data", "x", "-o", "out", "--folds", "2,0", "--no-measure")
    assert (request.stage, request.data, request.folds, request.protocol, measure) == (
        *("segmentation", ("x",), (0, 2), None),
        False,
    )
    assert request.training == {"segmentation": SegmenterConfig(("x",))}
    words = "classification --data x -o out --seed 4 --frame-channel 1 --no-probe --explain --protocol p1"
    request, measure = requested(*words.split())
    assert (request.seed, request.channel, request.probe, request.explain, request.protocol, request.folds) == (
        *(4, 1, False, True, "p1"),
        (),
    )
    assert measure


def test_a_segmenter_beside_a_classifier(requested, tmp_path):
    """It has the classifier's settings, but for those that have an option of their own, and starts from it."""
    words = ("pipeline", "--data", "x", "-o", tmp_path, "--turn", 0.3, "--epochs", 6, "--lr", 0.001)
    request, _ = requested(*words)
    first, second = request.training["classification"], request.training["segmentation"]
    assert request.stage == "pipeline"
    assert first == ClassifierConfig(("x",), turn=0.3, epochs=6, learning_rate=0.001)
    own = {"encoder": "resnet50", "arch": "unet", "batch_size": 16, "size": 224}
    start = tmp_path / "classification" / "fold-{fold}" / "classifier.safetensors"
    assert second == SegmenterConfig(
        ("x",), turn=0.3, epochs=6, learning_rate=0.001, transplant=first.transplant, init=str(start), **own
    )
    words += (
        "--segmenter-epochs",
        9,
        "--segmenter-size",
        64,
        "--segmenter-batch-size",
        2,
        "--segmenter-arch",
        "unet++",
    )
    second = requested(*words)[0].training["segmentation"]
    assert {name: asdict(second)[name] for name in ("epochs", "size", "batch_size", "arch")} == {
        "epochs": 9,
        "size": 64,
        "batch_size": 2,
        "arch": "unet++",
    }


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--encoder", "resnet18"], "imagenet"),  # the classifier has another architecture
        (["--encoder", "resnet18", "--init", "none"], "none"),
        (["--encoder", "resnet18", "--init", "weights.safetensors"], "imagenet"),
        (["--segmenter-arch", "plain-unet"], "imagenet"),
        (["--segmenter-init", "mine.safetensors"], "mine.safetensors"),
    ],
)
def test_first_weights_of_a_segmenter_beside_a_classifier(requested, options, start):
    request, _ = requested("pipeline", "--data", "x", "-o", "out", *options)
    assert request.training["segmentation"].init == start


def test_train_from_the_command_line(command, phantom_set, tmp_path):
    run = tmp_path / "run"
    small = "--init none --size 64 --encoder tu-test_resnet --epochs 1 --batch-size 8 --device cpu -q"
    done = command("train", "segmentation", "--data", phantom_set, "--out", run, *small.split())
    assert done.exit_code == 0, done.output
    assert "training 24 slices of 12 patients" in done.stdout
    good = save(tmp_path / "good.png", phantom_slice(7, "meningioma").image)
    mine = run / "segmenter.safetensors"
    done = command("run", good, "-o", tmp_path / "out", "--segmenter", mine, "--device", "cpu")
    assert done.exit_code == 0, done.output


def test_options_make_the_settings_of_a_stage():
    both = {"data": ("a", "b"), "label_map": (("x", "glioma"),)}
    own = config_of("classification", {**both, "arch": "resnet50"})
    assert (own.data, own.label_map, own.not_brain) == (("a", "b"), (("x", "glioma"),), ())
    assert own.size == 224
    assert config_of("classification", {**both, "arch": "mlp", "size": 64, "not_brain": ("n",)}).not_brain == ("n",)
    assert config_of("segmentation", both).label_map == (("x", "glioma"),)
    with pytest.raises(InputError, match="--size 100 is not divisible by 32"):
        config_of("segmentation", {**both, "size": 100})


def test_the_size_follows_a_start_that_is_a_whole_network():
    for stage in ("classification", "segmentation"):
        for init, size in (("shipped", 192), ("none", 224)):
            assert config_of(stage, {"data": ("a",), "init": init}).size == size
        assert config_of(stage, {"data": ("a",), "init": "shipped", "size": 64}).size == 64
    start = str(SegmenterConfig.shipped)
    assert config_of("segmentation", {"data": ("a",), "init": start}).size == 192
    assert config_of("segmentation", {"data": ("a",), "init": start, "encoder": "resnet18"}).size == 224
    assert config_of("classification", {"data": ("a",), "init": start}).size == 224  # a segmenter's encoder only


def test_the_advice_after_a_stop_fits_what_is_there(tmp_path):
    values = {"out": tmp_path}
    assert _advice(values) == "no epoch was finished, so repeat the command"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert _advice(values) == "go on with --resume"
