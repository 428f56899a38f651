"""The pipeline's figures: what counts as a hit, a miss and a false mask, and that patients are what is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.datasets import load_samples
from data.partition import DataConfig, load_partition
from data.phantom import phantom_slice
from pipeline.evaluate import Case, dice, evaluate_pipeline, main, summarise
from pipeline.evaluate import test_samples as samples_of_fold


def case(patient, label, guess, score, free=0, marked=0, volume=False):
    return Case("x", patient, volume, label, guess, score, free, marked)


def test_dice_of_empty_masks_is_told():
    empty, full = np.zeros((3, 3)), np.ones((3, 3))
    assert (dice(empty, empty), dice(empty, full), dice(full, empty), dice(full, full)) == (1, 0, 0, 1)
    assert dice(np.eye(3), full) == pytest.approx(2 * 3 / 12)


def test_figures_count_misses_and_false_masks():
    cases = [
        case("a", "glioma", "glioma", 0.8),
        case("a", "glioma", "no_tumor", 0.0),
        case("b", "meningioma", "glioma", 0.6),
        case("c", "no_tumor", "no_tumor", 1.0, 1, 0),
        case("d", "no_tumor", "pituitary", 0.0, 1, 1),
        case("e", "glioma", "glioma", 0.5, 10, 2, volume=True),
    ]
    figures = summarise(cases)
    slices = figures["slices"]
    assert (slices["n"], slices["n_patients"], slices["n_tumor_free_slices"]) == (5, 4, 2)
    assert slices["accuracy"]["value"] == pytest.approx(2 / 5)
    assert slices["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert slices["specificity"]["value"] == slices["false_masks"]["value"] == 0.5
    assert slices["dice_tumor"]["value"] == pytest.approx((0.8 + 0 + 0.6) / 3)
    assert slices["dice_all"]["value"] == pytest.approx((0.8 + 0 + 0.6 + 1 + 0) / 5)
    assert slices["recall"] == {"no_tumor": 0.5, "glioma": 0.5, "meningioma": 0.0}
    assert figures["volumes"]["false_masks"]["value"] == pytest.approx(0.2)
    assert figures["volumes"]["specificity"] is None


def test_a_tumor_that_nobody_outlined_counts_for_the_label_only():
    cases = [case("a", "glioma", "glioma", None), case("b", "glioma", "glioma", 0.5)]
    cases.append(case("c", "no_tumor", "no_tumor", 1, 1))
    slices = summarise(cases)["slices"]
    assert (slices["n"], slices["n_outlined"]) == (3, 2)
    assert slices["accuracy"]["value"] == 1
    assert slices["dice_tumor"]["value"] == 0.5
    assert summarise(cases[:1])["slices"]["dice_tumor"] is None


def test_the_interval_is_over_patients_not_slices():
    """A hundred slices of four patients are four draws."""
    right = [case(p, "glioma", "glioma", 1.0) for p in "ab" for _ in range(50)]
    wrong = [case(p, "glioma", "meningioma", 0.0) for p in "cd" for _ in range(50)]
    few = summarise(right + wrong)["slices"]["accuracy"]
    many = summarise([case(str(i), c.label, c.guess, c.dice) for i, c in enumerate(right + wrong)])["slices"][
        "accuracy"
    ]
    assert few["value"] == many["value"] == 0.5
    assert (few["low"], few["high"]) == (0, 1)
    assert many["high"] - many["low"] < 0.2


def test_a_set_is_measured_from_its_files(pipeline, tmp_path):
    rows = ["image,mask,label,patient,fold"]
    for seed, label in ((7, "meningioma"), (3, "no_tumor"), (5, "meningioma")):
        phantom = phantom_slice(seed, label)
        Image.fromarray(phantom.image).save(tmp_path / f"{seed}.png")
        Image.fromarray(phantom.mask * np.uint8(255)).save(tmp_path / f"{seed}_mask.png")
        rows.append(f"{seed}.png,{seed}_mask.png,{label},p{seed},{int(seed == 5)}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    cases = evaluate_pipeline(pipeline, load_samples(tmp_path))
    assert [c.scan for c in cases] == ["7.png", "3.png", "5.png"]
    assert cases[0].dice > 0.6
    assert cases[1].free_slices == 1


def test_the_command_writes_figures_and_names_an_empty_fold(tmp_path):
    import typer

    Image.fromarray(phantom_slice(3, "no_tumor").image).save(tmp_path / "a.png")
    (tmp_path / "index.csv").write_text("image,label,patient,fold\na.png,no_tumor,p,0\n")
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["--data", str(tmp_path), "--fold", "0", "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["slices"]["n"] == 1
    wrong = CliRunner().invoke(app, ["--data", str(tmp_path), "--fold", "3"])
    assert wrong.exit_code == 2
    assert "no labelled scan in fold 3" in wrong.output


def test_folds_are_those_that_training_makes(phantom_set, tmp_path):
    """Where the data have no folds, the ones measured on are the ones that a training run has not seen."""
    rows = [line.rsplit(",", 1)[0] for line in (phantom_set / "index.csv").read_text().splitlines()]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    config = DataConfig((f"{tmp_path / 'index.csv'}@{phantom_set}",), fold=1, duplicates="drop", size=64)
    trained = load_partition(config)
    assert {s.image for s in samples_of_fold(config)} == {s.image for s in trained.test.samples}
    assert not {s.image for s in samples_of_fold(config)} & {s.image for s in trained.train.samples}
