"""Warnings count the measured patients that the weights, or their initial weights, have learned from."""

from __future__ import annotations

import shutil

import pytest

from tests.pipeline.evaluation.test_protocols import card_of, request
from tumorlens.data.datasets.load import load_samples
from tumorlens.pipeline.evaluation.leaks import copy_warning, leak_warnings, measured_patients
from tumorlens.pipeline.evaluation.selection import select

WEIGHTS = "the classification weights"


@pytest.fixture(scope="module")
def card(phantom_set):
    """Tested on fold 0, validated on fold 1, trained on folds 2 to 4."""
    return card_of(phantom_set, fold=0)


def patients_of(data, fold=None):
    samples = load_samples(data)
    return measured_patients([s for s in samples if fold in (None, s.fold)])


def test_each_fold_is_compared_with_the_card(phantom_set, card):
    for fold in range(5):
        warnings = leak_warnings("classification", card, patients_of(phantom_set, fold), f"of fold {fold}")
        if fold == 0:
            assert warnings == []
        elif fold == 1:
            assert warnings == [
                f"the epoch and the operating point of {WEIGHTS} were chosen on 4 of the 4 patients of fold 1"
            ]
        else:
            assert warnings == [f"{WEIGHTS} have learned from 4 of the 4 patients of fold {fold}"]


def test_all_scans_as_one_set_are_counted(phantom_set, card):
    assert leak_warnings("classification", card, patients_of(phantom_set)) == [
        f"{WEIGHTS} have learned from 12 of the 20 patients measured",
        f"the epoch and the operating point of {WEIGHTS} were chosen on 4 of the 20 patients measured",
    ]


def test_initial_weights_count_after_the_weights_themselves(phantom_set, card):
    patients = patients_of(phantom_set)
    hashes = card["training"]["patient_hashes"]
    start = hashes["test"][:3] + hashes["validation"][:1] + hashes["train"]
    both = {"training": card["training"] | {"patient_hashes": hashes | {"start": start}}}
    assert leak_warnings("classification", both, patients) == [
        f"{WEIGHTS} have learned from 12 of the 20 patients measured",
        f"{WEIGHTS} started from weights that have learned from 4 of the 20 patients measured",
        f"the epoch and the operating point of {WEIGHTS} were chosen on 3 of the 20 patients measured",
    ]


def test_what_a_card_does_not_list_cannot_be_checked(phantom_set, card):
    patients = patients_of(phantom_set, 0)
    for old in ({}, {"training": None}, {"training": {"fold": 0, "data": [str(phantom_set)]}}):
        (text,) = leak_warnings("classification", old, patients)
        assert text == (
            f"the card of {WEIGHTS} does not list the patients that they learned from, so it cannot be checked whether "
            "they have seen the measured patients"
        )
    hashes = card["training"]["patient_hashes"] | {"start": None}
    unknown = {"training": card["training"] | {"init": "runs/first.ckpt", "patient_hashes": hashes}}
    (text,) = leak_warnings("classification", unknown, patients)
    assert "does not list the patients that their initial weights (runs/first.ckpt) learned from" in text


def test_patients_are_recognised_in_a_renamed_folder_and_by_another_index(phantom_set, card, tmp_path):
    """Also pictures without a patient, by their content, as long as the weights learned without one, too."""
    shutil.copytree(phantom_set, tmp_path / "renamed")
    assert "12 of the 20" in leak_warnings("classification", card, patients_of(tmp_path / "renamed"))[0]
    lines = [line.split(",") for line in (phantom_set / "index.csv").read_text().splitlines()]
    (tmp_path / "renamed" / "index.csv").write_text("\n".join(f"{row[0]},{row[2]}" for row in lines) + "\n")
    unnamed = card_of(tmp_path / "renamed", fold=0)
    for number, picture in enumerate(sorted((tmp_path / "renamed" / "images").iterdir())):
        picture.rename(picture.with_name(f"new-{number}.png"))
    (tmp_path / "renamed" / "index.csv").unlink()
    shutil.rmtree(tmp_path / "renamed" / "masks")
    (tmp_path / "renamed" / "images").rename(tmp_path / "renamed" / "glioma")
    patients = patients_of(tmp_path / "renamed")
    learned, chosen = (len(unnamed["training"]["patient_hashes"][part]) for part in ("train", "validation"))
    assert leak_warnings("classification", unnamed, patients)[0].endswith(f"{learned} of the 40 patients measured")
    assert leak_warnings("classification", unnamed, patients)[1].endswith(f"{chosen} of the 40 patients measured")
    assert leak_warnings("classification", card, patients) == []


def test_copies_across_an_official_split_are_those_that_training_counted(phantom_set, card):
    counted = card | {"leaking_test_slices": 7}
    (text,) = copy_warning("classification", counted, patients_of(phantom_set, 0))
    assert text == (
        f"leaks: 7 of the test slices of {WEIGHTS} are copies of slices that they learned from, or of such patients"
    )
    assert copy_warning("classification", counted, patients_of(phantom_set, 2)) == []
    assert copy_warning("classification", card, patients_of(phantom_set, 0)) == []


def test_made_folds_of_another_seed_are_counted(phantom_set, tmp_path):
    lines = [line.rsplit(",", 1)[0] for line in (phantom_set / "index.csv").read_text().splitlines()]
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    data = f"{tmp_path / 'index.csv'}@{phantom_set}"
    card = card_of(data, fold=0)
    for seed, clean in ((0, True), (1, False)):
        measured = select(request(data, protocol="p2", folds=(0,), seed=seed))
        assert (leak_warnings("classification", card, measured_patients(measured.samples)) == []) == clean
