"""A pipeline without networks: tests in this folder check names, files and order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, uniform_filter

from tumorlens.classification.predict import Classifier
from tumorlens.data.labels import CLASSES
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.predict import Segmenter

MENINGIOMA = CLASSES.index("meningioma")


def bright_spots(images_nhw):
    """``(n, size, size)`` bool: the lesions of phantoms, which are bright over many pixels."""
    spots = []
    for image in images_nhw.astype(np.float32):
        core = maximum_filter(uniform_filter(image, 13) > 215, 15)
        spots.append(core & (uniform_filter(image, 3) > 175))
    return np.array(spots)


def fake_logits(images_nhw):
    """A meningioma where there is a bright spot. There are no features, so no scan is refused."""
    labels = np.where(bright_spots(images_nhw).any(axis=(1, 2)), MENINGIOMA, 0)
    return 8 * np.eye(len(CLASSES), dtype=np.float32)[labels], None


def fake_maps(images_nhw):
    return bright_spots(images_nhw) * np.uint8(255)


class FakeClassifier(Classifier):
    """The shipped card with a fake network."""

    def explain(self, images_nhw, class_indices):
        return np.full(images_nhw.shape, 0.5, np.float32)


@pytest.fixture(scope="session")
def pipeline():
    """The shipped cards with fake networks; it stands in for the shipped pipeline in this folder."""
    classifier = FakeClassifier.load(network=lambda weights: fake_logits)
    return Pipeline(classifier, Segmenter.load(network=lambda weights: fake_maps))


@pytest.fixture(scope="session")
def shipped():
    """The shipped networks, for tests that are marked slow."""
    return Pipeline.load(device="cpu", engine="torch", precision="fp32")
