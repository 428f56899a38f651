"""`tumorlens evaluate` as a user calls it: protocols, warnings, messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.scans.lgg import write_lgg_phantoms

LEAKS = "leaks: 57 % of test images are copies of training images"


@pytest.fixture(scope="module")
def models(weights):
    return {
        "classification": ["--classifier", weights["classifier"]],
        "segmentation": ["--segmenter", weights["segmenter"]],
    }


@pytest.fixture
def call(command):
    return lambda *arguments: command("evaluate", *arguments, "--device", "cpu")


def chosen(models, stage):
    return models["classification"] + models["segmentation"] if stage == "pipeline" else models[stage]


@pytest.fixture
def official(phantom_set, tmp_path):
    lines = (phantom_set / "index.csv").read_text().splitlines()
    rows = [f"{line},{'test' if int(line.rsplit(',', 1)[1]) == 0 else 'train'}" for line in lines[1:]]
    (tmp_path / "official.csv").write_text("\n".join([f"{lines[0]},official_split", *rows]) + "\n")
    return f"{tmp_path / 'official.csv'}@{phantom_set}"


@pytest.mark.parametrize("stage", ["classification", "segmentation", "pipeline"])
@pytest.mark.parametrize("protocol", ["p1", "p2", "p3"])
def test_each_protocol_measures_each_stage(call, models, phantom_set, official, tmp_path, stage, protocol):
    rest = ["--no-probe"] if stage == "classification" else []
    data = official if protocol == "p3" else phantom_set  # p1 and p2: the fold on the card
    done = call(stage, "--data", data, "--protocol", protocol, *chosen(models, stage), "-o", tmp_path / "out", *rest)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["id"] == protocol
    assert report["n"] == {"p1": 6, "p2": 8, "p3": 8}[protocol]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "leaks" not in done.output + text  # BRISC's figure is none of the phantoms'
    assert "warning" not in done.stderr  # all three parts hold the patients that the weights were tested on
    assert "report.md" in done.stdout


def test_p3_reports_the_leaks_of_brisc(call, models, phantom_set, tmp_path):
    """It is known by the names of its test pictures under any folder name. Divided anew, the figure does not hold."""
    rows = ["image,mask,label,patient,fold,official_split"]
    for number, line in enumerate((phantom_set / "index.csv").read_text().splitlines()[1:]):
        image, *rest = line.split(",")
        part = "train" if number % 4 else "test"
        name = f"brisc2025_{part}_{number:05d}.png"
        shutil.copy(phantom_set / image, tmp_path / name)
        rows.append(",".join([name, *(f"{phantom_set}/{cell}" if "/" in cell else cell for cell in rest), part]))
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    arguments = ["classification", "--protocol", "p3", *models["classification"], "--no-probe", "-o", tmp_path / "out"]
    done = call(*arguments, "--data", tmp_path)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert LEAKS in done.stderr
    assert report["warnings"][0] == LEAKS
    assert LEAKS in report["protocol"]["title"]
    (tmp_path / "index.csv").write_text("\n".join(rows).replace(",train", ",test"))
    assert LEAKS not in call(*arguments, "--data", tmp_path, "--overwrite").output


def test_p4_measures_an_lgg_folder(call, models, tmp_path):
    write_lgg_phantoms(tmp_path / "lgg", patients=5, slices=5)
    arguments = ["segmentation", "--data", tmp_path / "lgg", "--protocol", "p4", "-o", tmp_path / "out"]
    done = call(*arguments, "--frame-channel", 2, *models["segmentation"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["frame_channel"] == 2
    assert report["figures"]["volume"]["n_patients"] == 5  # other data than the training's: no fold was kept from it
    assert "all scans as one set, as the weights' card names no test or held-out fold of these data" in done.stdout
    assert done.stderr == ""


def test_a_fold_that_was_not_the_test_fold_is_reported(call, models, phantom_set, tmp_path):
    arguments = ["segmentation", "--data", phantom_set, "--protocol", "p2", "-o", tmp_path / "out"]
    done = call(*arguments, "--folds", "1,2", *models["segmentation"])
    assert done.exit_code == 0, done.output
    assert "point of the segmentation weights were chosen on 4 of the 4 patients of fold 1" in done.stderr
    assert "the segmentation weights have learned from 4 of the 4 patients of fold 2" in done.stderr
    assert "have learned from 4 of the 4 patients of fold 2" in (tmp_path / "out" / "report.md").read_text()


def test_weights_of_every_fold(call, models, phantom_set, tmp_path):
    """{fold} takes all folds unless some are named; here both files are the same weights."""
    source = Path(models["segmentation"][1])
    for fold in (0, 1):
        for suffix in (".safetensors", ".json"):
            copy = tmp_path / f"fold-{fold}{suffix}"
            copy.write_bytes(source.with_suffix(suffix).read_bytes())
    template = tmp_path / "fold-{fold}.safetensors"
    arguments = ["segmentation", "--data", phantom_set, "--segmenter", template, "-o", tmp_path / "out"]
    done = call(*arguments, "--folds", "0,1")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [model["fold"] for model in report["models"]] == [0, 1]
    wrong = call(*arguments, "--overwrite")
    assert wrong.exit_code == 2
    assert "{fold} needs folds" in wrong.stderr
    wrong = call(*arguments, "--protocol", "p2", "--overwrite")
    assert wrong.exit_code == 2
    assert "fold-2.safetensors: no such file" in wrong.stderr
    wrong = call(*arguments, "--protocol", "p3", "--overwrite")
    assert wrong.exit_code == 2
    assert "protocol p3 has no folds that {fold} could stand for" in wrong.stderr
    assert "--folds out" not in wrong.stderr


def test_a_mistake_is_reported_in_one_line(call, models, phantom_set, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "unlabeled").mkdir()
    (tmp_path / "unlabeled" / "index.csv").write_text(f"image,label\n{phantom_set}/images/0_0.png,\n")
    out = ["-o", tmp_path / "out"]
    data = ["--data", phantom_set]
    classifier, segmenter = models["classification"], models["segmentation"]
    for arguments, message in (
        (["classification", *data, *out, *classifier, "--folds", "9"], "no fold 9"),
        (["classification", *data, *out, *classifier, "--folds", "x"], "neither all nor numbers"),
        (["classification", *data, *out, *classifier, "--protocol", "p9"], "is not one of p1, p2, p3, p4"),
        (["classification", *data, *out, *classifier, "--protocol", "p4"], "p4 measures segmentation"),
        (["segmentation", *data, *out, *segmenter, "--protocol", "p4"], "needs an LGG folder"),
        (["classification", *data, *out, "--classifier", tmp_path / "no.safetensors"], "no.safetensors: no such file"),
        (["classification", *data, *out, "--classifier", segmenter[1]], "are for segmentation, not for classification"),
        (["classification", "--data", tmp_path / "unlabeled", *out, *classifier], "no scan has a label or a mask"),
        (["pipeline", "--data", tmp_path / "none", *out], "no such data folder"),
        (["classification", *data, "-o", tmp_path / "file", *classifier], "this is a file"),
        (["classification", *data, "-o", "/proc/report", *classifier], "may not write to this folder"),
        (["classification", *data, *out, *classifier, "--map", "x"], "is not NAME=CLASS"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("tumorlens: error: ")
    assert not (tmp_path / "out").exists()
