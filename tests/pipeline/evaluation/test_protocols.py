"""Which scans each protocol measures, and that they are the ones training has not seen."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from PIL import Image

from tests.scans.lgg import write_lgg_phantoms
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.divide import divide, write_index
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.evaluation.leaks import OTHER, SAME, UNSURE, kinship, leak_warnings
from tumorlens.pipeline.evaluation.protocols import find_protocol
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.selection import count_folds, select


@pytest.fixture(scope="module")
def lgg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lgg")
    write_lgg_phantoms(folder, patients=6, slices=5)
    return folder


@pytest.fixture
def bare(phantom_set, tmp_path):
    """Rewrites the phantoms' index with some of its columns only."""

    def write(*columns, name="bare.csv", rows=None):
        lines = [line.split(",") for line in (phantom_set / "index.csv").read_text().splitlines()]
        places = [lines[0].index(c) for c in columns]
        kept = [[row[i] for i in places] for row in lines]
        (tmp_path / name).write_text("\n".join(",".join(row) for row in kept[:rows]) + "\n")
        return f"{tmp_path / name}@{phantom_set}"

    return write


def names(samples):
    return {s.name for s in samples}


def request(data, stage="classification", **rest):
    return EvaluationRequest((str(data),), stage, **rest)


def card_of(*data, **training):
    return {"training": {"data": [str(d) for d in data], "split": "folds", "seed": 0, **training}}


def test_folds_of_the_data_are_those_of_training(phantom_set):
    for fold in range(5):
        trained = load_partition(DataConfig((str(phantom_set),), fold=fold, size=64))
        measured = select(request(phantom_set, protocol="p2", folds=(fold,)))
        assert measured.own_folds
        assert names(measured.samples) == names(trained.test.samples)
        assert not names(measured.samples) & names(trained.train.samples + trained.validation.samples)


@pytest.mark.parametrize("patients", ["named", "unknown"])
@pytest.mark.parametrize(("stage", "keep"), [("classification", bool), ("segmentation", has_truth)])
def test_made_folds_are_those_of_training(bare, stage, keep, patients):
    columns = ("image", "mask", "label") + (("patient",) if patients == "named" else ())
    data = bare(*columns)
    config = DataConfig((data,), fold=3, seed=5, size=64, duplicates="drop")
    trained = load_partition(config, keep=lambda s: bool(keep(s)))
    measured = select(request(data, stage, protocol="p2", folds=(3,), seed=5, size=64))
    assert not measured.own_folds
    assert names(measured.samples) == names(trained.test.samples)
    assert {s.patient for s in measured.samples} == {s.patient for s in trained.test.samples}
    others = select(request(data, stage, protocol="p2", folds=(3,), seed=6, size=64))
    assert names(others.samples) != names(trained.test.samples)
    assert count_folds(request(data, stage)) == 5


def test_all_folds_hold_every_scan_once(phantom_set):
    parts = select(request(phantom_set, protocol="p2", folds=())).parts
    assert list(parts) == [0, 1, 2, 3, 4]
    every = [s.name for part in parts.values() for s in part]
    assert len(every) == len(set(every)) == 40


def test_p1_measures_tumors_only(phantom_set):
    measured = select(request(phantom_set, protocol="p1", folds=(1,)))
    assert {s.label for s in measured.samples} == set(CLASSES[1:])
    assert len(measured.samples) == 6


def test_p3_measures_the_official_test_part(phantom_set, tmp_path):
    lines = (phantom_set / "index.csv").read_text().splitlines()
    rows = [f"{line},{'test' if i % 4 == 0 else 'train'}" for i, line in enumerate(lines[1:])]
    (tmp_path / "index.csv").write_text("\n".join([f"{lines[0]},official_split", *rows]))
    data = f"{tmp_path / 'index.csv'}@{phantom_set}"
    measured = select(request(data, protocol="p3"))
    assert len(measured.samples) == 10
    assert all(s.split == "test" for s in measured.samples)
    with pytest.raises(InputError, match="official split, and the data have no test part"):
        select(request(phantom_set, protocol="p3"))


def test_p4_takes_patients_of_an_lgg_folder(lgg, phantom_set):
    measured = select(request(lgg, "segmentation", protocol="p4", folds=(0, 2)))
    trained = load_partition(DataConfig((str(lgg),), fold=2, size=64, duplicates="drop"))
    assert names(measured.parts[2]) == names(trained.test.samples)
    assert all(s.patient.startswith("TCGA_PH_") and s.channel == 1 for s in measured.samples)
    with pytest.raises(InputError, match="protocol p4 needs an LGG folder"):
        select(request(phantom_set, "segmentation", protocol="p4"))
    with pytest.raises(InputError, match="p4 measures segmentation, not classification"):
        select(request(lgg, protocol="p4"))


