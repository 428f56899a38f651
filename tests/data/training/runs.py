"""Small training runs of both stages, and prepared sets without files, for tests."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from matplotlib.figure import Figure

from tumorlens.classification import train as classification
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.trust import refusal_fit
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.labels import SHIPPED_CLASSES
from tumorlens.data.training import run as run_module
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.segmentation import train as segmentation
from tumorlens.segmentation.config import SegmenterConfig

QUICK = {"size": 64, "epochs": 2, "batch_size": 8, "init": "none", "device": "cpu", "precision": "fp32"}
STAGES = ["classification", "segmentation"]
# Residual networks of less than half a million weights.
BACKBONE, ENCODER = "timm/test_resnet", "tu-test_resnet"
SEGMENTER_CARD = {
    "stage": "segmentation",
    "architecture": "unet",
    "encoder": "resnet18",
    "decoder_channels": [256, 128, 64, 32, 16],
    "input_size": 64,
    "operating_point": {"mask_threshold": 0.5, "min_lesion_px": 0},
}


def quiet(*_, **__):
    pass


def classifier_config(*data, **settings):
    return ClassifierConfig(tuple(map(str, data)), **({"arch": BACKBONE} | QUICK | settings))


def segmenter_config(*data, **settings):
    small = {"encoder": ENCODER, "decoder_channels": (16, 16, 16, 16, 16)}
    return SegmenterConfig(tuple(map(str, data)), **(small | QUICK | settings))


@contextmanager
def without_plots():
    """The files of plots are empty, because drawing them takes longer than small networks take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, target, **_: Path(target).touch())
        yield


def train(config, out, few_pictures=True, plots=False, **rest):
    """Train either stage quietly; returns the card. By default, what takes long and few tests look at is left out.

    Args:
        config: Settings of either stage.
        out: The run's folder.
        few_pictures: Teach the classifier's refusal with few pictures.
        plots: Draw the plots; else their files are empty.
        rest: More arguments of the training.
    """
    run = classification.train_classifier if isinstance(config, ClassifierConfig) else segmentation.train_segmenter
    with pytest.MonkeyPatch.context() as patch:
        if few_pictures:
            patch.setattr(refusal_fit, "_MOST_DRAWN", 28)
            patch.setattr(refusal_fit, "_MOST_PHANTOMS", 4)
        with nullcontext() if plots else without_plots():
            return run(config, out, **({"progress": False, "say": quiet} | rest))


@dataclass(frozen=True)
class Stage:
    """A stage under test."""

    name: str
    config: Any

    @property
    def module(self):
        return {"classification": classification, "segmentation": segmentation}[self.name]

    @property
    def weights(self):
        return {"classification": "classifier", "segmentation": "segmenter"}[self.name]


def stage_of(name, data, **settings):
    config = {"classification": classifier_config, "segmentation": segmenter_config}[name]
    return Stage(name, config(data, **settings))


class _Stop(L.Callback):
    """Ends a run in its second epoch, as a power cut or a user would."""

    def __init__(self, reason):
        self.reason = reason

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1:
            raise self.reason


def stopped_by(reason, make_trainer):
    """`make_trainer` whose trainers stop in the second epoch."""

    def make(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.callbacks.append(_Stop(reason))
        return trainer

    return make


def train_until_the_power_fails(config, out: Path):
    """Train a run that is stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_trainer", stopped_by(RuntimeError("power cut"), run_module.make_trainer))
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, out)


def fake_set(labels, masks=None, patients=None):
    """A prepared set of black slices with these labels, masks and patients."""
    patients = patients or [f"p{i}" for i in range(len(labels))]
    samples = [
        Sample(Path(f"{i}.png"), SHIPPED_CLASSES.known[c], p)
        for i, (c, p) in enumerate(zip(labels, patients, strict=True))
    ]
    masks = np.zeros((len(labels), 8, 8), np.uint8) if masks is None else masks
    return PreparedSet(samples, np.zeros_like(masks), masks, np.array(labels))
