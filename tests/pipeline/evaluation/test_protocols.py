"""Which scans each protocol measures, and that they are the ones training has not seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.scans.lgg import write_lgg_phantoms
from tumorlens.data.cards.card import PARTS
from tumorlens.data.cards.lineage import patients_of_run
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.divide import divide, write_index
from tumorlens.data.labels import CLASSES, TUMOR, ClassList
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.evaluation.protocols import PROTOCOLS
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

    def write(*columns, name="bare.csv", rename=""):
        header, *lines = [line.split(",") for line in (phantom_set / "index.csv").read_text().splitlines()]
        places = [header.index(c) for c in columns]
        for row in lines:
            row[header.index("patient")] = rename + row[header.index("patient")]
        (tmp_path / name).write_text("\n".join(",".join(row[i] for i in places) for row in [header, *lines]) + "\n")
        return f"{tmp_path / name}@{phantom_set}"

    return write


def names(samples):
    return {s.name for s in samples}


def request(data, stage="classification", **rest):
    return EvaluationRequest((str(data),), stage, **rest)


def card_of(data, fold, seed=0, trained="folds", **training):
    """The card of weights that were trained on a fold of some data."""
    parts = load_partition(DataConfig((str(data),), fold=fold, seed=seed, size=64, split=trained))
    settings = {"fold": fold, "split": trained, "seed": seed, "init": "none"} | training
    hashes = {part: hash_patients(getattr(parts, part).samples) for part in PARTS}
    return {"training": patients_of_run(settings, hashes)}


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


@pytest.mark.parametrize("on_card", [False, True])
def test_a_classifier_of_yes_and_no_is_measured_on_the_folds_of_its_training(bare, on_card):
    """Training makes its folds from the labels of the data, which may be types."""
    data = bare("image", "label", "patient")
    trained = load_partition(DataConfig((data,), fold=3, size=64))
    card = card_of(data, 3) | {"classes": ["no_tumor", "tumor"]}
    measured = select(request(data, folds=None if on_card else (3,), protocol="p2", size=64), card)
    assert list(measured.parts) == [3]
    assert names(measured.samples) == names(trained.test.samples)
    assert {s.label for s in measured.samples} == {"no_tumor", TUMOR}
    assert not any("no scan shows" in note for note in measured.notes)


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


def test_the_fold_is_that_of_the_card_unless_another_is_given(phantom_set, tmp_path):
    """Whatever the data's folder is called by now."""
    card = card_of(phantom_set, fold=3)
    shutil.copytree(phantom_set, tmp_path / "renamed")
    for data in (phantom_set, tmp_path / "renamed"):
        measured = select(request(data, protocol="p2"), card)
        assert list(measured.parts) == [3]
        assert "fold 3 of 5, the test fold on the weights' card" in measured.choice
    assert list(select(request(phantom_set, protocol="p2", folds=(1,)), card).parts) == [1]


def test_the_held_out_fold_is_measured_where_nothing_tests(phantom_set, bare):
    """Weights of ``--split holdout``: one fold validates, all others teach."""
    made = bare("image", "label", "patient")
    for data, protocol in ((phantom_set, "p2"), (made, "p2"), (made, "p7")):
        held_out = card_of(data, 3, trained="holdout")
        measured = select(request(data, protocol=protocol, size=64), held_out)
        assert list(measured.parts) == [3]
        assert "fold 3 of 5, the held-out fold on the weights' card" in measured.choice
        train, validation = (held_out["training"]["patient_hashes"][part] for part in ("train", "validation"))
        assert set(hash_patients(measured.samples)) == set(validation) and not set(validation) & set(train)
    tested = card_of(phantom_set, 3)
    tested["training"]["split"] = "holdout"  # its fold 4 validated, and its fold 3 was not held out
    assert list(select(request(phantom_set, protocol="p2"), tested).parts) == [None]


def relabeled(bare, phantom_set, tmp_path, column="", value=""):
    """An index of the phantoms whose gliomas have no known type, with one more column."""
    index = Path(bare("image", "label", "patient", "fold").split("@")[0])
    header, *lines = index.read_text().replace(",glioma,", ",yes,").splitlines()
    extra = [f",{value}" if column else ""] * len(lines)
    table = [header + (f",{column}" if column else ""), *map("".join, zip(lines, extra, strict=True))]
    (tmp_path / "relabeled.csv").write_text("\n".join(table) + "\n")
    return f"{tmp_path / 'relabeled.csv'}@{phantom_set}"


def test_tumors_of_unknown_type_are_measured_unless_the_type_is_asked_for(bare, phantom_set, tmp_path):
    data = relabeled(bare, phantom_set, tmp_path)
    everything = select(request(data, protocol="p2", folds=()))
    assert sum(s.label == TUMOR for s in everything.samples) == 10
    assert any("they count for presence, not for the type" in note for note in everything.notes)
    types = select(request(data, protocol="p1", folds=()))
    assert {s.label for s in types.samples} == {"meningioma", "pituitary"}
    assert "tumors of unknown type were left out" in types.notes


def test_p5_names_the_source_and_takes_it_whole(phantom_set, bare):
    measured = select(
        request(bare("image", "label", "patient", name="clinic.csv"), protocol="p5"), card_of(phantom_set, 0)
    )
    assert measured.protocol.title == "P5: leave one source out: clinic"
    assert list(measured.parts) == [None] and len(measured.samples) == 40
    with pytest.raises(InputError, match="protocol p5 has no folds"):
        select(request(phantom_set, protocol="p5", folds=(0,)))


