"""`tumorlens data`: exit codes, output, mistakes of users."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile

import numpy as np
import pytest

from tests.scans.lgg import write_lgg_phantoms
from tests.scans.pictures import save
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.phantom import phantom_slice

pytestmark = pytest.mark.usefixtures("blank_figures")  # tests/data/inspection/test_explore.py renders them


@pytest.fixture
def data(command):
    return lambda *arguments: command("data", *arguments)


def wrong_use(result, *reasons):
    """One line on stderr, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("tumorlens: error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert all(reason in result.stderr for reason in reasons), result.stderr
    return True


def test_explore(data, phantom_set, tmp_path):
    out = tmp_path / "report"
    done = data("explore", phantom_set, "-o", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"40 slices, report: {out / 'index.html'}"
    assert (out / "index.html").is_file()
    wrong_use(data("explore", phantom_set, "-o", out), "--overwrite")
    again = data("explore", phantom_set, "-o", out, "--overwrite", "-q")
    assert (again.exit_code, again.output) == (0, "")


def test_explore_without_a_slice_that_cannot_be_read(data, tmp_path):
    save(tmp_path / "set" / "tumeur" / "1.png", phantom_slice(1).image)
    (tmp_path / "set" / "tumeur" / "2.png").write_bytes(b"")
    done = data("explore", tmp_path / "set", "-o", tmp_path / "out", "--map", "tumeur=glioma")
    assert done.exit_code == 1
    assert "- 1 slices could not be read" in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["classes"]["glioma"]["slices"] == 1


def test_check(data, phantom_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(phantom_set, folder)
    sound = data("check", folder)
    assert (sound.exit_code, sound.stdout.splitlines()[-1]) == (0, "no problems")
    for name in ("0_0.png", "0_1.png"):
        (folder / "images" / name).write_text("no picture")
    checked = data("check", folder, "-o", tmp_path / "found.json", "--examples", 1)
    assert checked.exit_code == 1
    assert "  files that cannot be read: 2\n" in checked.stdout
    assert "    ... and 1 more\n" in checked.stdout
    printed = json.loads(data("check", folder, "--json").stdout)
    assert printed == json.loads((tmp_path / "found.json").read_text())
    assert printed["problems"]["unreadable"]["count"] == 2
    wrong_use(data("check", folder, "-o", tmp_path / "found.json"), "--overwrite")
    assert data("check", folder, "-o", tmp_path / "found.json", "--overwrite", "-q").output == ""
    wrong_use(data("check", folder, "-o", folder / "index.csv", "--overwrite"), "leaves it alone")


def test_split(data, phantom_set, tmp_path):
    index = tmp_path / "index.csv"
    done = data("split", phantom_set, "-o", index, "--shares", 0.6, 0.2, 0.2, "--seed", 3)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "train: 24 slices of 12 patients: 6 no_tumor, 6 glioma, 6 meningioma, 6 pituitary"
    assert lines[-1] == f"train with: --data {index}@{phantom_set} --split official"
    samples = load_samples(f"{index}@{phantom_set}")
    assert {s.split for s in samples} == {"train", "validation", "test"}
    folds = data("split", phantom_set, "-o", index, "--folds", 4, "--overwrite")
    assert folds.stdout.splitlines()[-1].endswith("--fold 0")
    assert {s.fold for s in load_samples(f"{index}@{phantom_set}")} == {0, 1, 2, 3}
    assert data("split", phantom_set, "-o", index, "--folds", 2).exit_code == 2


def test_the_printed_source_is_the_one_to_train_with(data, tmp_path):
    folder = tmp_path / "my set"
    for i in range(4):
        save(folder / "Glioma Tumor" / f"{i}.png", phantom_slice(i, "glioma").image)
    done = data("split", folder, "-o", folder / "index.csv")
    assert done.stdout.splitlines()[-1] == f"train with: --data '{folder / 'index.csv'}' --split official"
    assert len(load_samples(folder / "index.csv")) == 4


def test_a_part_without_a_class_is_reported(data, tmp_path):
    for i in range(3):
        save(tmp_path / "glioma" / f"{i}.png", phantom_slice(i, "glioma").image)
    save(tmp_path / "notumor" / "1.png", phantom_slice(9, "no_tumor").image)
    done = data("split", tmp_path, "-o", tmp_path / "index.csv")
    assert "warning: no slice of test shows" in done.stdout
    assert done.exit_code == 0


@pytest.mark.parametrize("name", ["explore", "check", "split"])
def test_wrong_sources(data, name, tmp_path):
    out = ("-o", tmp_path / "out.csv")
    wrong_use(data(name, tmp_path / "nowhere", *out), "no such data folder")
    (tmp_path / "empty").mkdir()
    wrong_use(data(name, tmp_path / "empty", *out), "neither an index.csv")
    save(tmp_path / "picture.png", phantom_slice(1).image)
    wrong_use(data(name, tmp_path / "picture.png", *out), "not a CSV file")
    save(tmp_path / "holiday" / "beach" / "1.png", phantom_slice(1).image)
    wrong_use(data(name, tmp_path / "holiday", *out), "beach", "--map")
    wrong_use(data(name, tmp_path / "holiday", *out, "--map", "beach"), "is not NAME=CLASS")
    wrong_use(data(name, tmp_path / "holiday", *out, "--map", "beach=7"), "is a number")
    assert not (tmp_path / "out.csv").exists()
    assert data(name).exit_code == 2


@pytest.mark.parametrize("name", ["explore", "check", "split"])
def test_outputs_that_cannot_be_written(data, name, phantom_set, tmp_path):
    (tmp_path / "file").write_text("mine")
    wrong_use(
        data(name, phantom_set, "-o", tmp_path / "file" / "out"), f"{tmp_path / 'file'}: this is a file, not a folder"
    )
    if name != "explore":
        wrong_use(data(name, phantom_set, "-o", tmp_path), "this is a folder")
        wrong_use(data(name, phantom_set, "-o", tmp_path / "file", "--overwrite"), "leaves it alone")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["explore", "check", "split"])
def test_a_folder_without_the_right_to_write(data, name, phantom_set, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write anywhere
    wrong_use(
        data(name, phantom_set, "-o", tmp_path / "new" / "index.csv"), f"{tmp_path}: you may not write to this folder"
    )


def test_an_index_with_a_bad_row_leads_to_the_check(data, phantom_set, tmp_path):
    rows = list(csv.reader((phantom_set / "index.csv").open()))
    rows[3][0] = "images/gone.png"
    (tmp_path / "index.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    source = f"{tmp_path / 'index.csv'}@{phantom_set}"
    wrong_use(data("explore", source, "-o", tmp_path / "out"), "line 4: no such file", "tumorlens data check")
    wrong_use(data("split", source, "-o", tmp_path / "out.csv"), "line 4: no such file", "tumorlens data check")
    assert data("check", source).exit_code == 1


def test_a_set_of_one_patient(data, tmp_path):
    rows = ["image,label,patient"]
    for i in range(3):
        save(tmp_path / "set" / f"{i}.png", phantom_slice(i).image)
        rows.append(f"{i}.png,glioma,only")
    (tmp_path / "set" / "index.csv").write_text("\n".join(rows))
    assert data("check", tmp_path / "set").exit_code == 0
    done = data("explore", tmp_path / "set", "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "Training cannot make folds: 1 patients are too few for 5 folds." in done.stdout
    wrong_use(data("split", tmp_path / "set", "-o", tmp_path / "out.csv"), "1 patients are too few for train")


def test_color_pictures(data, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        color = np.dstack([phantom_slice(i).image, rng.integers(0, 9, (256, 256), np.uint8), phantom_slice(i).image])
        save(tmp_path / "glioma" / f"{i}.png", color)
    assert data("check", tmp_path).exit_code == 0
    assert data("split", tmp_path, "-o", tmp_path / "index.csv").exit_code == 0


def test_the_channel_of_an_lgg_folder(data, tmp_path):
    write_lgg_phantoms(tmp_path / "set", patients=3, slices=5)
    assert data("check", tmp_path / "set").exit_code == 0
    done = data("split", tmp_path / "set", "-o", tmp_path / "index.csv")
    assert done.stdout.splitlines()[-1].endswith("--split official")
    index = f"{tmp_path / 'index.csv'}@{tmp_path / 'set'}"
    assert {s.channel for s in load_samples(index)} == {1}
    assert data("explore", index, "-o", tmp_path / "out").exit_code == 0
    save(tmp_path / "gray" / "glioma" / "1.png", phantom_slice(1).image)
    asked = data("check", tmp_path / "gray", "--frame-channel", 1)
    assert "channel 1 was asked for, but the scan is gray" in asked.stdout
    assert asked.exit_code == 1


def test_foreign_files_are_left_alone(data, phantom_set, tmp_path):
    """Among them the report of `tumorlens evaluate`, which has the same name."""
    for name, text in (("report.json", '{"kind": "tumorlens evaluation", "files": []}'), ("index.html", "mine")):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text(text)
        wrong_use(data("explore", phantom_set, "-o", out), f"{name}: tumorlens did not write this file")
        wrong_use(data("explore", phantom_set, "-o", out, "--overwrite"), "leaves it alone")
        assert [(p.name, p.read_text()) for p in out.iterdir()] == [(name, text)]


def test_the_help_names_the_layouts(data):
    for name in ("explore", "check", "split"):
        assert "LGG folders" in data(name, "--help").stdout
