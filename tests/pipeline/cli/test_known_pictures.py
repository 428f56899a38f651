"""A folder as Kaggle gives it: what to do about leaks, and how many of its pictures the weights know."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.training.runs import classifier_config, train
from tumorlens.data.phantom import phantom_slice

FOLDERS = {"no_tumor": "notumor", "glioma": "glioma", "meningioma": "meningioma", "pituitary": "pituitary"}


def save_as_jpeg(path, image, side, mirrored=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image[:, ::-1] if mirrored else image)
    picture.resize((side, side)).save(path, quality=80)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """Training/<class> and Testing/<class>; two of the test pictures are mirrored copies of training pictures."""
    folder = tmp_path_factory.mktemp("kaggle")
    for number, (label, name) in enumerate(FOLDERS.items()):
        for k in range(10):
            image = phantom_slice(100 * number + k, label).image
            save_as_jpeg(folder / ("Testing" if k >= 7 else "Training") / name / f"{k}.jpg", image, 256)
            if k == 9 and number in (1, 2):
                save_as_jpeg(folder / "Training" / name / "copy.jpg", image, 224, mirrored=True)
    return folder


def test_a_leak_names_the_pair_how_many_there_are_and_what_to_do(command, kaggle, tmp_path):
    call = ["train", "classification", "--data", kaggle, "--split", "official", "--init", "none", "--arch", "mlp"]
    call += ["--epochs", "1", "--size", "64", "--device", "cpu", "-o", tmp_path / "run"]
    done = command(*call)
    assert done.exit_code == 2
    assert "slices that look alike are in training" in done.stderr
    assert "Training/glioma/copy.jpg" in done.stderr and "Testing/glioma/9.jpg" in done.stderr
    assert "and so are 1 more; --duplicates drop takes them out of the earlier part" in done.stderr
    assert "`tumorlens data split` divides the set by patient anew" in done.stderr
    assert not (tmp_path / "run").exists()
    done = command(*call, "--duplicates", "drop")
    assert done.exit_code == 0, done.output
    assert "dropped 2 near-duplicates" in done.stdout


def test_pictures_that_the_weights_have_learned_from_are_counted_and_every_figure_is_marked(
    command, phantom_set, kaggle, tmp_path
):
    """Copies of training slices, with other names, sizes and formats, among pictures of other heads."""
    train(classifier_config(phantom_set, epochs=1), tmp_path / "run")
    copies = tmp_path / "set"
    for patient in (8, 9, 12, 13, 16, 17, 18):  # folds 2, 3 and 4: the weights learned from these
        picture = np.array(Image.open(phantom_set / "images" / f"{patient}_0.png"))
        save_as_jpeg(copies / list(FOLDERS.values())[patient % 4] / f"new{patient}.jpg", picture, 96)
    for k in range(3):
        picture = np.array(Image.open(kaggle / "Testing" / "glioma" / f"{k + 7}.jpg"))
        save_as_jpeg(copies / "glioma" / f"other{k}.jpg", picture, 96)
    weights = tmp_path / "run" / "classifier.safetensors"
    done = command(
        "evaluate", "classification", "--data", copies, "--classifier", weights, "--no-probe", "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    said = "7 of 10 of these slices were training slices of the weights, or are copies of such"
    assert f"warning: {said}" in done.stderr
    assert "(7 of 10 slices known to the weights)" in done.stdout
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"**Warning: {said}" in text
    titles = [line for line in text.splitlines() if line.startswith("## ") and "What was" not in line]
    assert all("(7 of 10 slices known to the weights)" in title for title in titles if "Pictures" not in title)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["mark"] == "7 of 10 slices known to the weights"
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        known = {row["file"].rpartition("/")[2]: row["training_slice"] for row in csv.DictReader(file)}
    assert {name for name, flag in known.items() if flag == "1"} == {name for name in known if name.startswith("new")}
