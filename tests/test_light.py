"""An installation without extras: scans are run, and what needs a package of an extra says so in one sentence."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib

import h5py
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import save_classifier
from tests.scans.phantoms import save_mat
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tumorlens.data.errors import EXTRAS, InputError, needs
from tumorlens.data.formats.matlab import read_matlab
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.measurements.brain import find_brain
from tumorlens.pipeline.pipeline import Pipeline

# A package whose entry is None cannot be imported, and seems not to be installed.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({sorted({name for names in EXTRAS.values() for name in names})}))
from tumorlens.pipeline.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Calls the command line in a process without the packages of all extras, with an empty cache of models."""
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
    ("arguments", "sentence"),
    [
        (("run", "SCANS", "-o", "OUT", "--engine", "torch"), "engine torch needs PyTorch"),
        (("train", "segmentation", "--data", "SET", "-o", "OUT"), "this command needs PyTorch"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (("run", "SCANS", "-o", "OUT", "--device", "cuda"), "device 'cuda' needs PyTorch"),
                (("run", "SCANS", "-o", "OUT", "--classifier", "CNN"), "U-Net on one needs PyTorch"),
                (("crossval", "classification", "--data", "SET", "-o", "OUT"), "this command needs PyTorch"),
                (("evaluate", "pipeline", "--data", "SET", "-o", "OUT"), "this command needs PyTorch"),
                (("evaluate", "engines", "--data", "SET"), "this command needs PyTorch"),
                (("calibrate", "--data", "SET", "-o", "CNN"), "this command needs PyTorch"),
                (("export", "classification", "-o", "OUT/one.onnx"), "this command needs PyTorch"),
            )
        ),
    ],
)
def test_what_needs_pytorch_says_so(light, scans, phantom_set, tmp_path, arguments, sentence):
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
    assert done.stderr.splitlines()[-1].endswith(f"{sentence}; install it with: pip install 'tumorlens[train]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("data", "explore", "SET", "-o", "OUT"), "this command needs matplotlib and scikit-learn; install them"),
        (("data", "split", "SET", "-o", "OUT", "--folds", "3"), "--folds needs scikit-learn; install it"),
    ],
)
def test_what_looks_at_data_sets_says_what_it_needs(light, phantom_set, tmp_path, arguments, sentence):
    places = {"SET": phantom_set, "OUT": tmp_path / "out"}
    done = light(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"tumorlens: error: {sentence} with: pip install 'tumorlens[data]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve", "--spool", "SPOOL"), "app"),
        (("dicom-node", "--spool", "SPOOL", "--any-caller"), "dicom-node"),
        (("dicom-node", "--spool", "SPOOL", "--orthanc", "http://a"), "dicom-node"),
    ],
)
def test_a_service_names_its_extra_and_leaves_no_spool(light, tmp_path, arguments, extra):
    spool = tmp_path / "spool"
    done = light(*(spool if argument == "SPOOL" else argument for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith(f"with: pip install 'tumorlens[{extra}]'\n") and done.stderr.count("\n") == 1
    assert not spool.exists()


@pytest.mark.parametrize(("module", "package"), [("scipy.io", "SciPy"), ("h5py", "h5py")])
def test_a_matlab_file_says_what_it_needs(tmp_path, monkeypatch, module, package):
    phantom = phantom_slice(7, "meningioma")
    if package == "SciPy":
        save_mat(tmp_path / "scan.mat", phantom, 1, "7")
    else:
        with h5py.File(tmp_path / "scan.mat", "w") as file:
            file["cjdata/image"] = phantom.image.T
    monkeypatch.setitem(sys.modules, module, None)
    sentence = rf"^a MATLAB file needs {package}; install it with: pip install 'tumorlens\[matlab\]'$"
    with pytest.raises(InputError, match=sentence):
        read_matlab(tmp_path / "scan.mat")


def test_a_volume_says_what_of_a_lesion_is_not_known(light, scans, tmp_path):
    done = light("run", scans / "volume.nii.gz", "-o", tmp_path / "out", "--report")
    assert done.returncode == 0, done.stderr
    result = json.loads(next((tmp_path / "out").rglob("result.json")).read_text())
    assert result["lesions"] and {lesion["side"] for lesion in result["lesions"]} == {None}
    brain = "the brain region is not known, for tumorlens[volumes] is not installed"
    side = "no side of a lesion is known, for tumorlens[volumes] is not installed"
    assert f"lesions may lie outside of the brain: {brain}" in result["review"]
    assert side in result["review"]


def test_a_volume_without_the_atlas_says_that_lesions_may_lie_outside(scans, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    assert find_brain(open_scan(scans / "volume.nii.gz")) == (
        "the brain region is not known, for tumorlens[volumes] is not installed"
    )


def test_agreement_of_reviews_needs_no_extra(light, scans, tmp_path):
    assert light("run", scans / "slice.png", "-o", tmp_path / "out").returncode == 0
    done = light("review", "report", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_info_describes_the_processor(light):
    done = light("info", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["default_device"] == "cpu" and list(facts["devices"]) == ["cpu"]
    assert all(model["intact"] for model in facts["models"].values())


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_lists_what_may_be_missing(extra):
    """All packages of an extra, and no other, are in the table."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    of_module = importlib.metadata.packages_distributions()
    owners = {of_module.get(name, [name])[0].lower().replace("_", "-") for name in EXTRAS[extra]}
    listed = {Requirement(line).name.lower() for line in project["optional-dependencies"][extra]}
    assert owners == listed - {"tumorlens"}
    assert not owners & {Requirement(line).name.lower() for line in project["dependencies"]}


def test_all_extras_of_users_are_known():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"test", "dev"}


def test_a_package_of_no_extra_is_not_explained():
    with pytest.raises(ModuleNotFoundError), needs("this"):
        raise ModuleNotFoundError(name="numpy")
    sentence = r"^this needs PyTorch; install it with: pip install 'tumorlens\[train\]'$"
    with pytest.raises(InputError, match=sentence), needs("this"):
        raise ModuleNotFoundError(name="torch.nn")
