"""Workers of a cluster for the tests: fast ones, and ones that a picture kills."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from tests.pipeline.batch.conftest import FakeClassifier, fake_logits, fake_maps
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.services.ray_batch import Worker
from tumorlens.segmentation.predict import Segmenter

DEATHS = "TUMORLENS_TEST_DEATHS"  # names a file with a line for each death


def is_deadly(image):
    """Whether a prepared picture is bright all over, which no head is."""
    return image.mean() > 95


class FastWorker(Worker):
    """The shipped cards with fake networks."""

    def load_pipeline(self):
        classifier = FakeClassifier.load(network=lambda weights: self.look)
        return Pipeline(classifier, Segmenter.load(network=lambda weights: fake_maps))

    def look(self, images):
        return fake_logits(images)


class MortalWorker(FastWorker):
    """Dies, as by `kill -9`, when it sees a deadly picture."""

    lives = 10**6

    def look(self, images):
        file = Path(os.environ[DEATHS])
        if any(is_deadly(image) for image in images) and len(file.read_text().splitlines()) < self.lives:
            with file.open("a") as deaths:
                deaths.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return fake_logits(np.asarray(images))


class OnceMortalWorker(MortalWorker):
    """Dies at the first deadly picture only."""

    lives = 1
