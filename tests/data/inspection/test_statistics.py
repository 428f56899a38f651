"""The statistics of a data set, against arrays that are held in memory at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.datasets.duplicates import signatures
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.inspection.statistics import BINS, choose_examples, gray_levels, measure
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare


def test_means_and_histograms_against_arrays_held_at_once(phantom_set):
    samples = load_samples(phantom_set)
    stats = measure(samples, Preprocess(96))
    whole = prepare(samples, Preprocess(96))
    for name in CLASSES:
        own = whole.labels == CLASSES.index(name)
        sums = stats.sums[name]
        assert np.allclose(sums.image / sums.n, whole.images[own].mean(axis=0))
        assert np.allclose(sums.lesion, whole.masks[own].sum(axis=0))
        assert sums.stored.sum() == pytest.approx(sums.n)
        assert sums.prepared.sum() == pytest.approx(sums.n)
    one = measure(samples[:1], Preprocess(96)).sums["no_tumor"]
    values = np.asarray(Image.open(samples[0].image))
    assert np.allclose(one.stored, np.histogram(values, BINS, (0, 256))[0] / values.size)
    assert np.allclose(stats.signatures, signatures(whole.images), atol=1e-6)


def test_gray_levels():
    eight = np.array([[3, 7]], np.uint8)
    assert gray_levels(eight).tolist() == [[3, 7]]
    assert gray_levels(np.array([[-50, 0], [50, 50]], np.int16)).tolist() == [[0, 127.5], [255, 255]]
    assert gray_levels(np.dstack([eight] * 3)).shape == (1, 2)


def test_examples_are_of_different_patients_first():
    samples = [Sample(Path(f"{i}"), "glioma", patient=f"p{i // 5}") for i in range(20)]
    chosen = choose_examples(samples, 4)
    assert {samples[i].patient for i in chosen} == {"p0", "p1", "p2", "p3"}
    assert len(choose_examples(samples, 6)) == 6
    assert choose_examples(samples, 4, seed=1) != chosen