def test_without_a_protocol_all_scans_are_one_set(phantom_set):
    measured = select(request(phantom_set))
    assert list(measured.parts) == [None]
    assert len(measured.samples) == 40
    assert list(select(request(phantom_set, folds=(2,))).parts) == [2]


def test_the_fold_is_the_cards_unless_another_is_asked_for(phantom_set):
    card = card_of(phantom_set, fold=3)
    measured = select(request(phantom_set, protocol="p2"), card)
    assert list(measured.parts) == [3]
    assert "fold 3 of 5, the test fold on the weights' card" in measured.choice
    assert list(select(request(phantom_set, protocol="p2", folds=(1,)), card).parts) == [1]


@pytest.mark.parametrize("protocol", ["p1", "p2"])
def test_data_that_the_weights_were_not_trained_on_are_one_set(phantom_set, bare, protocol):
    """So are those of another index, other made folds, an official split, and weights that tell nothing."""
    own, made = request(phantom_set, protocol=protocol), request(bare("image", "label", "patient"), protocol=protocol)
    strangers = [(own, card_of("a/other", fold=3)), (own, card_of(phantom_set, fold=3, split="official")), (own, {})]
    strangers += [(own, card_of(f"new.csv@{phantom_set}", fold=3)), (own, None)]
    strangers += [(made, card_of(*made.data, fold=3, seed=7)), (made, card_of(*made.data, "and/more", fold=3))]
    for asked, card in strangers:
        measured = select(asked, card)
        assert list(measured.parts) == [None]
        assert len(measured.samples) == {"p1": 30, "p2": 40}[protocol]
        assert "all scans as one set, as the weights' card names no test fold of these data" in measured.choice
        assert "folds by patient" not in measured.protocol.title
    assert list(select(made, card_of(*made.data, fold=3, seed=0)).parts) == [3]


def test_p4_takes_an_index_that_says_the_channel(lgg, phantom_set, tmp_path):
    index = tmp_path / "lgg.csv"
    write_index(divide(lgg, folds=3), index)
    source = f"{index}@{lgg}"
    measured = select(request(source, "segmentation", protocol="p4", folds=(1,)))
    assert measured.own_folds
    assert {s.channel for s in measured.samples} == {1}
    assert names(measured.samples) < names(load_samples(lgg))
    table = [line.rsplit(",", 1)[0] for line in index.read_text().splitlines()]
    index.write_text("\n".join(table) + "\n")
    message = "protocol p4 measures one sequence, but the index does not say which channel"
    with pytest.raises(InputError, match=message):
        select(request(source, "segmentation", protocol="p4"))
    assert select(request(source, "segmentation", protocol="p4", channel=1)).samples[0].channel == 1
    shutil.copytree(lgg, tmp_path / "set")
    (tmp_path / "set" / "index.csv").write_text(index.read_text())  # an LGG folder, read by its index all the same
    with pytest.raises(InputError, match=message):
        select(request(tmp_path / "set", "segmentation", protocol="p4"))
    for file in (tmp_path / "set").rglob("*.tif"):
        Image.open(file).convert("L").save(file)
    assert select(request(tmp_path / "set", "segmentation", protocol="p4")).samples[0].channel is None


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"folds": (7,)}, "no fold 7, the data have folds 0 to 4"),
        ({"protocol": "p9"}, "protocol 'p9' is none of p1, p2, p3, p4"),
        ({"protocol": "p3", "folds": (1,)}, "protocol p3 has no folds"),
    ],
)
def test_wrong_wishes_are_named(phantom_set, wish, message):
    with pytest.raises(InputError, match=message):
        select(request(phantom_set, **wish))


