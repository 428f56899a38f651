"""Weights of all patients: none is left out, and calibration comes from patients that the folds did not see."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from tests.data.training.runs import BACKBONE, classifier_config, quiet, segmenter_config, train
from tumorlens.classification.predict import Classifier
from tumorlens.classification.trust.calibration import Calibration, fit_calibration
from tumorlens.classification.trust.evidence import read_evidence
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.out_of_fold import finished_folds
from tumorlens.data.training.partition import kept_in_memory
from tumorlens.data.training.run_folder import plain_config
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.evaluation.evaluate import evaluate
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.segmentation.operating_point import choose_operating_point
from tumorlens.segmentation.operating_point import read_evidence as read_points
from tumorlens.segmentation.predict import Segmenter

SMALL = {"epochs": 1, "epoch_slices": 8, "small_share": 0.5, "small_size": 32, "transplant": 0.5, "turn": 0.2}


@pytest.fixture(scope="module")
def folds(phantom_set, tmp_path_factory):
    """Every fold of both stages, trained for one epoch."""
    out = tmp_path_factory.mktemp("crossval")
    one = classifier_config(phantom_set, **SMALL)
    two = segmenter_config(phantom_set, duplicates="drop", **SMALL)
    with kept_in_memory():
        for fold in range(5):
            train(replace(one, fold=fold), out / "one" / f"fold-{fold}")
            train(replace(two, fold=fold), out / "two" / f"fold-{fold}")
    return out, one, two


@pytest.fixture(scope="module")
def run_on_all(folds, tmp_path_factory):
    """A classifier of all patients: its folder and its card."""
    out, config, _ = folds
    folder = tmp_path_factory.mktemp("all") / "run"
    return folder, train(on_all(config, out / "one"), folder)


def on_all(config, folder):
    return replace(config, split="all", out_of_fold=str(folder))


def test_the_classifier_sees_everybody_and_is_calibrated_on_the_unseen(folds, run_on_all):
    out, config, _ = folds
    run, card = run_on_all
    assert card["n_slices"] == {"train": 40, "validation": 0, "test": 0}
    evidence = read_evidence(out / "one", plain_config(config))
    assert len(evidence.labels) == 40  # each patient is validated once
    assert Calibration.of_card(card) == fit_calibration(evidence.logits, evidence.labels, evidence.sources)
    assert card["operating_point"]["tumor_threshold"] == 0.5
    assert "held-out patients" in card["operating_point"]["rule"]
    cards = [json.loads((out / "one" / f"fold-{k}" / "classifier.json").read_text()) for k in range(5)]
    tested = [c["metrics"]["test"]["slice"]["accuracy"] for c in cards]
    assert card["metrics"]["held_out"]["slice_accuracy"]["mean"] == pytest.approx(np.mean(tested), abs=1e-4)
    assert evidence.figures == card["metrics"]
    assert not (run / "test.csv").exists()
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    model = Classifier.load(run / "classifier.safetensors", "cpu")
    assert model.predict(np.zeros((1, 64, 64), np.uint8)).shape == (1, 4)


def test_logits_of_the_table_give_its_probabilities_again(folds):
    out, config, _ = folds
    evidence = read_evidence(out / "one", plain_config(config))
    assert evidence.strangeness is not None
    at = 0
    for fold in range(5):
        card = json.loads((out / "one" / f"fold-{fold}" / "classifier.json").read_text())
        with (out / "one" / f"fold-{fold}" / "validation.csv").open() as file:
            rows = list(csv.DictReader(file))
        written = np.array([[float(r[f"p_{n}"]) for n in CLASSES] for r in rows])
        again = Calibration.of_card(card)(evidence.logits[at : at + len(rows)])
        np.testing.assert_allclose(again, written, atol=1e-5)
        np.testing.assert_allclose([float(r["strangeness"]) for r in rows], evidence.strangeness[at : at + len(rows)])
        at += len(rows)


def test_the_segmenter_takes_the_point_that_all_folds_agree_on(folds, tmp_path):
    out, _, config = folds
    card = train(on_all(config, out / "two"), tmp_path / "run")
    scores = read_points(out / "two", plain_config(config)).scores
    assert card["operating_point"] == choose_operating_point(scores)
    assert card["n_slices"]["validation"] == 0
    assert "dice_tumor" in card["metrics"]["held_out"]
    assert Segmenter.load(tmp_path / "run" / "segmenter.safetensors", "cpu").input_size == 64


def test_a_resumed_run_on_all_patients_continues(folds, run_on_all, tmp_path):
    out, config, _ = folds
    run, card = run_on_all
    shutil.copytree(run, tmp_path / "run")
    again = train(on_all(config, out / "one"), tmp_path / "run", resume=True)
    assert again["best_epoch"] == 0
    assert again["sha256"] == card["sha256"]


def test_weights_of_all_patients_are_measured_on_patients_that_they_saw(run_on_all, phantom_set, tmp_path):
    warnings = []
    weights = run_on_all[0] / "classifier.safetensors"
    request = EvaluationRequest((str(phantom_set),), "classification", classifier=str(weights), probe=False)
    report = evaluate(request, tmp_path / "report", say=quiet, warn=warnings.append)
    assert report["folds"]["choice"].startswith("all scans as one set")
    assert "the classification weights have learned from 20 of the 20 patients measured" in warnings


@pytest.mark.parametrize(
    "harm", ["missing fold", "other recipe", "no test figures", "no table", "nothing", "broken table", "known start"]
)
def test_a_damaged_cross_validation_is_refused_before_the_data_are_read(folds, tmp_path, harm):
    out, config, _ = folds
    copy = tmp_path / "cv"
    whole = on_all(replace(config, data=("/nowhere",)), copy)
    for fold in range(5):
        source, target = out / "one" / f"fold-{fold}", copy / f"fold-{fold}"
        if harm == "nothing" or (harm == "missing fold" and fold == 3):
            continue
        target.mkdir(parents=True)
        for name in ("classifier.safetensors", "classifier.json", "validation.csv"):
            (target / name).write_bytes((source / name).read_bytes())
    if harm == "other recipe":
        whole = replace(whole, learning_rate=0.5)
    if harm == "no test figures":
        card = json.loads((copy / "fold-2" / "classifier.json").read_text())
        (copy / "fold-2" / "classifier.json").write_text(json.dumps(card | {"metrics": {}}))
    if harm == "known start":
        card = json.loads((copy / "fold-2" / "classifier.json").read_text())
        hashes = card["training"]["patient_hashes"]
        hashes["start"] = hashes["validation"][:2] + hashes["train"]
        (copy / "fold-2" / "classifier.json").write_text(json.dumps(card))
    if harm == "no table":
        (copy / "fold-1" / "validation.csv").unlink()
    if harm == "broken table":
        (copy / "fold-1" / "validation.csv").write_text("label,p_glioma\nglioma,x\n")
    reason = {
        "missing fold": r"all folds of a cross-validation are needed, there are \[0, 1, 2, 4\]",
        "other recipe": "the fold was trained with learning_rate = 0.0004, not 0.5",
        "no test figures": "the card has no figures of held-out patients",
        "no table": "validation.csv: no such table",
        "nothing": "neither folds of a cross-validation",
        "broken table": "not a table of predictions",
        "known start": "fold-2: its initial weights have learned from 2 of the patients that it held out",
    }[harm]
    with pytest.raises(InputError, match=reason):
        train(whole, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cross_validation_of_other_patients_or_of_some_is_refused(folds, phantom_set, tmp_path):
    out, config, other = folds
    text = re.sub(r",p(\d)", r",other\1", (phantom_set / "index.csv").read_text())
    (tmp_path / "index.csv").write_text(text)
    data = (f"{tmp_path / 'index.csv'}@{phantom_set}",)
    for recipe, stage in ((config, "one"), (other, "two")):
        with pytest.raises(InputError, match=r"0 of \d+ were; it needs all folds of the same"):
            train(replace(on_all(recipe, out / stage), data=data), tmp_path / "run")
        some = tmp_path / stage
        for fold in range(3):
            shutil.copytree(out / stage / f"fold-{fold}", some / f"fold-{fold}")
        with pytest.raises(InputError, match="12 of 20 were"):
            train(on_all(recipe, some), tmp_path / "run")


def test_one_run_with_a_held_out_fold_is_enough(phantom_set, tmp_path):
    config = classifier_config(phantom_set, **SMALL, split="holdout", fold=1)
    card = train(config, tmp_path / "choose")
    assert (card["n_slices"]["test"], list(card["metrics"])) == (0, ["validation"])
    assert not set(card["training"]["patient_hashes"]["validation"]) & set(card["training"]["patient_hashes"]["train"])
    whole = train(replace(config, split="all", out_of_fold=str(tmp_path / "choose")), tmp_path / "all")
    assert whole["n_slices"] == {"train": 40, "validation": 0, "test": 0}
    tables = [Calibration.of_card(one) for one in (whole, card)]  # the second one is of nine digits
    assert tables[0].temperature == pytest.approx(tables[1].temperature, rel=1e-3)
    assert tables[0].tumor_bias == pytest.approx(tables[1].tumor_bias, abs=1e-3)
    accuracy = card["metrics"]["validation"]["slice"]["accuracy"]
    assert whole["metrics"]["held_out"]["slice_accuracy"]["mean"] == pytest.approx(accuracy, abs=1e-4)
    train(classifier_config(phantom_set, **SMALL), tmp_path / "fold")
    with pytest.raises(InputError, match="did not hold a fold out; train one with --split holdout"):
        train(replace(config, split="all", out_of_fold=str(tmp_path / "fold")), tmp_path / "no")


def test_ten_folds_are_sorted_by_number(folds, tmp_path):
    out, config, _ = folds
    for fold in range(11):
        (tmp_path / f"fold-{fold}").mkdir()
        for name in ("classifier.safetensors", "classifier.json"):
            shutil.copy(out / "one" / f"fold-{fold % 5}" / name, tmp_path / f"fold-{fold}" / name)
        path = tmp_path / f"fold-{fold}" / "classifier.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps(card | {"training": card["training"] | {"fold": fold}}))
    finished = finished_folds(tmp_path, "classification", plain_config(config))
    assert [fold.card["training"]["fold"] for fold in finished] == list(range(11))


def test_all_patients_need_a_cross_validation(phantom_set, tmp_path):
    for config in (classifier_config(phantom_set), segmenter_config(phantom_set)):
        with pytest.raises(InputError, match="needs runs on held-out patients"):
            train(replace(config, split="all"), tmp_path / "run")
        with pytest.raises(InputError, match="no other run takes any"):
            train(replace(config, out_of_fold="cv"), tmp_path / "run")


def test_the_command_trains_on_all(folds, phantom_set, tmp_path):
    out, _config, _ = folds
    settings = {"arch": BACKBONE, "size": 64, "batch-size": 8, "init": "none", "device": "cpu", "precision": "fp32"}
    settings |= {name.replace("_", "-"): value for name, value in SMALL.items()}
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    arguments = ["--data", phantom_set, "-o", tmp_path / "run", "--out-of-fold", out / "one", "-q", *options]
    done = CliRunner().invoke(app, ["train", "classification", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["split"] == "all"
    assert "on all patients" in done.output
