"""Weights of all patients: nobody is left out, and what is fitted comes from patients that the folds did not see."""

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

from tests.pipeline.evaluation.test_evaluate import TINY, quiet
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.predict import Classifier
from tumorlens.classification.train import train_classifier
from tumorlens.classification.trust.calibration import calibrated, fit_temperature
from tumorlens.classification.trust.evidence import read_evidence
from tumorlens.classification.trust.operating_point import choose_threshold
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.out_of_fold import fold_runs
from tumorlens.data.training.run_folder import plain_config
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.evaluation.evaluate import evaluate
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.operating_point import PointScore, choose_operating_point
from tumorlens.segmentation.operating_point import read_evidence as read_points
from tumorlens.segmentation.predict import Segmenter
from tumorlens.segmentation.train import train_segmenter

SMALL = TINY | {"small_epochs": 1, "small_size": 32, "transplant": 0.5, "turn": 0.2}


@pytest.fixture(scope="module")
def folds(phantom_set, tmp_path_factory):
    """Every fold of both stages, trained for one epoch."""
    out = tmp_path_factory.mktemp("crossval")
    data = (str(phantom_set),)
    one = ClassifierConfig(data=data, arch="resnet18", **SMALL)
    two = SegmenterConfig(data=data, encoder="resnet18", duplicates="drop", **SMALL)
    for fold in range(5):
        train_classifier(replace(one, fold=fold), out / "one" / f"fold-{fold}", progress=False, say=quiet)
        train_segmenter(replace(two, fold=fold), out / "two" / f"fold-{fold}", progress=False, say=quiet)
    return out, one, two


def on_all(config, folder):
    return replace(config, split="all", out_of_fold=str(folder))


def test_the_classifier_sees_everybody_and_is_calibrated_on_the_unseen(folds, tmp_path):
    out, config, _ = folds
    card = train_classifier(on_all(config, out / "one"), tmp_path / "run", progress=False, say=quiet)
    assert card["n_slices"] == {"train": 40, "validation": 0, "test": 0}
    evidence = read_evidence(out / "one", plain_config(config))
    assert len(evidence.labels) == 40  # each patient is validated once
    temperature = fit_temperature(evidence.logits, evidence.labels)
    assert card["calibration"]["temperature"] == temperature
    threshold = choose_threshold(evidence.labels, calibrated(evidence.logits, temperature))
    assert card["operating_point"]["tumor_threshold"] == threshold
    assert "out-of-fold" in card["operating_point"]["rule"]
    cards = [json.loads((out / "one" / f"fold-{k}" / "classifier.json").read_text()) for k in range(5)]
    tested = [c["metrics"]["test"]["slice"]["accuracy"] for c in cards]
    assert card["metrics"]["crossval_test"]["slice_accuracy"]["mean"] == pytest.approx(np.mean(tested), abs=1e-4)
    assert evidence.figures == card["metrics"]
    assert not (tmp_path / "run" / "test.csv").exists()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    model = Classifier.load(tmp_path / "run" / "classifier.safetensors", "cpu")
    assert model.predict(np.zeros((1, 64, 64), np.uint8)).shape == (1, 4)


def test_logits_of_the_table_give_its_probabilities_again(folds):
    out, config, _ = folds
    evidence = read_evidence(out / "one", plain_config(config))
    at = 0
    for fold in range(5):
        card = json.loads((out / "one" / f"fold-{fold}" / "classifier.json").read_text())
        with (out / "one" / f"fold-{fold}" / "validation.csv").open() as file:
            rows = list(csv.DictReader(file))
        told = np.array([[float(r[f"p_{n}"]) for n in CLASSES] for r in rows])
        again = calibrated(evidence.logits[at : at + len(rows)], card["calibration"]["temperature"])
        np.testing.assert_allclose(again, told, atol=1e-5)
        strange = [float(r["strangeness"]) for r in rows if r["strangeness"]]
        assert evidence.strangeness is None or np.allclose(strange, evidence.strangeness[at : at + len(rows)])
        at += len(rows)


def test_the_segmenter_takes_the_point_that_all_folds_agree_on(folds, tmp_path):
    out, _, config = folds
    card = train_segmenter(on_all(config, out / "two"), tmp_path / "run", progress=False, say=quiet)
    scores = read_points(out / "two", plain_config(config)).scores
    assert card["operating_point"] == choose_operating_point(scores)
    assert card["n_slices"]["validation"] == 0
    assert "dice_tumor" in card["metrics"]["crossval_test"]
    assert Segmenter.load(tmp_path / "run" / "segmenter.safetensors", "cpu").input_size == 64


def test_folds_are_weighed_by_their_slices():
    few = [PointScore(0.3, 0, 0.9, 10), PointScore(0.5, 0, 0.5, 10)]
    many = [PointScore(0.3, 0, 0.6, 90), PointScore(0.5, 0, 0.7, 90)]
    assert choose_operating_point(few)["mask_threshold"] == 0.3
    assert choose_operating_point(few + many)["mask_threshold"] == 0.5


