"""An installation without PyTorch: scans are run, and what needs PyTorch says so in one sentence."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import save_classifier
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tumorlens.data.errors import TRAIN_PACKAGES
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.measurements.brain import find_brain
from tumorlens.pipeline.pipeline import Pipeline

# A package whose entry is None cannot be imported, and seems not to be installed.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({TRAIN_PACKAGES}))
from tumorlens.pipeline.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Calls the command line in a process without the packages of the extra `train`, with an empty cache of models."""
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments):
        command = [sys.executable, "-c", WITHOUT, *(str(argument) for argument in arguments)]
        environment = os.environ | {"TUMORLENS_CACHE": str(cache)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return call


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with a picture, a volume and a DICOM series."""
    folder = tmp_path_factory.mktemp("scans")
    save(folder / "slice.png", phantom_slice(7, "meningioma").image)
    save_volume(folder / "volume.nii.gz", phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    series(folder / "study", SICK)
    return folder


def test_scans_are_run_and_explained(light, scans, tmp_path):
    done = light("run", scans, "-o", tmp_path / "out", "--explain", "--device", "auto")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["meningioma"] * 3
    folders = [file.parent for file in (tmp_path / "out").rglob("result.json")]
    assert len(folders) == 3
    for folder in folders:
        assert json.loads((folder / "result.json").read_text())["engine"]["name"] == "openvino"
        assert (folder / "overlay.png").is_file()
        assert list(folder.glob("*explanation*")), sorted(p.name for p in folder.iterdir())
    # The same labels and, but for pixels on the border, the same masks as with PyTorch.
    expected = Pipeline.load(device="cpu", engine="torch", precision="fp32").run(scans / "slice.png")
    mask = np.asarray(Image.open(next((tmp_path / "out").rglob("mask.png")))) > 0
    assert expected.mask is not None
    assert (mask != (expected.mask > 0)).mean() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "feature"),
    [
        (("run", "SCANS", "-o", "OUT", "--engine", "torch"), "engine torch"),
        (("train", "segmentation", "--data", "SET", "-o", "OUT"), "this command"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (("run", "SCANS", "-o", "OUT", "--device", "cuda"), "device 'cuda'"),
                (("run", "SCANS", "-o", "OUT", "--classifier", "CNN"), "the first start of a network that is not a"),
                (("crossval", "classification", "--data", "SET", "-o", "OUT"), "this command"),
                (("evaluate", "pipeline", "--data", "SET", "-o", "OUT"), "this command"),
                (("evaluate", "engines", "--data", "SET"), "this command"),
                (("calibrate", "--data", "SET", "-o", "CNN"), "this command"),
                (("export", "classification", "-o", "OUT/one.onnx"), "this command"),
            )
        ),
    ],
)
def test_what_needs_pytorch_says_so(light, scans, phantom_set, tmp_path, arguments, feature):
    places = {
        "SCANS": scans,
        "SET": phantom_set,
        "OUT": tmp_path / "out",
        "OUT/one.onnx": tmp_path / "out" / "one.onnx",
    }
    if "CNN" in arguments:
        places["CNN"] = save_classifier(tmp_path / "cnn.safetensors", size=192)
    done = light(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert f"{feature} " in done.stderr
    assert done.stderr.splitlines()[-1].endswith("needs PyTorch; install it with: pip install 'tumorlens[train]'")
    assert not (tmp_path / "out").exists()


def test_a_volume_without_the_atlas_says_that_lesions_may_lie_outside(scans, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    assert "pip install 'tumorlens[volumes]'" in find_brain(open_scan(scans / "volume.nii.gz"))


def test_info_describes_the_processor(light):
    done = light("info", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["default_device"] == "cpu" and list(facts["devices"]) == ["cpu"]
    assert all(model["intact"] for model in facts["models"].values())


def test_the_extra_lists_what_must_be_missing():
    """All packages of the extra `train`, and no other, are those that `needs_train` knows."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    of_module = importlib.metadata.packages_distributions()
    owners = {of_module[name][0].lower().replace("_", "-") for name in TRAIN_PACKAGES}
    assert owners | {"tumorlens"} == {Requirement(line).name for line in project["optional-dependencies"]["train"]}
    assert not owners & {Requirement(line).name for line in project["dependencies"]}
