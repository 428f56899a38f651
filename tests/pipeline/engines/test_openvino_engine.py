"""OpenVINO gives the same answers as PyTorch, and starts without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import OPENVINO_FP32, save_segmenter, slices
from tests.pipeline.fixed import BRATS
from tests.scans.pictures import save
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.predict import Classifier
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.engines import openvino_engine
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.engines.opening import open_classifier, open_segmenter
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER
from tumorlens.segmentation.predict import Segmenter

PHANTOMS = [(1, "no_tumor"), (7, "meningioma"), (9, "glioma"), (3, "meningioma")]


@pytest.fixture(scope="module")
def openvino_pipeline():
    """The shipped pipeline in OpenVINO and fp32."""
    return Pipeline.load(device="cpu", engine="openvino", precision="fp32")


def answers(pipeline):
    """Decisions about the phantoms, and their results."""
    images = [phantom_slice(seed, kind).image for seed, kind in PHANTOMS]
    cases = [prepare(open_source(image), pipeline.classifier.input_size) for image in images]
    decisions = pipeline.decide(cases)
    return decisions, list(map(pipeline.conclude, cases, decisions))


def assert_same_answers(one, other, far=0.002):
    """Probabilities, strangeness, labels and masks of the phantoms agree."""
    (decisions, results), (other_decisions, other_results) = answers(one), answers(other)
    for decision, expected in zip(decisions, other_decisions, strict=True):
        assert np.abs(decision.scores.probabilities - expected.scores.probabilities).max() < far
        assert np.abs(decision.scores.strangeness - expected.scores.strangeness).max() < 40 * far
    for result, expected in zip(results, other_results, strict=True):
        assert_same_result(result, expected)
    assert results[0].engine["name"] == "openvino"
    assert other_results[0].engine == {"name": "torch", "device": "cpu", "precision": "fp32"}


def assert_same_result(one, other):
    assert one.label == other.label
    assert 2 * (one.mask & other.mask).sum() >= 0.99 * (one.mask.sum() + other.mask.sum())


def test_small_networks_agree(cache_folder, small_classifier, small_segmenter):
    images = slices(n=19)  # more than a batch
    logits, features = open_classifier(small_classifier, OPENVINO_FP32)(images)
    assert features is None
    np.testing.assert_allclose(logits, Classifier.load(small_classifier, "cpu").look(images).logits, atol=1e-3)
    segmenter = open_segmenter(small_segmenter, OPENVINO_FP32)
    maps, expected = segmenter(images), open_segmenter(small_segmenter, Engine())(images)
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - expected).max() <= 1
    assert segmenter(images[:0]).shape == (0, 1, 64, 64)


def test_a_segmenter_with_two_kinds_of_outline_agrees(cache_folder, tmp_path):
    path, images = save_segmenter(tmp_path / "two.safetensors", ("enhancing", "extent")), slices(n=3)
    maps, expected = open_segmenter(path, OPENVINO_FP32)(images), open_segmenter(path, Engine())(images)
    assert maps.shape == (3, 2, 64, 64)
    assert np.abs(maps.astype(int) - expected).max() <= 1


def test_a_segmenter_with_regions_agrees(cache_folder, tmp_path):
    path, images = save_segmenter(tmp_path / "parts.safetensors", regions=BRATS), slices(n=3)
    fast, slow = (Segmenter.load(path, network=partial(open_segmenter, engine=e)) for e in (OPENVINO_FP32, Engine()))
    for ours, expected in zip(fast.predict_parts(images), slow.predict_parts(images), strict=True):
        assert np.abs(ours.astype(int) - expected).max() <= 1
    assert fast.predict_parts(images)[1].shape == (3, 3, 64, 64)


def test_the_shipped_stages_agree(openvino_pipeline, pipeline):
    assert_same_answers(openvino_pipeline, pipeline)


def test_the_shipped_stages_agree_in_the_precision_of_this_machine(pipeline):
    assert_same_answers(Pipeline.load(device="cpu", engine="openvino"), pipeline, far=0.03)


@pytest.mark.slow
def test_volumes_and_mirrored_slices_agree():
    volume = phantom_volume(7, "meningioma").scan
    fast = Pipeline.load(engine="openvino", precision="fp32", tta=True)
    slow = Pipeline.load(device="cpu", engine="torch", precision="fp32", tta=True)
    assert_same_result(fast.run(volume), slow.run(volume))


def test_explanations_come_from_pytorch(openvino_pipeline, pipeline):
    image, options = phantom_slice(7, "meningioma").image, RunOptions(explain=True)
    heat = openvino_pipeline.run(image, options).heat
    np.testing.assert_allclose(heat, pipeline.run(image, options).heat, atol=0.02)


def test_the_shipped_weights_are_opened(openvino_pipeline):
    assert openvino_pipeline.classifier.source == CLASSIFIER
    assert isinstance(openvino_pipeline.segmenter, Segmenter)
    card = json.loads(SEGMENTER.with_suffix(".json").read_text())
    assert openvino_pipeline.segmenter.card["sha256"] == card["sha256"]


def test_a_warm_start_imports_nothing_heavy(openvino_pipeline, tmp_path):
    """The models are in the cache: the fixture has put them there."""
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    code = (
        "import sys; from tumorlens.pipeline.cli.app import main\n"
        "sys.argv = ['tumorlens', 'run', 'a.png', '-o', 'out', '--device', 'cpu']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'monai', 'lightning', 'scipy', 'sklearn', 'matplotlib', 'pydicom', 'nibabel'}\n"
        "print('loaded:', sorted((heavy | {'openvino_telemetry.main'}) & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert (tmp_path / "out" / "a" / "overlay.png").is_file()


def test_an_engine_by_command(tumorlens, monkeypatch, tmp_path):
    monkeypatch.undo()  # the command loads its own pipeline here
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    arguments = ["run", tmp_path / "a.png", "-o", tmp_path / "out", "--threads", "1"]
    done = tumorlens(*arguments, "--engine", "openvino", "--precision", "fp32")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert result["engine"] == {"name": "openvino", "device": "cpu", "precision": "fp32"}
    done = tumorlens(*arguments, "--overwrite", "--engine", "cuda")
    assert done.exit_code == 2
    assert "engine 'cuda' is not one of" in done.stderr


def test_slices_of_any_layout_give_the_same_answer(openvino_pipeline):
    """OpenVINO reads the array while its requests run, so it has to be whole and to stay."""
    images = np.random.default_rng(0).integers(0, 256, (24, 192, 192), np.uint8)
    network = openvino_pipeline.classifier.network
    expected = network(np.ascontiguousarray(images[:, :, ::-1]))[0]
    np.testing.assert_array_equal(network(images[:, :, ::-1])[0], expected)


def test_an_error_in_a_request_is_raised_and_the_next_call_works(openvino_pipeline, monkeypatch):
    images = np.zeros((4, 192, 192), np.uint8)
    network = openvino_pipeline.segmenter.network
    expected = network(images)

    def full(*_):
        raise MemoryError("full")

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="full"):
        patch.setattr(openvino_engine.np, "array", full)
        network(images)
    np.testing.assert_array_equal(network(images), expected)
