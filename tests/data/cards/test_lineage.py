"""What first weights had learnt from travels with what starts from them, and is judged as they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from tests.pipeline.evaluation.test_evaluate import TINY, quiet
from tests.pipeline.evaluation.test_protocols import CARD, request
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.train import train_classifier
from tumorlens.data.cards.card import CARD_SCHEMA, check_training
from tumorlens.data.cards.lineage import known_start
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.training.run_folder import changed_setting, plain_config, with_start, write_config
from tumorlens.pipeline.evaluation.leaks import leak_warnings
from tumorlens.pipeline.evaluation.protocols import find_protocol
from tumorlens.pipeline.evaluation.selection import select
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

WHO = "from which the classification weights started,"


def put(path, **training):
    """A weight file with a card, as a training run leaves it; returns its name for ``init``."""
    stage = training.pop("stage", "classification")
    save_weights({"a": torch.zeros(1)}, path, {"stage": stage, "training": {"fold": 0, "seed": 0} | training})
    return str(path)


def told(asked, measured, start, selection=None, **changed):
    """Warnings of weights that learnt from elsewhere and started from a file; their card is that of a new run."""
    training = with_start(CARD["training"] | {"init": start} | changed)
    return leak_warnings("classification", {"training": training}, measured, selection or select(asked), asked)


def test_a_start_from_weights_that_saw_the_patients_is_told(phantom_set, tmp_path):
    start = put(tmp_path / "first.safetensors", data=[str(phantom_set)], fold=2)
    asked = request(phantom_set, protocol="p2", folds=(0,))
    (text,) = told(asked, 0, start)
    assert f"the weights {start}, {WHO} have test fold 2: the patients of fold 0 trained the weights" in text
    asked = request(phantom_set, protocol="p2", folds=(2,))
    assert told(asked, 2, start) == []
    put(tmp_path / "first.safetensors", data=[str(phantom_set)], split="all")
    assert f"{WHO} were trained on all patients of {phantom_set.name}" in told(asked, 2, start)[0]


def test_what_holds_for_weights_is_not_said_again_of_their_start(phantom_set, tmp_path):
    start = put(tmp_path / "first.safetensors", data=[str(phantom_set)], fold=2)
    asked = request(phantom_set, protocol="p2", folds=(0,))
    (text,) = told(asked, 0, start, data=[str(phantom_set)], fold=2)
    assert text.startswith("the classification weights have test fold 2")


def test_a_start_where_folds_are_made(phantom_set, tmp_path):
    asked = request(phantom_set, protocol="p2", folds=(2,))
    made = replace(select(asked), own_folds=False)
    not_common = replace(made, known=(*made.known, replace(made.known[0], label="", fold=None)))
    for seed, stage, selection, reason in (
        (1, "classification", made, "another --seed: fold numbers"),
        (0, "segmentation", not_common, "another choice of scans: fold numbers"),
        (0, "segmentation", made, None),
    ):
        first = put(tmp_path / "first.safetensors", stage=stage, data=[str(phantom_set)], fold=2, seed=seed)
        said = told(asked, 2, first, selection)
        assert said == [] if reason is None else reason in said[0]


def test_a_start_from_an_official_split_reaches_into_every_fold(phantom_set, tmp_path):
    """Also where all scans are one set, and none is measured by folds."""
    start = put(tmp_path / "first.safetensors", data=[str(phantom_set)], split="official")
    asked = request(phantom_set, protocol="p2", folds=(0,))
    assert f"{WHO} were trained on an official split" in told(asked, 0, start)[0]
    asked = request(phantom_set)
    assert f"{WHO} were trained on {phantom_set.name}, too: only the test part" in told(asked, None, start)[0]
    official = replace(select(asked), protocol=find_protocol("p3", "classification", None))
    assert told(asked, None, start, official) == []
    put(tmp_path / "first.safetensors", data=[str(phantom_set)], split="folds")
    assert f"{WHO} were not trained with --split official" in told(asked, None, start, official)[0]


def test_the_copy_holds_where_the_file_is_gone(phantom_set, tmp_path, monkeypatch):
    """Trained from a relative path and measured elsewhere: three generations, of which one card is left."""
    monkeypatch.chdir(tmp_path)
    data = (str(phantom_set),)
    for name, init, fold in (
        ("a", "none", 1),
        ("b", "a/classifier.safetensors", 0),
        ("c", "b/classifier.safetensors", 0),
    ):
        config = ClassifierConfig(data=data, arch="mlp", fold=fold, **(TINY | {"init": init}))
        card = train_classifier(config, tmp_path / name, progress=False, say=quiet)
    assert json.loads((tmp_path / "c" / "classifier.json").read_text()) == card
    first = card["training"]["start"]["start"]
    assert first["init"] == "none" and first["start"] is None and first["fold"] == 1 and first["data"] == list(data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = request(phantom_set, protocol="p2", folds=(0,))
    (text,) = leak_warnings("classification", card, 0, select(asked), asked)
    assert "the weights a/classifier.safetensors, from which the weights b/classifier.safetensors started," in text
    assert "have test fold 1: the patients of fold 0 trained the weights" in text


def test_a_start_of_which_nothing_is_known_is_told(phantom_set, tmp_path, monkeypatch):
    """A card from before there were copies, whose first weights are not there, or are others by now."""
    monkeypatch.chdir(tmp_path)
    asked = request(phantom_set, protocol="p2", folds=(0,))
    card = {"training": CARD["training"] | {"init": "runs/first.safetensors"}}
    text = f"it is not known whether the weights runs/first.safetensors, {WHO} have seen these scans"
    for measured, selection in ((0, select(asked)), (None, select(request(phantom_set)))):
        (said,) = leak_warnings("classification", card, measured, selection, asked)
        assert said.startswith(text)
    (tmp_path / "runs").mkdir()
    put(tmp_path / "runs" / "first.safetensors", data=[str(phantom_set)])
    assert leak_warnings("classification", card, 0, select(asked), asked) == []
    card["training"]["init_sha256"] = "0" * 64
    assert leak_warnings("classification", card, 0, select(asked), asked)[0].startswith(text)
    (tmp_path / "runs" / "first.json").write_text("{")
    del card["training"]["init_sha256"]
    assert leak_warnings("classification", card, 0, select(asked), asked)[0].startswith(text)


def test_weights_of_other_programs_are_no_leak(phantom_set, tmp_path):
    """ImageNet's have names, or no card of ours; the file may be gone when the weights are measured."""
    asked = request(phantom_set, protocol="p2", folds=(0,))
    for init in ("imagenet", "none", "resnet50.a1_in1k", "resnet50-11ad3fa6.pth"):
        assert told(asked, 0, init) == []
    for name in ("imagenet.safetensors", "imagenet.pth"):
        (tmp_path / name).write_bytes(b"x")
        training = with_start(CARD["training"] | {"init": str(tmp_path / name)})
        (tmp_path / name).unlink()
        assert training["start"] is None
        assert leak_warnings("classification", {"training": training}, 0, select(asked), asked) == []


