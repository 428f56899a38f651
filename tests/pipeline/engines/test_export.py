"""Exported stages: other programs get the very same answers, or no file."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest
import torch
from click.testing import CliRunner

from tests.pipeline.engines.test_engines import save_classifier, save_segmenter, slices
from tumorlens.classification.predict import Classifier
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.engines import export as exporting
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.engines.opening import open_segmenter


def export(*arguments):
    return CliRunner().invoke(app, ["export", *(str(a) for a in arguments)])


@pytest.mark.parametrize(("kind", "suffix"), exporting.SUFFIXES.items())
def test_a_classifier_for_others(tmp_path, kind, suffix):
    weights, out = save_classifier(tmp_path / "one.safetensors"), tmp_path / f"model{suffix}"
    done = export("classification", "--weights", weights, "--format", kind, "-o", out)
    assert done.exit_code == 0, done.output
    images = slices(n=5)  # not the number that it was traced with
    if kind == "torchscript":
        logits = torch.jit.load(str(out))(torch.from_numpy(images)).detach().numpy()
    else:
        compiled = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = compiled({"images": images})["logits"]
    np.testing.assert_allclose(logits, Classifier.load(weights, "cpu").logits(images), atol=2e-3)
    card = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert card["input"] == {"images": ["n", 64, 64]}
    assert card["outputs"] == ["logits"]
    assert card["classes"][0] == "no_tumor"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".part")]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_segmenter_for_others(tmp_path, kind):
    weights, out = save_segmenter(tmp_path / "two.safetensors"), tmp_path / f"model{exporting.SUFFIXES[kind]}"
    done = export("segmentation", "--weights", weights, "--format", kind, "-o", out)
    assert done.exit_code == 0, done.output
    images = slices(n=3)
    maps = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"images": images})["map"]
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - open_segmenter(weights, Engine())(images)).max() <= 1


def test_a_file_that_would_answer_otherwise_is_not_written(tmp_path, monkeypatch):
    weights = save_classifier(tmp_path / "one.safetensors")
    write, run = exporting._FORMATS["torchscript"]
    monkeypatch.setitem(
        exporting._FORMATS, "torchscript", (write, lambda path, images: [y + 1 for y in run(path, images)])
    )
    done = export("classification", "--weights", weights, "--format", "torchscript", "-o", tmp_path / "model.pt")
    assert done.exit_code == 2
    assert "not written, its logits differ from PyTorch's by 1" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "one.safetensors"]


def test_wrong_use(tmp_path):
    weights = save_classifier(tmp_path / "one.safetensors")
    done = export("classification", "--weights", weights, "--format", "onnx", "-o", tmp_path / "model.pt")
    assert (done.exit_code, "a file of format onnx ends in .onnx" in done.stderr) == (2, True)
    done = export("segmentation", "--weights", weights, "-o", tmp_path / "model.onnx")
    assert (done.exit_code, "for classification, not for segmentation" in done.stderr) == (2, True)
    done = export("classification", "--weights", tmp_path / "none.safetensors", "-o", tmp_path / "model.onnx")
    assert (done.exit_code, "none.safetensors: no such file" in done.stderr) == (2, True)


def test_a_package_that_onnx_needs_and_is_not_there(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(exporting.InputError, match="ONNX export needs onnx and onnxscript: pip install onnx"):
        exporting._write_onnx(torch.nn.Identity(), 64, ["logits"], tmp_path / "x.onnx")