def test_a_resumed_run_on_all_patients_goes_on(folds, tmp_path):
    out, config, _ = folds
    whole = on_all(replace(config, epochs=1), out / "one")
    train_classifier(whole, tmp_path / "run", progress=False, say=quiet)
    again = train_classifier(whole, tmp_path / "run", resume=True, progress=False, say=quiet)
    assert again["best_epoch"] == 0


def test_what_these_weights_are_measured_on_was_seen(folds, phantom_set, tmp_path):
    out, config, _ = folds
    train_classifier(on_all(config, out / "one"), tmp_path / "run", progress=False, say=quiet)
    said = []
    request = EvaluationRequest(
        (str(phantom_set),), "classification", classifier=str(tmp_path / "run" / "classifier.safetensors"), probe=False
    )
    report = evaluate(request, tmp_path / "report", say=quiet, warn=said.append)
    assert report["folds"]["choice"].startswith("all scans as one set")
    assert "the classification weights have learnt from 20 of the 20 patients measured" in said


@pytest.mark.parametrize(
    "harm", ["missing fold", "other recipe", "no test figures", "no table", "nothing", "broken table"]
)
def test_a_cross_validation_that_is_none_is_told_before_the_data_are_read(folds, tmp_path, harm):
    out, config, _ = folds
    copy = tmp_path / "cv"
    wanted = on_all(replace(config, data=("/nowhere",)), copy)
    for fold in range(5):
        source, target = out / "one" / f"fold-{fold}", copy / f"fold-{fold}"
        if harm == "nothing" or (harm == "missing fold" and fold == 3):
            continue
        target.mkdir(parents=True)
        for name in ("classifier.safetensors", "classifier.json", "validation.csv"):
            (target / name).write_bytes((source / name).read_bytes())
    if harm == "other recipe":
        wanted = replace(wanted, learning_rate=0.5)
    if harm == "no test figures":
        card = json.loads((copy / "fold-2" / "classifier.json").read_text())
        (copy / "fold-2" / "classifier.json").write_text(json.dumps(card | {"metrics": {}}))
    if harm == "no table":
        (copy / "fold-1" / "validation.csv").unlink()
    if harm == "broken table":
        (copy / "fold-1" / "validation.csv").write_text("label,p_glioma\nglioma,x\n")
    reason = {
        "missing fold": r"all folds of a cross-validation are needed, there are \[0, 1, 2, 4\]",
        "other recipe": "the fold was trained with learning_rate = 0.0004, not 0.5",
        "no test figures": "the card has no test figures",
        "no table": "validation.csv: no such table",
        "nothing": "no folds of a cross-validation there",
        "broken table": "no table of predictions",
    }[harm]
    with pytest.raises(InputError, match=reason):
        train_classifier(wanted, tmp_path / "run", progress=False, say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_cross_validation_of_other_patients_or_of_some_is_told(folds, phantom_set, tmp_path):
    out, config, other = folds
    text = re.sub(r",p(\d)", r",other\1", (phantom_set / "index.csv").read_text())
    (tmp_path / "index.csv").write_text(text)
    data = (f"{tmp_path / 'index.csv'}@{phantom_set}",)
    for train, wish, stage in ((train_classifier, config, "one"), (train_segmenter, other, "two")):
        with pytest.raises(InputError, match=r"validated 0 of the \d+ patients; it needs all folds of the same"):
            train(replace(on_all(wish, out / stage), data=data), tmp_path / "run", progress=False, say=quiet)
        some = tmp_path / stage
        for fold in range(3):
            shutil.copytree(out / stage / f"fold-{fold}", some / f"fold-{fold}")
        with pytest.raises(InputError, match="validated 12 of the 20 patients"):
            train(on_all(wish, some), tmp_path / "run", progress=False, say=quiet)


def test_ten_folds_are_counted_not_spelled(folds, tmp_path):
    out, config, _ = folds
    for fold in range(11):
        shutil.copytree(out / "one" / f"fold-{fold % 5}", tmp_path / f"fold-{fold}")
        path = tmp_path / f"fold-{fold}" / "classifier.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps(card | {"training": card["training"] | {"fold": fold}}))
    runs = fold_runs(tmp_path, "classifier.safetensors", "classification", plain_config(config))
    assert [run.card["training"]["fold"] for run in runs] == list(range(11))


def test_all_patients_need_a_cross_validation(folds, tmp_path):
    _, config, other = folds
    for train, wish in ((train_classifier, config), (train_segmenter, other)):
        with pytest.raises(InputError, match="needs a cross-validation"):
            train(replace(wish, split="all"), tmp_path / "run", progress=False, say=quiet)


def test_the_command_trains_on_all(folds, phantom_set, tmp_path):
    out, _config, _ = folds
    options = [
        "--arch",
        "resnet18",
        "--size",
        64,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--init",
        "none",
        "--device",
        "cpu",
    ]
    options += ["--precision", "fp32", "--small-epochs", 1, "--small-size", 32, "--transplant", 0.5, "--turn", 0.2]
    arguments = ["--data", phantom_set, "-o", tmp_path / "run", "--out-of-fold", out / "one", "-q", *options]
    done = CliRunner().invoke(app, ["train", "classification", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["split"] == "all"
    assert "on all patients" in done.output