def test_p6_needs_sequences(bare, phantom_set, tmp_path):
    with pytest.raises(InputError, match="protocol p6 needs the sequence of the scans; give an index with a column"):
        select(request(phantom_set, protocol="p6"))
    data = relabeled(bare, phantom_set, tmp_path, "sequence", "flair")
    measured = select(request(data, protocol="p6", folds=(1, 2)))
    assert list(measured.parts) == [1, 2]
    assert {s.sequence for s in measured.samples} == {"flair"}


@pytest.mark.parametrize("protocol", ["p2", "p7"])
def test_a_healthy_scan_is_named_where_the_classifier_has_no_gate(phantom_set, protocol):
    card = {"classes": ["glioma", "meningioma", "pituitary"]}
    with pytest.raises(InputError, match=r"\.png: the label no_tumor is not one of the classes glioma, .*; give --map"):
        select(request(phantom_set, protocol=protocol, folds=(1,)), card)


def test_a_title_counts_the_answers_of_the_classifier():
    """The shipped types without a gate have the names of the shipped classes, and one answer less."""
    found = [PROTOCOLS["p2"].of_classes(ClassList.of_labels(labels)).title for labels in (CLASSES, CLASSES[1:])]
    assert [title.split(" (")[1].split(")")[0] for title in found] == ["four classes", "3 classes"]


def test_a_type_that_the_classifier_lacks_does_not_matter_to_presence(phantom_set):
    measured = select(request(phantom_set, protocol="p7", folds=(1,)), {"classes": ["no_tumor", "zebra", "ant"]})
    assert {s.label for s in measured.samples} == {"no_tumor", TUMOR}


def test_p7_asks_for_presence_only(phantom_set):
    measured = select(request(phantom_set, protocol="p7", folds=(1,)))
    assert {s.label for s in measured.samples} == {"no_tumor", TUMOR}
    assert names(measured.samples) == names(select(request(phantom_set, protocol="p2", folds=(1,))).samples)
    assert any("figures of the classes are left out" in note for note in measured.notes)
    with pytest.raises(InputError, match="p7 measures classification and pipeline, not segmentation"):
        select(request(phantom_set, "segmentation", protocol="p7"))


@pytest.mark.parametrize("protocol", ["p1", "p2"])
def test_data_that_the_weights_were_not_tested_on_are_one_set(phantom_set, bare, tmp_path, protocol):
    """So are those with other folds, an official split, and weights whose card lists no patients."""
    own, made = request(phantom_set, protocol=protocol), request(bare("image", "label", "patient"), protocol=protocol)
    write_index(divide(phantom_set, folds=5, seed=9), tmp_path / "new.csv")
    other = bare("image", "label", "patient", "fold", name="others.csv", rename="of-another-set-")
    strangers = [(own, card_of(other, fold=3)), (own, card_of(phantom_set, fold=3, split="official"))]
    strangers += [(own, {}), (own, None), (own, {"training": {"fold": 3, "split": "folds"}})]
    strangers += [(own, card_of(f"{tmp_path / 'new.csv'}@{phantom_set}", fold=3))]
    strangers += [(made, card_of(*made.data, fold=3, seed=7)), (made, card_of(other, fold=3))]
    for asked, card in strangers:
        measured = select(asked, card)
        assert list(measured.parts) == [None]
        assert len(measured.samples) == {"p1": 30, "p2": 40}[protocol]
        assert (
            "all scans as one set, as the weights' card names no test or held-out fold of these data" in measured.choice
        )
        assert "folds by patient" not in measured.protocol.title
    assert list(select(made, card_of(*made.data, fold=3, seed=0)).parts) == [3]


def test_p4_takes_an_index_with_a_channel(lgg, phantom_set, tmp_path):
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
        ({"protocol": "p9"}, "protocol 'p9' is not one of p1, p2, p3, p4, p5, p6, p7"),
        ({"protocol": "p3", "folds": (1,)}, "protocol p3 has no folds"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(phantom_set, wish, message):
    with pytest.raises(InputError, match=message):
        select(request(phantom_set, **wish))


def test_data_without_labels_or_masks(phantom_set, bare, tmp_path):
    unlabeled = tmp_path / "unlabeled"
    unlabeled.mkdir()
    for name in ("images", "masks"):
        (unlabeled / name).symlink_to(phantom_set / name)
    for stage in ("classification", "segmentation", "pipeline"):
        labels = [sample.label for sample in select(request(unlabeled, stage)).samples]
        assert (labels.count("tumor"), labels.count("no_tumor")) == (30, 10)  # by the masks
    for mask in (tmp_path / "one" / "masks", tmp_path / "one" / "images"):
        mask.mkdir(parents=True)
    (tmp_path / "one" / "masks" / "0_0.png").symlink_to(phantom_set / "masks" / "0_0.png")
    for name in ("0_0.png", "1_0.png"):
        (tmp_path / "one" / "images" / name).symlink_to(phantom_set / "images" / name)
    selection = select(request(tmp_path / "one", "pipeline"))
    assert [sample.image.name for sample in selection.samples] == ["0_0.png"]
    assert selection.notes[0] == "1 slices with neither a label nor a mask were left out: their truth is not known"
    no_masks = bare("image", "label", "patient")
    with pytest.raises(InputError, match="no scan of a tumor has a mask"):
        select(request(no_masks, "segmentation"))
    assert len(select(request(no_masks, "pipeline")).samples) == 40


def test_slices_of_unknown_patients_are_noted(bare):
    notes = select(request(bare("image", "label"))).notes
    assert any("do not name every patient" in note for note in notes)
