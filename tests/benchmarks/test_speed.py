"""What a slice costs, step by step: `pytest tests/benchmarks --benchmark-only`; whole runs: `make benchmark`."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.outputs.overlay import draw_overlay
from tumorlens.pipeline.pipeline import Pipeline

IMAGE = phantom_slice(7, "meningioma", size=512, pixel_mm=0.45).image


@pytest.fixture(scope="module", params=["openvino", "torch"])
def stages(request):
    return Pipeline.load(device="cpu", engine=request.param)


def test_preprocess(benchmark):
    assert benchmark(Preprocess(192), IMAGE).image.any()


def test_augment(benchmark):
    image = Preprocess(192)(IMAGE).image
    augment, mask = Augment(), np.zeros_like(image)
    assert benchmark(augment, image, mask, 1)[0].shape == image.shape


@pytest.mark.parametrize("slices", [1, 16])
def test_classify(benchmark, stages, slices):
    images = np.stack([Preprocess(stages.classifier.input_size)(IMAGE).image] * slices)
    assert len(benchmark(stages.classifier.look, images).logits) == slices


@pytest.mark.parametrize("slices", [1, 16])
def test_segment(benchmark, stages, slices):
    images = np.stack([Preprocess(stages.segmenter.input_size)(IMAGE).image] * slices)
    assert benchmark(stages.segmenter.predict, images).any()


def test_one_picture(benchmark, stages):
    assert benchmark(stages.run, IMAGE).positive


def test_overlay(benchmark, stages):
    result = stages.run(IMAGE)
    assert benchmark(draw_overlay, result).ndim == 3
