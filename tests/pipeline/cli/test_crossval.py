"""`tumorlens crossval` as a user calls it: from the folds to the report."""

from __future__ import annotations

import json

import pytest

from tests.data.training.runs import without_plots
from tests.scans.lgg import write_lgg_phantoms
from tumorlens.pipeline.evaluation import crossval as room


@pytest.mark.slow
def test_both_stages_fold_by_fold(command, phantom_set, tmp_path):
    """The encoder of a fold starts from that fold's classifier, so that it has not seen the fold's patients either."""
    arguments = ["pipeline", "--data", phantom_set, "-o", tmp_path, "--folds", "0,3", "--arch", "resnet18"]
    arguments += ["--encoder", "resnet18", "--epochs", 1, "--size", 64, "--segmenter-size", 64, "--batch-size", 8]
    arguments += ["--segmenter-batch-size", 8, "--init", "none", "--device", "cpu", "--precision", "fp32"]
    done = command("crossval", *arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stage"] == "pipeline"
    assert report["warnings"] == []
    assert [(m["stage"], m["fold"], m["test_fold"]) for m in report["models"]] == [
        ("classification", 0, 0),
        ("classification", 3, 3),
        ("segmentation", 0, 0),
        ("segmentation", 3, 3),
    ]
    for fold in (0, 3):
        card = json.loads((tmp_path / "segmentation" / f"fold-{fold}" / "segmenter.json").read_text())
        assert card["training"]["init"] == str(tmp_path / "classification" / f"fold-{fold}" / "classifier.safetensors")
    assert report["n"] == 16
    assert "label right, of all classes (slices)" in done.output


def test_the_classifier_with_one_call(command, phantom_set, tmp_path):
    arguments = ["classification", "--data", phantom_set, "-o", tmp_path / "out", "--folds", "0,1", "--arch", "mlp"]
    arguments += ["--size", 64, "--epochs", 1, "--init", "none", "--device", "cpu", "--no-probe", "--batch-size", 8]
    with without_plots():
        done = command("crossval", *arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["folds"]["measured"] == [0, 1]
    assert report["crossval"]["classification"]["not_brain"] == []


@pytest.mark.slow
def test_a_segmenter_on_an_lgg_folder_with_one_call(command, tmp_path):
    write_lgg_phantoms(tmp_path / "lgg", patients=5, slices=5)
    arguments = ["segmentation", "--data", tmp_path / "lgg", "-o", tmp_path / "out", "--folds", "0,1", "--epochs", 1]
    arguments += ["--size", 64, "--encoder", "resnet18", "--init", "none", "--batch-size", 4, "--duplicates", "drop"]
    done = command("crossval", *arguments, "--device", "cpu")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["id"] == "p4"
    assert report["warnings"] == []
    assert len(report["figures"]["volume"]["by_patient"]) == report["n_patients"] == 2


def test_the_options_are_those_of_training(command, phantom_set, tmp_path):
    wrong = command("crossval", "segmentation", "--data", "x", "-o", tmp_path, "--size", "100")
    assert wrong.exit_code == 2
    assert "--size 100 is not divisible by 32" in wrong.stderr
    for stage, name in (("classification", "--blank"), ("segmentation", "--encoder"), ("pipeline", "--segmenter-init")):
        text = command("crossval", stage, "--help").output
        assert name in text
        assert "--folds" in text
        assert "--resume" not in text
    missing = command("crossval", "classification", "--data", tmp_path / "no", "-o", tmp_path)
    assert missing.exit_code == 2
    assert "no such data folder" in missing.stderr


def test_a_stopped_call_says_how_to_continue(command, phantom_set, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_TRAIN", {"classification": stop})
    arguments = ["classification", "--data", str(phantom_set), "-o", str(tmp_path), "--init", "none", "--size", "64"]
    done = command("crossval", *arguments)
    assert done.exit_code == 130
    assert done.stderr.strip() == "tumorlens: stopped; repeat the command to go on"
