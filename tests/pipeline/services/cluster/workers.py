"""Workers of a cluster for the tests: fast ones, and ones that a picture kills."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np

from tests.pipeline.batch.conftest import FakeClassifier, fake_logits, fake_maps
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.services.cluster import batch
from tumorlens.pipeline.services.cluster.batch import Worker
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


def never_return():
    """Compute for ever, as native code that gives Python no turn."""
    re.match("(a+)+$", 64 * "a" + "b")


class MortalWorker(FastWorker):
    """Dies, as by `kill -9`, when it sees a deadly picture."""

    lives = 10**6

    def look(self, images):
        file = Path(os.environ[DEATHS])
        if any(is_deadly(image) for image in images) and len(file.read_text().splitlines()) < self.lives:
            with file.open("a") as deaths:
                deaths.write(f"{os.getpid()}\n")
            self.die()
        return fake_logits(np.asarray(images))

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


class StuckWorker(MortalWorker):
    """Computes for ever when it sees a deadly picture."""

    def die(self):
        never_return()


class StoppedWorker(MortalWorker):
    """Is stopped when it sees a deadly picture, its own alarm included."""

    def die(self):
        os.kill(os.getpid(), signal.SIGSTOP)


class StuckLoader(FastWorker):
    """Loads its models for ever, and may do so for a second."""

    def start(self, folder=""):
        batch.START_SECONDS = 1.0
        return super().start(folder)

    def load_pipeline(self):
        never_return()


class OnceMortalWorker(MortalWorker):
    """Dies at the first deadly picture only."""

    lives = 1
