"""`--config FILE` and `--resume` take over the settings of a file: every setting, checked like options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.data.training.runs import classifier_config, segmenter_config
from tumorlens.classification.config import ClassifierConfig
from tumorlens.data.training.run_folder import write_config
from tumorlens.pipeline.evaluation import crossval as room
from tumorlens.segmentation.config import SegmenterConfig


@pytest.fixture
def failing(command):
    """Calls the command and returns its error, one line."""

    def call(*words):
        done = command(*words)
        assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
        return done.stderr.strip().removeprefix("tumorlens: error: ")

    return call


CLASSIFIER = classifier_config(
    *("a", "b"),
    label_map=(("x", "glioma"),),
    rate=(1.0, 2.5),
    balance=False,
    channel=2,
    learning_rate=4e-05,
    layer_decay=0.75,
    weight_decay=0.1,
    optimizer="radam",
    loss="focal",
    not_brain=("n",),
    workers=3,
)
SEGMENTER = segmenter_config("a", outline=("extent",), loss="lovasz", best_by="dice_tumor", prepared="p")


REGIONS = segmenter_config("a", region=("whole=1,2,4", "core=1,4"))


@pytest.mark.parametrize(
    ("stage", "config"), [("classification", CLASSIFIER), ("segmentation", SEGMENTER), ("segmentation", REGIONS)]
)
@pytest.mark.parametrize("words", [("--config", "config.yaml"), ("--resume",)])
def test_the_file_of_a_run_holds_all_its_settings(stage, config, words, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, config)
    assert trained(stage, *words, "-o", tmp_path)[0] == config
    longer = trained(stage, *words, "-o", tmp_path, "--epochs", 7, "--data", "c", "--data", "d", "--layer-decay", 1)[0]
    assert longer == replace(config, epochs=7, data=("c", "d"), layer_decay=1.0)  # options win


def test_another_stage_takes_what_both_share(trained, tmp_path):
    config = replace(CLASSIFIER, turn=0.3, seed=5, freeze_until="layer2", init="shipped")
    write_config(tmp_path, config)
    taken = trained("segmentation", "--config", tmp_path / "config.yaml", "-o", "out")[0]
    shared = {"data", "label_map", "rate", "channel", "learning_rate", "layer_decay", "weight_decay", "optimizer"}
    shared |= {"turn", "seed", "freeze_until", "epochs", "device", "precision", "workers"}
    assert taken == SegmenterConfig(**{name: getattr(config, name) for name in shared})


def test_a_file_may_be_written_by_hand(trained, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: [a]\nlr: 1e-3\nmap: {tumeur: glioma}\nlabel-smoothing: 0\nno_such: null\nbalance: no\n")
    with pytest.raises(AssertionError, match="no_such is not a setting of classification; did you mean "):
        trained("classification", "--config", path, "-o", "out")[0]
    path.write_text(path.read_text().replace("no_such: null\n", ""))
    assert trained("classification", "--config", path, "-o", "out")[0] == ClassifierConfig(
        ("a",), learning_rate=1e-3, label_map=(("tumeur", "glioma"),), label_smoothing=0.0, balance=False
    )


def test_a_single_value_is_a_list_of_one(trained, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: my-set\nmap: a=glioma\nrate: 2\noutline: enhancing\n")
    assert trained("segmentation", "--config", path, "-o", "out")[0] == SegmenterConfig(
        ("my-set",), label_map=(("a", "glioma"),), rate=(2.0,), outline=("enhancing",)
    )


def test_a_file_may_list_the_values_of_regions(trained, tmp_path):
    (tmp_path / "run.yaml").write_text("data: a\nregion:\n  whole: [1, 2, 4]\n  enhancing: 4\n")
    config = trained("segmentation", "--config", tmp_path / "run.yaml", "-o", tmp_path / "run")[0]
    assert config.region == ("whole=1,2,4", "enhancing=4")


def test_an_option_turns_a_switch_of_the_file_off(trained, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: [a]\nfrozen: true\nfreeze_stem: true\nbalance: false\n")
    taken = trained("classification", "--config", path, "-o", "out", "--no-frozen", "--no-freeze-stem", "--balance")[0]
    assert taken == ClassifierConfig(("a",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: [1, 2]", "--epochs: ['1', '2'] is not a whole number (in {}); see "),
        ("turn: {a: 1}", "--turn: ['a=1'] is not a number (in {}); see "),
        ("epochs: true", "--epochs: True is not a whole number (in {}); see "),
        ("stage: [x]", "{}: stage ['x'] is not one of classification, segmentation"),
        ("epoch: 3", "{}: epoch is not a setting of classification; did you mean epochs?"),
        ("outlines: 3", "{}: outlines is not a setting of classification; did you mean "),
        ("epochs: 0", "--epochs: 0 is not allowed; give at least 1 (in {}); see "),
        ("epochs: 8.5", "--epochs: '8.5' is not a whole number (in {}); see "),
        (
            "scheduler: slow",
            "--scheduler: 'slow' is not one of 'onecycle', 'cosine', 'linear', 'step', 'constant' (in {}",
        ),
        ("just text", "{}: not a YAML file with a setting a line, such as epochs: 20"),
        ("a: [", "{}: not a YAML file with a setting a line, such as epochs: 20"),
        (None, "{}: cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(text, sentence, failing, tmp_path):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    error = failing("train", "classification", "--data", "x", "-o", tmp_path / "out", "--config", path)
    assert error.startswith(sentence.format(path)), error


def test_a_run_that_cannot_be_resumed_is_one_sentence(failing, tmp_path):
    error = failing("train", "classification", "-o", tmp_path, "--resume")
    assert error == f"{tmp_path}: nothing to resume, config.yaml is not there; leave --resume out"
    write_config(tmp_path, SEGMENTER)
    error = failing("train", "classification", "-o", tmp_path, "--resume")
    assert error.endswith("the run is of segmentation; resume it with `tumorlens train segmentation`")
    error = failing("train", "segmentation", "-o", tmp_path, "--resume", "--config", "x")
    assert error == "--resume takes the settings of the run in --out; leave --config out"
    assert failing("train", "segmentation", "--resume").startswith("--out is missing")


def test_a_cross_validation_takes_the_file_of_a_run(command, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(room, "crossval", lambda request, *_: calls.append(request))
    write_config(tmp_path, replace(SEGMENTER, fold=3, split="holdout"))
    done = command("crossval", "segmentation", "--config", tmp_path / "config.yaml", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert calls[0].training["segmentation"] == SEGMENTER


@pytest.mark.parametrize("stage", ["classification", "segmentation"])
def test_resume_alone_goes_on_and_lengthens(stage, command, phantom_set, tmp_path):
    run = tmp_path / "run"
    small = ["--init", "none", "--size", 64, "--epochs", 1, "--batch-size", 8, "--epoch-slices", 8, "--device", "cpu"]
    network = ["--arch", "mlp"] if stage == "classification" else ["--encoder", "tu-test_resnet"]
    done = command("train", stage, "--data", phantom_set, "-o", run, *small, *network)
    assert done.exit_code == 0, done.output
    done = command("train", stage, "-o", run, "--resume", "--epochs", 2)
    assert done.exit_code == 0, done.output
    assert "epoch 2 of 2: loss" in done.stdout and "epoch 1 of 2" not in done.stdout
    settings = yaml.safe_load(Path(run / "config.yaml").read_text())
    assert (settings["stage"], settings["epochs"], settings["lengthened"]) == (stage, 2, [1])
    again = tmp_path / "again"
    done = command("train", stage, "--config", run / "config.yaml", "-o", again, "-q")
    assert done.exit_code == 0, done.output
    assert "lengthened" not in yaml.safe_load((again / "config.yaml").read_text())
