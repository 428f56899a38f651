"""A pipeline without networks: tests in this folder check names, files and order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, uniform_filter

from tests.pipeline.batch.results import HEALTHY_PICTURE, SICK_PICTURE
from tests.scans.pictures import save, save_volume
from tumorlens.classification.predict import Classifier
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.predict import Segmenter

MENINGIOMA = CLASSES.index("meningioma")
VOLUME = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2.0, 2.0, 10.0))
NAMES = ["0.png", "1.png", "broken.png", "2.png", "3.png", "volume.nii.gz", "4.png", "noise.png", "5.png"]


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
    return bright_spots(images_nhw)[:, None] * np.uint8(255)


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
    """The shipped pipeline, for tests that are marked slow."""
    return Pipeline.load(device="cpu", engine="torch", precision="fp32")


@pytest.fixture
def listed(tumorlens):
    """What `tumorlens run --list --json` prints about its arguments."""
    return lambda *arguments: json.loads(tumorlens("run", *arguments, "--list", "--json").stdout)


def names_in(listing):
    return [scan["name"] for scan in listing["scans"]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures of all kinds, a volume, and a file that is not a picture. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("scans")
    for n, label in enumerate(("meningioma", "no_tumor", "glioma", "pituitary", "no_tumor", "meningioma")):
        write_png(folder / f"{n}.png", phantom_slice(n, label).image)
    save_volume(folder / "volume.nii.gz", VOLUME)
    (folder / "broken.png").write_bytes(b"not a picture")
    write_png(folder / "noise.png", np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Pictures in two folders."""
    save(tmp_path / "pictures" / "a" / "sick.png", SICK_PICTURE)
    save(tmp_path / "pictures" / "b" / "healthy.jpg", HEALTHY_PICTURE)
    save(tmp_path / "pictures" / "b" / "twin.png", HEALTHY_PICTURE)
    return tmp_path / "pictures"


@pytest.fixture
def jobs(folder):
    """One of each, in the order of `NAMES`."""
    return [Job(folder / name, name) for name in NAMES]