def test_a_checkpoint_is_known_by_its_run(phantom_set, tmp_path):
    write_config(tmp_path, ClassifierConfig(data=(str(phantom_set),), fold=3, init="none"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"x")
    asked = request(phantom_set, protocol="p2", folds=(0,))
    assert f"{WHO} have test fold 3" in told(asked, 0, str(tmp_path / "checkpoints" / "best.ckpt"))[0]


def test_weights_that_were_retrained_in_turns_end(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    put(first, data=["x"], init=str(second))
    put(second, data=["y"], init=str(first))
    start = known_start({"init": str(first)})["start"]
    assert (start["data"], start["start"]["data"], start["start"]["start"]) == (["x"], ["y"], None)


def test_a_run_that_goes_on_without_its_first_weights_remembers_them(phantom_set, tmp_path):
    start = put(tmp_path / "first.safetensors", data=["x"], fold=4)
    config = ClassifierConfig(data=(str(phantom_set),), init=start)
    write_config(tmp_path / "run", config)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["start"]["fold"] == 4
    (tmp_path / "first.safetensors").unlink()
    write_config(tmp_path / "run", replace(config, workers=3))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == kept | {"workers": 3}
    put(tmp_path / "first.safetensors", data=["x"], fold=4, note="the card was written anew")
    assert changed_setting(kept, with_start(config)) == changed_setting(kept, plain_config(config)) == ""


def test_the_shipped_weights_know_their_starts(phantom_set):
    asked = request(phantom_set)
    for stage, weights in (("classification", CLASSIFIER), ("segmentation", SEGMENTER)):
        card = json.loads(weights.with_suffix(".json").read_text())
        assert card["schema_version"] == CARD_SCHEMA and "start" in card["training"]
        assert leak_warnings(stage, card, None, select(asked), replace(asked, stage=stage)) == []


def test_a_copy_that_cannot_be_is_refused(tmp_path):
    for start, reason in (({"fold": "0"}, "training.fold '0'"), ("first", "no JSON object"), ({"start": 3}, "no JSON")):
        with pytest.raises(InputError, match=reason):
            check_training({"fold": 0, "start": start}, tmp_path / "card.json")
