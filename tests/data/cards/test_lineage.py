"""What initial weights had learned from stands on the card of all weights that start from them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from tests.data.training.runs import classifier_config, train
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.data.cards.card import CARD_SCHEMA, check_training
from tumorlens.data.cards.lineage import (
    PATIENTS,
    PICTURES,
    known_start,
    learned_from,
    patients_of_run,
    pictures_learned_from,
)
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.patient_hashes import hash_id, hash_patients
from tumorlens.data.errors import InputError
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.record_pictures import record_pictures
from tumorlens.data.training.run_folder import changed_setting, plain_config, with_start, write_config
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

LISTED = {"train": ["a", "b"], "validation": ["c"], "test": ["d"], "start": ["e"]}
NEW = {"train": ["b", "n"], "validation": ["c"], "test": []}


def put(path, hashes=LISTED, **training):
    """A weight file with a card, as a training run leaves it; returns its name for ``init``."""
    stage = training.pop("stage", "classification")
    settings = {"fold": 0, "seed": 0} | ({PATIENTS: hashes} if hashes else {}) | training
    save_weights({"a": torch.zeros(1)}, path, {"stage": stage, "training": settings})
    return str(path)


def start_of(init, **settings):
    """The patients that a new training lists of its initial weights only."""
    return patients_of_run(with_start({"init": str(init)} | settings), NEW)[PATIENTS]["start"]


def test_a_start_leaves_its_patients_to_the_new_card(tmp_path):
    """Patients of training, validation and the start. A patient of the training is not listed for the start again."""
    start = put(tmp_path / "first.safetensors", data=["x"], fold=2)
    settings = with_start({"init": start})
    assert settings["start"] == {
        "stage": "classification", "data": ["x"], "fold": 2, "seed": 0, PATIENTS: ["a", "b", "c", "e"],
    }  # fmt: skip
    card = patients_of_run(settings, NEW)
    assert card[PATIENTS] == {**NEW, "start": ["a", "c", "e"]}
    assert card["start"] == {"stage": "classification", "data": ["x"], "fold": 2, "seed": 0}
    assert learned_from(card) == ["a", "b", "c", "e", "n"]


def test_weights_did_not_learn_from_patients_that_were_only_measured():
    """A run that validates once, at its end, chooses nothing by its validation patients."""
    card = {PATIENTS: {"train": ["a"], "validation": ["b"], "test": ["c"], "start": ["d"]}, "epochs": 4}
    assert learned_from(card | {"validate_every": 1}) == ["a", "b", "d"]
    assert learned_from(card | {"validate_every": 4}) == ["a", "d"]


def test_a_card_that_does_not_say_where_its_training_started_lacks_patients():
    parts = {"train": ["a"], "validation": [], "test": []}
    assert learned_from({PATIENTS: {**parts, "start": ["b"]}}) == ["a", "b"]
    assert learned_from({PATIENTS: parts}) is None
    assert learned_from({PATIENTS: {**parts, "start": None}}) is None


def test_patients_are_sorted_and_listed_once():
    parts = {"train": ["b", "a", "b"], "validation": [], "test": ["d", "d"]}
    assert patients_of_run({"init": "imagenet"}, parts)[PATIENTS] == {
        "train": ["a", "b"], "validation": [], "test": ["d"], "start": [],
    }  # fmt: skip


def test_a_card_says_the_patients_of_its_training_and_of_all_before_it(phantom_set, tmp_path, monkeypatch):
    """Trained from a relative path, and the first weights are gone: three generations, of which one card is left."""
    monkeypatch.chdir(tmp_path)
    data = (str(phantom_set),)
    for name, init, fold in (
        ("a", "none", 1),
        ("b", "a/classifier.safetensors", 0),
        ("c", "b/classifier.safetensors", 0),
    ):
        card = train(classifier_config(*data, arch="mlp", fold=fold, epochs=2, init=init), tmp_path / name)
    assert json.loads((tmp_path / "c" / "classifier.json").read_text()) == card
    own, first = (load_partition(DataConfig(data, fold=fold, size=64)) for fold in (0, 1))
    listed = card["training"][PATIENTS]
    for part in ("train", "validation", "test"):
        assert listed[part] == sorted(set(hash_patients(getattr(own, part).samples)))
        assert len(listed[part]) == {"train": 12, "validation": 4, "test": 4}[part]
    other = set(hash_patients(first.train.samples + first.validation.samples))
    assert set(listed["start"]) == (other | set(listed["validation"])) - set(listed["train"])
    assert set(listed["test"]) <= set(listed["start"])  # which the first weights learned from
    assert card["training"]["start"]["init"] == "a/classifier.safetensors"
    assert PATIENTS not in card["training"]["start"]


def test_a_start_of_which_nothing_is_known(tmp_path, monkeypatch):
    """Its file is not there, holds other weights by now, lists no patients, or its card cannot be read."""
    monkeypatch.chdir(tmp_path)
    assert start_of("runs/first.safetensors") is None
    first = put(tmp_path / "first.safetensors")
    assert start_of(first) == ["a", "c", "e"]
    assert known_start({"init": first, "init_sha256": "0" * 64}) == {}
    assert start_of(put(tmp_path / "old.safetensors", hashes=None)) is None
    assert start_of(put(tmp_path / "unsure.safetensors", hashes=LISTED | {"start": None})) is None
    (tmp_path / "first.json").write_text("{")
    assert start_of(first) is None


def test_weights_of_other_programs_have_learned_from_no_patient(tmp_path):
    """ImageNet's have names, or no card of ours; the file may be gone when the training ends."""
    for init in ("imagenet", "none", "resnet50.a1_in1k", "resnet50-11ad3fa6.pth"):
        assert start_of(init) == []
    for name in ("imagenet.safetensors", "imagenet.pth"):
        (tmp_path / name).write_bytes(b"x")
        settings = with_start({"init": str(tmp_path / name)})
        (tmp_path / name).unlink()
        assert settings["start"] is None
        assert patients_of_run(settings, NEW)[PATIENTS]["start"] == []


