"""A little of everything, in the shortest time: CI runs this file alone with the oldest supported dependencies."""

from __future__ import annotations

import csv
import importlib

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save, save_volume
from tests.test_architecture import MODULES
from tumorlens.data.phantom import phantom_slice, phantom_volume

TRAINING = [
    *("--duplicates", "drop", "--epochs", "1", "--epoch-slices", "16", "--size", "32", "--init", "none"),
    *("--device", "cpu", "--precision", "fp32", "-q"),
]


# The label app is loaded by MONAI Label, in an environment of its own.
@pytest.mark.parametrize("module", [module for module in MODULES if module != "pipeline.sharing.label_app"])
def test_every_module_can_be_imported(module):
    importlib.import_module(f"tumorlens.{module}")


def test_a_picture_and_a_volume_become_results(tumorlens, tmp_path):
    save(tmp_path / "scans" / "slice.png", phantom_slice(7, "meningioma").image)
    phantom = phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0))
    save_volume(tmp_path / "scans" / "volume.nii.gz", phantom)
    done = tumorlens("run", tmp_path / "scans", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        labels = {row["scan"]: row["label"] for row in csv.DictReader(file)}
    assert labels == {"slice.png": "meningioma", "volume.nii.gz": "meningioma"}
    mask = nib.load(tmp_path / "out" / "volume" / "mask.nii.gz")
    volume = nib.load(tmp_path / "scans" / "volume.nii.gz")
    assert np.asarray(mask.dataobj).any()
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-6)


def test_each_stage_learns(command, phantom_set, tmp_path):
    for stage, options in (("classification", ["--arch", "cnn"]), ("segmentation", ["--arch", "plain-unet"])):
        out = tmp_path / stage
        done = command("train", stage, "--data", phantom_set, "--out", out, *options, *TRAINING)
        assert done.exit_code == 0, done.output
        assert list(out.glob("*.safetensors"))
