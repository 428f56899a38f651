"""Exported stages: other programs get the same answers, or no file."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest
import torch

from tests.pipeline.engines.networks import slices
from tumorlens.classification.predict import Classifier
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


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_a_segmenter_for_other_programs(small_segmenter, tmp_path, kind):
    out = tmp_path / f"model{SUFFIXES[kind]}"
    export_stage(small_segmenter, "segmentation", kind, out)
    images = slices(n=3)
    maps = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"images": images})["map"]
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - open_segmenter(small_segmenter, Engine())(images)).max() <= 1


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
    with pytest.raises(InputError, match="ONNX export needs onnx and onnxscript; install with pip install onnx"):
        module._write_onnx(torch.nn.Identity(), 64, ["logits"], tmp_path / "x.onnx")