def test_a_checkpoint_is_known_by_the_card_of_its_run(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"x")
    assert start_of(checkpoint) is None  # the run has not ended
    put(tmp_path / "classifier.safetensors", fold=3)
    assert with_start({"init": str(checkpoint)})["start"]["fold"] == 3
    assert start_of(checkpoint) == ["a", "c", "e"]


def test_a_run_that_continues_without_its_initial_weights_remembers_them(phantom_set, tmp_path):
    start = put(tmp_path / "first.safetensors", data=["x"], fold=4)
    config = ClassifierConfig(data=(str(phantom_set),), init=start)
    write_config(tmp_path / "run", config)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["start"]["fold"] == 4
    assert settings["start"][PATIENTS] == ["a", "b", "c", "e"]
    (tmp_path / "first.safetensors").unlink()
    write_config(tmp_path / "run", replace(config, workers=3))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == settings | {"workers": 3}
    put(tmp_path / "first.safetensors", data=["x"], fold=4, note="the card was written anew")
    assert changed_setting(settings, with_start(config)) == changed_setting(settings, plain_config(config)) == ""


def test_the_shipped_cards_list_the_patients_of_their_data_and_starts():
    cards = [json.loads(weights.with_suffix(".json").read_text()) for weights in (CLASSIFIER, SEGMENTER)]
    assert [card["schema_version"] for card in cards] == [CARD_SCHEMA] * 2
    one, two = (learned_from(card["training"]) for card in cards)
    assert set(two) < set(one)  # only stage one learned from pictures of unknown type
    assert [len(one), len(two)] == [1822, 1352]
    parts = [card["training"][PATIENTS] for card in cards]
    assert [len(part["start"]) for part in parts] == [262, 257]
    for part, learned in zip(parts, (one, two), strict=True):
        unseen = set(part["validation"]) - set(part["start"])
        assert len(unseen) > 20, "patients that neither the run nor its start has learned from"
        assert not unseen & set(learned)