def test_data_without_labels_or_masks(phantom_set, bare, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for name in ("images", "masks"):
        (unlabelled / name).symlink_to(phantom_set / name)
    with pytest.raises(InputError, match="no labelled scan"):
        select(request(unlabelled))
    with pytest.raises(InputError, match="p2 needs labels"):
        select(request(unlabelled, "segmentation", protocol="p2"))
    assert len(select(request(unlabelled, "segmentation")).samples) == 40
    no_masks = bare("image", "label", "patient")
    with pytest.raises(InputError, match="no scan of a tumor has a mask"):
        select(request(no_masks, "segmentation"))
    assert len(select(request(no_masks, "pipeline")).samples) == 40


def test_slices_of_unknown_patients_are_told(bare):
    notes = select(request(bare("image", "label"))).notes
    assert any("do not name every patient" in note for note in notes)


CARD = {"training": {"fold": 0, "split": "folds", "data": ["elsewhere/phantoms"], "seed": 0, "init": "none"}}


def warnings(selection, asked, measured, /, **changed):
    card = {"training": CARD["training"] | changed}
    return leak_warnings("classification", card, measured, selection, asked)


def test_warnings_say_what_the_weights_have_seen(phantom_set):
    asked = request(phantom_set, protocol="p2", folds=())
    measured = select(asked)
    same = {"data": [f"moved/{phantom_set.name}"]}
    assert warnings(measured, asked, 0, **same) == []
    assert "patients of fold 1 chose the epoch" in warnings(measured, asked, 1, **same)[0]
    for fold in (2, 3, 4):
        assert f"patients of fold {fold} trained the weights" in warnings(measured, asked, fold, **same)[0]
    assert "patients of fold 0 chose" in warnings(measured, asked, 0, fold=4, **same)[0]
    assert "official split" in warnings(measured, asked, 0, split="official", **same)[0]
    for fold in range(5):
        assert warnings(measured, asked, fold) == []  # other data, whose fold numbers mean nothing here
    assert "does not say" in leak_warnings("classification", {}, 0, measured, asked)[0]


def test_warnings_where_folds_are_made(bare):
    data = bare("image", "label", "patient")
    asked = request(data, protocol="p2", folds=(0,))
    measured = select(asked)
    same = {"data": ["moved/bare.csv@" + data.rpartition("@")[2]]}
    assert warnings(measured, asked, 0, **same) == []
    assert "another --seed" in warnings(measured, asked, 0, seed=1, **same)[0]
    assert "another --data" in warnings(measured, asked, 0, data=["other.csv"])[0]


def test_warnings_without_folds(phantom_set):
    asked = request(phantom_set)
    measured = select(asked)
    assert warnings(measured, asked, None) == []
    assert "only the test part" in warnings(measured, asked, None, data=[f"x/{phantom_set.name}"])[0]
    official = replace(measured, protocol=find_protocol("p3", "classification", None))
    same = {"data": [f"x/{phantom_set.name}"]}
    assert "not trained with --split official" in warnings(official, asked, None, **same)[0]
    assert warnings(official, asked, None, split="official", **same) == []
    assert warnings(official, asked, None) == []
    counted = {"training": CARD["training"] | same | {"split": "official"}, "leaking_test_slices": 7}
    (text,) = leak_warnings("classification", counted, None, official, asked)
    assert text.startswith("leaks: 7 of the test slices of the classification weights are copies of slices that they")


def test_another_index_of_the_same_pictures_is_told(phantom_set, tmp_path):
    """Divided anew, fold 0 holds others; whether the weights have seen them, nobody knows."""
    write_index(divide(phantom_set, folds=4, seed=9), tmp_path / "again.csv")
    write_index(divide(phantom_set, folds=4, seed=9), tmp_path / "index.csv")
    for name in ("again.csv", "index.csv"):
        asked = request(f"{tmp_path / name}@{phantom_set}", protocol="p2", folds=(0,))
        (text,) = warnings(select(asked), asked, 0, data=[str(phantom_set)])
        assert text.startswith("it is not known whether the classification weights have seen these patients")
        assert f"trained on {phantom_set.name}, and {name}@{phantom_set.name} may hold" in text
        asked = request(asked.data[0])
        assert "it is not known" in warnings(select(asked), asked, None, data=[str(phantom_set)])[0]
    shutil.copytree(phantom_set, tmp_path / "set")
    for name in ("a.csv", "b.csv"):
        (tmp_path / "set" / "index.csv").rename(tmp_path / "set" / name)
        shutil.copy(tmp_path / "set" / name, tmp_path / "set" / "index.csv")
    asked = request(tmp_path / "set" / "b.csv", protocol="p2", folds=(0,))
    assert "it is not known" in warnings(select(asked), asked, 0, data=[str(tmp_path / "set" / "a.csv")])[0]
    assert "it is not known" in warnings(select(asked), asked, 0, data=["a.csv"])[0]
    assert warnings(select(asked), asked, 0, data=["elsewhere/set/b.csv"]) == []


@pytest.mark.parametrize(
    ("source", "trained", "kin"),
    [
        ("a/set", "b/set", SAME),
        ("a/set/index.csv", "b/set", SAME),
        ("a/set/index.csv@a/set", "b/set/", SAME),
        ("a/set/mine.csv", "x/mine.csv@b/set", SAME),
        ("new/index.csv@a/set", "b/set", UNSURE),
        ("a/set/one.csv", "a/set/two.csv", UNSURE),
        ("a/set/one.csv", "one.csv", UNSURE),
        ("a/set", "b/other", OTHER),
        ("a/set/index.csv", "b/other/index.csv", OTHER),
        ("datasets/figshare", "/data/BRISC", SAME),
        ("datasets/brisc", "figshare/index.csv", SAME),
        ("folds.csv@figshare", "brisc", UNSURE),
    ],
)
def test_sources_are_compared_by_folder_and_index(source, trained, kin):
    assert kinship(source, [trained]) == kin
    assert kinship(source, ["yet/another", trained]) == kin
    assert kinship(source, []) == UNSURE
