"""Exported stages: other programs get the same answers, or no file."""

from __future__ import annotations

import json
import re

import numpy as np
import openvino
import pytest
import torch

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import save_segmenter, slices
from tests.pipeline.fixed import BRATS
from tumorlens.classification.predict import SHIPPED, Classifier
from tumorlens.data.errors import InputError
from tumorlens.pipeline.engines import export as module
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.engines.export import SUFFIXES, export_stage
from tumorlens.pipeline.engines.opening import open_segmenter


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES.items())
def test_a_classifier_for_other_programs(small_classifier, tmp_path, kind, suffix):
    out = tmp_path / f"model{suffix}"
    exported = export_stage(small_classifier, "classification", kind, out)
    assert exported.path == out and exported.difference["logits"] < 2e-3
    images = slices(n=5)  # not the number that it was traced with
    if kind == "torchscript":
        logits = torch.jit.load(str(out))(torch.from_numpy(images)).detach().numpy()
    else:
        compiled = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = compiled({"images": images})["logits"]
    np.testing.assert_allclose(logits, Classifier.load(small_classifier, "cpu").look(images).logits, atol=2e-3)
    card = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert card["input"] == {"images": ["n", 64, 64]}
    assert card["outputs"] == ["logits"]
    assert card["classes"][0] == "no_tumor"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".part")]


@pytest.mark.slow
def test_the_example_of_the_docs_refuses_and_calibrates_as_tumorlens_does(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs/how-to/export-a-network.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block]
    export_stage(SHIPPED, "classification", "onnx", tmp_path / "classifier.onnx")
    images = np.concatenate([slices(n=6, size=192), np.random.default_rng(0).integers(0, 255, (2, 192, 192), np.uint8)])
    names = {"images": images}
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    classifier = Classifier.load(device="cpu")
    seen = classifier.look(images)
    np.testing.assert_allclose(names["probabilities"], classifier.calibrate(seen.logits), atol=2e-3)
    assert (names["refused"] == classifier.refuses(seen.strangeness, np.ones(8, bool))).all()
    assert names["refused"][6:].all() and not names["refused"].all()
    assert (names["positive"] == (classifier.labels(names["probabilities"]) > 0)).all()
    card = json.loads((tmp_path / "classifier.onnx.json").read_text())
    _, features = classifier.network(images)
    standard = classifier.refusal.standardize(features)
    odds = standard @ np.array(card["sequence"]["weight"]).T + card["sequence"]["bias"]
    assert (odds.argmax(axis=1) == seen.sequences.argmax(axis=1)).all()


def test_a_threshold_on_the_card_is_exported_once(small_classifier, tmp_path):
    path = small_classifier.with_suffix(".json")
    card = json.loads(path.read_text())
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(small_classifier.read_bytes())
    card["operating_point"] = {"tumor_threshold": 0.2}
    weights.with_suffix(".json").write_text(json.dumps(card))
    export_stage(weights, "classification", "torchscript", tmp_path / "own.pt")
    exported = json.loads((tmp_path / "own.pt.json").read_text())
    assert exported["operating_point"]["tumor_threshold"] == 0.5
    bias = Classifier.load(weights, "cpu").calibration.tumor_bias
    assert exported["calibration"]["tumor_bias"] == bias != 0


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_a_segmenter_for_other_programs(small_segmenter, tmp_path, kind):
    out = tmp_path / f"model{SUFFIXES[kind]}"
    export_stage(small_segmenter, "segmentation", kind, out)
    images = slices(n=3)
    maps = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"images": images})["map"]
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - open_segmenter(small_segmenter, Engine())(images)).max() <= 1


def test_the_regions_of_a_segmenter_are_exported(tmp_path):
    weights, out = save_segmenter(tmp_path / "parts.safetensors", regions=BRATS), tmp_path / "parts.pt"
    export_stage(weights, "segmentation", "torchscript", out)
    assert tuple(torch.jit.load(str(out))(torch.from_numpy(slices(n=2))).shape) == (2, 3, 64, 64)
    assert json.loads((tmp_path / "parts.pt.json").read_text())["regions"] == BRATS.to_card()["regions"]


def test_a_file_with_other_answers_is_not_written(tumorlens, small_classifier, tmp_path, monkeypatch):
    write, run = module._FORMATS["torchscript"]
    monkeypatch.setitem(
        module._FORMATS, "torchscript", (write, lambda path, images: [y + 1 for y in run(path, images)])
    )
    arguments = ["--weights", small_classifier, "--format", "torchscript", "-o", tmp_path / "model.pt"]
    done = tumorlens("export", "classification", *arguments)
    assert done.exit_code == 2
    assert "not written, because its logits differ from PyTorch's by 1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_export_by_command(tumorlens, small_classifier, tmp_path):
    def export(stage, weights, *arguments):
        return tumorlens("export", stage, "--weights", weights, *arguments)

    done = export("classification", small_classifier, "--format", "torchscript", "-o", tmp_path / "model.pt")
    assert done.exit_code == 0, done.output
    assert "model.pt: largest difference from PyTorch: logits" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.pt.json"}
    done = export("classification", small_classifier, "--format", "onnx", "-o", tmp_path / "model.pt")
    assert (done.exit_code, "a file of format onnx ends in .onnx" in done.stderr) == (2, True)
    done = export("segmentation", small_classifier, "-o", tmp_path / "model.onnx")
    assert (done.exit_code, "for classification, not for segmentation" in done.stderr) == (2, True)
    done = export("classification", tmp_path / "none.safetensors", "-o", tmp_path / "model.onnx")
    assert (done.exit_code, "none.safetensors: no such file" in done.stderr) == (2, True)


def test_a_package_that_onnx_needs_is_missing(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="ONNX export needs onnx and onnxscript; install them with: pip"):
        module._write_onnx(torch.nn.Identity(), 64, ["logits"], tmp_path / "x.onnx")