@pytest.mark.real
@pytest.mark.parametrize("name", ["brisc", "figshare"])
def test_the_shipped_cards_know_the_patients_of_their_data(real, name):
    if not (real / name / "index.csv").is_file():
        pytest.skip(f"no {name}")
    rows = (real / name / "index.csv").read_text().splitlines()
    column = rows[0].split(",").index("patient")
    for weights in (CLASSIFIER, SEGMENTER):
        listed = learned_from(json.loads(weights.with_suffix(".json").read_text())["training"])
        assert {hash_id(row.split(",")[column]) for row in rows[1:]} <= set(listed)


def test_a_copy_that_cannot_be_is_refused(tmp_path):
    for start, reason in (({"fold": "0"}, "training.fold '0'"), ("first", "not a JSON object"), ({"start": 3}, "JSON")):
        with pytest.raises(InputError, match=reason):
            check_training({"fold": 0, "start": start}, tmp_path / "card.json")


A, B, C = ("A" * 24, "B" * 24, "C" * 24)  # hashes of pictures


def test_a_start_leaves_its_pictures_to_the_new_card(tmp_path):
    """Those that it and its own start learned from, without those of the new training."""
    start = put(tmp_path / "first.safetensors", **{PICTURES: {"train": A + B, "start": C}})
    settings = with_start({"init": start})
    assert settings["start"][PICTURES] == A + B + C
    card = patients_of_run(settings, NEW, B)
    assert card[PICTURES] == {"train": B, "start": A + C}
    assert PICTURES not in card["start"]
    assert pictures_learned_from(card) == B + A + C
    check_training(card, tmp_path / "card.json")


def test_pictures_that_no_card_lists_are_not_known(tmp_path):
    assert pictures_learned_from({}) is None
    older = with_start({"init": put(tmp_path / "older.safetensors")})
    assert PICTURES not in older["start"]
    assert patients_of_run(older, NEW, B)[PICTURES] == {"train": B, "start": None}
    assert patients_of_run({"init": "imagenet"}, NEW, B)[PICTURES] == {"train": B, "start": ""}
    assert patients_of_run({"init": str(tmp_path / "gone.safetensors")}, NEW, B)[PICTURES]["start"] is None
    assert PICTURES not in patients_of_run({"init": "imagenet"}, NEW)


def test_a_training_writes_its_pictures_and_older_weights_get_them_later(phantom_set, tmp_path):
    train(classifier_config(phantom_set, epochs=1), tmp_path / "run")
    weights = tmp_path / "run" / "classifier.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert len(card["training"][PICTURES]["train"]) == 24 * 24  # the slices of three folds
    older = card | {"training": {key: value for key, value in card["training"].items() if key != PICTURES}}
    weights.with_suffix(".json").write_text(json.dumps(older))
    said = []
    record_pictures(weights, [str(phantom_set)], [str(phantom_set)], said.append)
    again = json.loads(weights.with_suffix(".json").read_text())
    assert said == ["24 training slices, 24 by the card", "40 slices of the initial weights"]
    assert len(again["training"][PICTURES].pop("start")) == 24 * 16
    assert again["training"][PICTURES].pop("train") == card["training"][PICTURES]["train"]
    assert again | {"training": None} == card | {"training": None}


@pytest.mark.parametrize("weights", [CLASSIFIER, SEGMENTER])
def test_the_shipped_cards_list_their_pictures(weights):
    card = json.loads(weights.with_suffix(".json").read_text())
    check_training(card["training"], weights)
    pictures = card["training"][PICTURES]
    assert 0.95 * card["n_slices"]["train"] < len(pictures["train"]) / 24 <= card["n_slices"]["train"]
    assert len(pictures["start"]) > 24 * 1000  # fold 1 of BRISC and figshare, by way of version 0.1.0
