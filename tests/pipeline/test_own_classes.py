"""Classifiers of other classes than the shipped ones, from a folder of pictures to every output."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from tests.data.training.runs import train, without_plots
from tests.scans.own_classes import class_folders, seven_classes, tumors_only, yes_or_no
from tests.scans.phantoms import read_rows
from tests.scans.pictures import save_volume, table
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.predict import Classifier
from tumorlens.classification.probabilities import has_gate
from tumorlens.classification.train import check_classes, has_label
from tumorlens.classification.trust.evidence import read_evidence
from tumorlens.data.cards.card import read_card
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES, ClassList
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.evaluation.crossval import crossval
from tumorlens.pipeline.evaluation.evaluate import evaluate
from tumorlens.pipeline.evaluation.request import EvaluationRequest, crossval_request
from tumorlens.pipeline.evaluation.selection import load_sets
from tumorlens.pipeline.outputs import overlay
from tumorlens.pipeline.services.reviews.desk import labels_for
from tumorlens.segmentation.config import SegmenterConfig

SEVEN = ("no_tumor", "glioma", "meningioma", "astrocitoma", "ependimoma", "neurocitoma", "schwannoma")
SETS = {
    "seven": (seven_classes, SEVEN, "official"),
    "yes or no": (yes_or_no, ("no_tumor", "tumor"), "folds"),
    "tumors only": (tumors_only, ("meningioma", "astro", "ependy"), "folds"),
}


def config_for(*data, **rest):
    quick = {"arch": "cnn", "size": 64, "epochs": 1, "batch_size": 8, "init": "none", "device": "cpu"}
    return ClassifierConfig(
        tuple(map(str, data)), **({**quick, "precision": "fp32", "duplicates": "drop", "seed": 1} | rest)
    )


@dataclass(frozen=True)
class Own:
    data: Path
    weights: Path
    classes: tuple[str, ...]
    said: list[str]

    @property
    def card(self):
        return read_card(self.weights)


@pytest.fixture(scope="module", params=SETS)
def own(request, tmp_path_factory):
    """A data set, and a tiny classifier of its classes."""
    make, classes, split = SETS[request.param]
    folder = tmp_path_factory.mktemp("own")
    said = []
    train(config_for(make(folder / "data"), split=split), folder / "run", say=said.append)
    return Own(folder / "data", folder / "run" / "classifier.safetensors", classes, said)


def test_a_training_learns_the_classes_of_its_data(own):
    card = own.card
    assert tuple(card["classes"]) == own.classes
    assert [row["name"] for row in card["class_table"]] == card["classes"]
    assert any(f" of {name}" in card["conformal"]["too_few"] for name in card["classes"])
    assert card["classes_in_training"] == card["classes"]
    last = load_file(own.weights)["head.6.weight"]
    assert last.shape == (len(own.classes), 32)
    rows = read_rows(own.weights.parent / "validation.csv")
    assert [name for name in rows[0] if name.startswith("p_")] == [f"p_{name}" for name in own.classes]
    assert f"classes: {', '.join(own.classes)}" in own.said
    assert ("so this classifier calls every scan a tumor" in " ".join(own.said)) == ("no_tumor" not in own.classes)


def test_its_probabilities_are_those_of_its_classes(own):
    classifier = Classifier.load(own.weights, "cpu")
    from tests.pipeline.engines.networks import slices

    probabilities = classifier.predict(slices())
    assert probabilities.shape == (3, len(classifier.classes))
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    if "no_tumor" not in own.classes:
        assert (probabilities[:, 0] == 0).all() and (classifier.labels(probabilities) > 0).all()
    maps = classifier.explain(slices(), classifier.labels(probabilities))
    assert maps.shape == slices().shape


def run(command, own, out, *inputs, rest=()):
    done = command("run", *inputs, "-o", out, "--classifier", own.weights, "--force", "--device", "cpu", *rest)
    assert done.exit_code == 0, done.output
    return table(out)


def test_every_output_of_a_run_follows_the_card(own, command, tmp_path):
    picture = next(own.data.rglob("0.png"))
    volume = save_volume(tmp_path / "head.nii.gz", phantom_volume(3, shape=(48, 56, 6), spacing_mm=(4, 4, 12)))
    out = tmp_path / "out"
    rows = run(command, own, out, picture, volume, rest=("--report", "--explain"))
    assert [name for name in rows[0] if name.startswith("p_")] == [f"p_{name}" for name in own.classes]
    for row in rows:
        content = json.loads((out / row["scan"].split(".")[0] / "result.json").read_text())
        assert tuple(content["classes"]) == tuple(content["probabilities"]) == own.classes
        assert content["label"] in (*own.classes, "tumor")
        if "no_tumor" not in own.classes:
            assert content["label"] != "no_tumor" and content["confidence"] == pytest.approx(1, abs=1)
            assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert ("type of tumor uncertain" in content["review"]) == (
            content["label"] == "tumor" and "tumor" not in own.classes
        )
        report = (out / row["scan"].split(".")[0] / "report.html").read_text()
        assert "knows gliomas" not in report
        assert all(name.replace("_", " ") in report for name in own.classes if name != "tumor")
    for result in read_results(out):
        assert set(own.classes) < set(labels_for(result))
    again = command("run", picture, "-o", out, "--continue", "--device", "cpu")  # the shipped classifier
    assert again.exit_code == 2
    assert "this table has the classes" in again.output and own.classes[-1] in again.output


def test_masks_are_exported_with_its_classes(own, command, tmp_path):
    picture = next(p for p in sorted(own.data.rglob("0.png")) if "no" not in p.parent.name.lower())
    out, masks = tmp_path / "out", tmp_path / "masks"
    run(command, own, out, picture, rest=("--threshold", "0.01"))
    done = command("masks", "export", out, "-o", masks, "--format", "coco")
    assert done.exit_code == 0, done.output
    categories = {c["id"]: c["name"] for c in json.loads((masks / "annotations.json").read_text())["categories"]}
    known = Classifier.load(own.weights, "cpu").classes.known
    assert categories == {n: name for n, name in enumerate(known) if n}


@pytest.mark.slow
def test_an_evaluation_measures_its_classes(own, tmp_path):
    messages = []
    for stage in ("classification", "pipeline"):
        request = EvaluationRequest(
            (str(own.data),), stage, classifier=str(own.weights), device="cpu", command="tumorlens evaluate"
        )
        out = tmp_path / stage
        report = evaluate(request, out, False, None, messages.append, messages.append)
        with (out / "cases.csv").open(newline="") as file:
            row = next(csv.DictReader(file))
        start = "p_" if stage == "pipeline" else "after_"
        assert [name for name in row if name.startswith(start)] == [f"{start}{name}" for name in own.classes]
    assert report["protocol"]["id"] == "none"


def test_a_label_that_a_classifier_lacks_is_named(own, tmp_path):
    data = class_folders(tmp_path / "data", ("zebra", "yes", "no"), 1)
    request = EvaluationRequest(
        (str(data),), "classification", classifier=str(own.weights), device="cpu", command="tumorlens evaluate"
    )
    if own.classes == ("no_tumor", "tumor"):  # any tumor is one
        report = evaluate(request, tmp_path / "out", False, None, print, print)
        assert report["figures"]["presence"]["n_tumor"] == 2
        return
    with pytest.raises(InputError, match=r"the label (zebra|no_tumor) is not one of the classes .*--map"):
        evaluate(request, tmp_path / "out", False, None, print, print)


def test_the_classes_of_a_file_come_first_and_missing_ones_are_named(tmp_path):
    rows = [{"name": "normal", "no_tumor": True}, {"name": "Foo", "color": "#010203"}, "bar", "baz"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(rows))
    data, said = class_folders(tmp_path / "data", ("normal", "bar", "foo"), 6), []
    config = config_for(data, classes=str(tmp_path / "own.yaml"))
    card = train(config, tmp_path / "run", say=said.append)
    assert card["classes"] == ["no_tumor", "foo", "bar", "baz"]
    assert card["class_table"][1]["color"] == "#010203"
    assert any(line.startswith("warning: no training slice shows baz") for line in said)
    with pytest.raises(InputError, match="the label foo is not one of the classes no_tumor, bar"):
        train(config_for(data, classes="no_tumor,bar"), tmp_path / "other")


@pytest.mark.parametrize("change", ["renamed", "gone"])
def test_a_run_is_not_resumed_with_other_classes(tmp_path, change):
    """Not even with as many of them, whose outputs would silently change places."""
    data = class_folders(tmp_path / "data", ("alpha", "beta", "delta"), 8)
    train(config_for(data), tmp_path / "run")
    began = (tmp_path / "run" / "config.yaml").read_text()
    (data / "alpha").rename(data / "gamma" if change == "renamed" else tmp_path / "alpha")
    now = {"renamed": "beta, delta, gamma", "gone": "beta, delta"}[change]
    with pytest.raises(InputError, match=f"began with the classes alpha, beta, delta, its data now have {now}; put"):
        train(config_for(data, epochs=2), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == began


def test_a_classifier_of_own_classes_can_be_mixed_in(tmp_path):
    data = class_folders(tmp_path / "data", ("alpha", "beta", "delta"), 8)
    train(config_for(data), tmp_path / "first")
    first = tmp_path / "first" / "classifier.safetensors"
    config = config_for(data, init=str(first), start_share=1.0)
    train(config, tmp_path / "run")
    weights = [load_file(folder / first.name)["head.6.weight"] for folder in (first.parent, tmp_path / "run")]
    assert weights[0] == pytest.approx(weights[1], abs=1e-3)  # with the whole share it is the start again
    more = class_folders(tmp_path / "more", ("alpha", "beta", "delta", "eta"), 8)
    with pytest.raises(InputError, match="--start-share needs a whole network, and it lacks the output of eta"):
        train(config_for(more, init=str(first), start_share=1.0), tmp_path / "other")
    first.unlink()
    with pytest.raises(InputError, match="no such weight file"):  # before it trains another epoch
        train(config_for(data, init=str(first), start_share=1.0, epochs=2), tmp_path / "run", resume=True)
    assert "epochs: 1" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_shipped_tumors_without_a_gate_are_other_classes(tmp_path):
    """A training says which it has, and takes no evidence of networks with a gate."""
    data, said = class_folders(tmp_path / "data", CLASSES[1:], 8), []
    parts = load_partition(config_for(data), has_label)
    check_classes(parts, None, said.append)
    assert said[0] == "classes: glioma, meningioma, pituitary"
    card = train(config_for(data, split="holdout"), tmp_path / "run")
    config = config_for(data, split="all", out_of_fold=str(tmp_path / "run"))
    evidence = read_evidence(config.out_of_fold, {})
    assert not has_gate(evidence.logits) and card["calibration"]["tumor_bias"] == 0
    check_classes(parts, evidence, said.append)
    gated = replace(evidence, classes=ClassList.from_card({}))
    with pytest.raises(InputError, match=r"the run there has the classes no_tumor, glioma, .*, this one glioma, "):
        check_classes(parts, gated, said.append)


ALIASES = "- {name: Healthy, no_tumor: true, aliases: [HC]}\n- GBM\n- meningioma\n"


def test_the_words_of_a_file_stand_in_every_report_and_picture(command, tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("- {name: GBM, prose: glioblastoma}\n- {name: MET, prose: metastasis}\n")
    data, written = class_folders(tmp_path / "data", ("GBM", "MET"), 8), []
    train(config_for(data, classes=str(tmp_path / "own.yaml")), tmp_path / "run")
    monkeypatch.setattr(overlay, "draw_caption", lambda picture, text: (written.append(text), picture)[1])
    weights = tmp_path / "run" / "classifier.safetensors"
    own = Own(data, weights, ("gbm", "met"), [])
    (row,) = run(command, own, tmp_path / "out", data / "MET" / "0.png", rest=("--report",))
    words = {"gbm": "glioblastoma", "met": "metastasis", "tumor": "tumor of uncertain type"}[row["label"]]
    assert words in (tmp_path / "out" / "report.html").read_text()
    assert [text.rsplit(" ", 1)[0] for text in written] == [words]


def test_aliases_of_a_file_hold_where_its_classifier_is_measured(tmp_path):
    (tmp_path / "own.yaml").write_text(ALIASES)
    data = class_folders(tmp_path / "data", ("HC", "GBM", "meningioma"), 6)
    config, messages = config_for(data, classes=str(tmp_path / "own.yaml")), []
    request = crossval_request({"classification": config}, folds=(0,), probe=False, command="x")
    out = tmp_path / "out"
    with without_plots():
        crossval(request, out, show=False, say=messages.append, warn=messages.append)
        weights = str(out / "fold-0" / "classifier.safetensors")
        again = EvaluationRequest((str(data),), "classification", "p2", classifier=weights, device="cpu", probe=False)
        evaluate(again, tmp_path / "again", say=messages.append, warn=messages.append)
    assert not [line for line in messages if "have learned from" in line]
    cases = [read_rows(folder / "cases.csv") for folder in (out, tmp_path / "again")]
    assert {row["label"] for row in cases[0]} == {"no_tumor", "gbm", "meningioma"}
    assert [row["file"] for row in cases[0]] == [row["file"] for row in cases[1]]


def test_aliases_beside_one_data_set_hold_for_the_others_in_every_stage(tmp_path):
    first, second = (
        class_folders(tmp_path / name, names, 1) for name, names in (("a", ("GBM",)), ("b", ("HC", "GBM")))
    )
    (first / "classes.yaml").write_text(ALIASES)
    data = (str(first), str(second))
    request = crossval_request({"segmentation": SegmenterConfig(data, label_map=(("HC2", "no_tumor"),))})
    assert request.label_map == request.training["segmentation"].label_map
    assert {s.label for _, samples in load_sets(request) for s in samples} == {"gbm", "no_tumor"}
    assert dict(request.label_map)["HC2"] == "no_tumor"


def test_one_class_alone_is_an_error(tmp_path):
    data = class_folders(tmp_path / "data", ("glioma",), 8)
    with pytest.raises(InputError, match="the data show one class only, glioma, and a classifier needs two or more"):
        train(config_for(data), tmp_path / "run")
    assert not (tmp_path / "run" / "classifier.safetensors").exists()


def test_the_four_shipped_classes_need_no_table_on_a_card(tmp_path, phantom_set):
    card = train(config_for(phantom_set), tmp_path / "run")
    assert (tuple(card["classes"]), "class_table" in card) == (CLASSES, False)
    assert Classifier.load().classes is not SHIPPED_CLASSES and Classifier.load().classes == SHIPPED_CLASSES
