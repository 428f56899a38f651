"""The commands of the tutorials run, one after the other, on small sets that look like the reader's."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.scans.pictures import save, save_volume, table
from tests.test_docs_examples import commands_of
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.services.reviews.desk import Desk

pytestmark = pytest.mark.slow
QUICK = ["--epochs", "1", "--size", "64", "--device", "cpu"]  # the last of an option counts


def _slice(folder, seed, label, mask=""):
    """A picture of a patient of its own, and its mask if it gets a name."""
    phantom = phantom_slice(seed, label, size=96, pixel_mm=2.3)
    save(folder / f"{seed}.png", phantom.image)
    if mask:
        save(folder / f"{seed}{mask}.png", phantom.mask * np.uint8(255))


def four_classes(home):
    spellings = dict(zip(CLASSES, ("notumor", "glioma", "meningioma", "pituitary"), strict=True))
    for number, (label, spelling) in enumerate(spellings.items()):
        for k in range(8):
            _slice(home / "kaggle" / "Training" / spelling, 100 * number + k, label)
        for k in range(8, 11):
            _slice(home / "kaggle" / "Testing" / spelling, 100 * number + k, label)


def yes_no(home):
    for k in range(15):
        _slice(home / "yes_no" / "yes", k, "glioma")
        _slice(home / "yes_no" / "no", 100 + k, "no_tumor")


def lower_grade_gliomas(home):
    for patient in range(10):
        folder = home / "kaggle_3m" / f"TCGA_CS_{4941 + patient}_19960909"
        for k, label in enumerate(("glioma", "glioma", "no_tumor")):
            phantom = phantom_slice(100 * patient + k, label, size=96, pixel_mm=2.3)
            save(folder / f"{folder.name}_{k + 1}.tif", np.stack([phantom.image] * 3, axis=-1))
            save(folder / f"{folder.name}_{k + 1}_mask.tif", phantom.mask * np.uint8(255))
    shutil.copytree(folder, home / "new-scans", ignore=shutil.ignore_patterns("*_mask.tif"))


def own_volumes(home):
    for patient in range(8):
        phantom = phantom_volume(patient, "glioma", shape=(64, 75, 8), spacing_mm=(3.0, 3.0, 14.0))
        save_volume(home / "volumes" / "images" / f"p{patient}.nii.gz", phantom)
        save_volume(home / "volumes" / "masks" / f"p{patient}.nii.gz", replace(phantom, image=phantom.mask))


def a_new_scanner(home):
    for k in range(15):
        _slice(home / "scans", k, CLASSES[k % 4])


def _review(home):
    """What the reader does on the page: accept everything, and correct one mask."""
    desk = Desk(home / "out")
    for number, item in enumerate(desk.worklist()):
        case = desk.open(item.name, "Ann")
        if number == 0:
            case.editor.clear()
            desk.decide(case, "Ann", "correct", "no_tumor")
        else:
            desk.decide(case, "Ann", "accept")
    desk.close()


TUTORIALS = {
    "four-classes": four_classes,
    "yes-no": yes_no,
    "lower-grade-gliomas": lower_grade_gliomas,
    "own-volumes": own_volumes,
    "a-new-scanner": a_new_scanner,
}


def test_every_tutorial_is_tested():
    assert {page.stem for page in (REPOSITORY / "docs" / "tutorials").glob("*.md")} == set(TUTORIALS)


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_commands_of_a_tutorial_run(name, tmp_path, monkeypatch):
    TUTORIALS[name](tmp_path)
    if not {path.name for path in tmp_path.iterdir()} & {"scans", "new-scans"}:
        for seed in (901, 902):
            _slice(tmp_path / "new-scans", seed, "glioma")
    monkeypatch.chdir(tmp_path)
    for words in commands_of(REPOSITORY / "docs" / "tutorials" / f"{name}.md"):
        if words[0] == "serve":
            _review(tmp_path)
            continue
        quick = QUICK if words[0] in ("train", "crossval") else []
        done = CliRunner().invoke(app, [*words, *quick])
        assert done.exit_code == 0 or (words[:2] == ["data", "check"] and done.exit_code == 1), (words, done.output)
    results = tmp_path / "out"
    assert all(not row["error"] for row in table(results)) if results.is_dir() else (tmp_path / "after").is_dir()
    shutil.rmtree(tmp_path)  # networks of 100 MB
