"""Speed of training: the loop of `tumorlens train`, the same loop without a loader, and a plain PyTorch loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.benchmarks.rounds import Costs, now
from tumorlens.classification import train as stage1
from tumorlens.classification.module import ClassifierModule
from tumorlens.data.config import TrainingConfig
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.loaders import SliceDataset, loaders, make_loader
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.prepared import PreparedSet
from tumorlens.data.training.trainer import make_trainer
from tumorlens.segmentation import train as stage2

_WARM = 2  # steps that are not timed
_EPOCH = 20  # steps of an epoch that is long enough for processes that augment


@dataclass(frozen=True)
class TrainingLoops:
    """Loops that return the wall and the processor time of a slice, in seconds.

    Attributes:
        ours: The loop with its loader and augmentation.
        repeated: The same loop with one batch over and over: what the loader costs is the difference.
        plain: PyTorch as it comes, fp32, with that one batch.
    """

    ours: Callable[[], Costs]
    repeated: Callable[[], Costs]
    plain: Callable[[], Costs]


def training_loops(stage: str, steps: int = 8, size: int = 192) -> TrainingLoops:
    """Some steps of a stage's training on phantoms, on the CPU, with the stage's default settings.

    Args:
        stage: ``classification`` or ``segmentation``.
        steps: Timed steps of each loop.
        size: Side of the network's input in pixels.
    """
    config: TrainingConfig
    if stage == "classification":
        config = stage1.ClassifierConfig(("phantoms",), size=size, init="none", epochs=1, device="cpu")
    else:
        config = stage2.SegmenterConfig(("phantoms",), size=size, init="none", epochs=1, device="cpu")
    steps += _WARM
    parts = _phantoms(max(steps, _EPOCH) * config.batch_size, size)

    def fresh() -> Any:
        if isinstance(config, stage1.ClassifierConfig):
            return stage1.build_module(config, parts)
        assert isinstance(config, stage2.SegmenterConfig)
        return stage2.build_module(config, parts)

    training, _ = loaders(config, parts)
    batch = next(iter(make_loader(SliceDataset(parts.train), config.batch_size)))
    repeated: DataLoader[Any] = DataLoader([batch] * steps, batch_size=None)  # type: ignore[arg-type]
    return TrainingLoops(
        lambda: _timed(fresh(), config, training, steps),
        lambda: _timed(fresh(), config, repeated, steps),
        lambda: _timed_plain(fresh(), batch, steps),
    )


class _Watch(L.Callback):
    def __init__(self) -> None:
        self.ends: list[Costs] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(now())


def _timed(module: L.LightningModule, config: TrainingConfig, batches: Iterable[Any], steps: int) -> Costs:
    watch = _Watch()
    with TemporaryDirectory(prefix="tumorlens-") as scratch:
        trainer = make_trainer(Path(scratch), config, None, progress=False)
        trainer.limit_train_batches = steps
        trainer.callbacks = [watch]  # type: ignore[attr-defined]  # no checkpoint: it is not a part of a step
        logging.getLogger("lightning").setLevel(logging.ERROR)
        trainer.fit(module, batches)
    return (watch.ends[-1] - watch.ends[_WARM - 1]) / (len(watch.ends) - _WARM) / config.batch_size


def _timed_plain(module: Any, batch: dict[str, torch.Tensor], steps: int) -> Costs:
    model: nn.Module = module.model.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = to_batch(batch["image"], module.normalization).contiguous()
    truth = batch["label"] if isinstance(module, ClassifierModule) else batch["mask"][:, None].float()
    begun = now()
    for step in range(steps):
        if step == _WARM:
            begun = now()
        optimizer.zero_grad()
        module.loss(model(images), truth).backward()
        optimizer.step()
    return (now() - begun) / (steps - _WARM) / len(images)


def _phantoms(number: int, size: int) -> Partition:
    """A partition that has nothing but training slices."""
    preprocess, different = Preprocess(size), 16
    images, masks, labels = [], [], []
    for n in range(different):
        phantom = phantom_slice(n, CLASSES[n % len(CLASSES)])
        prepared = preprocess(phantom.image)
        images.append(prepared.image)
        masks.append(preprocess.mask_to_input(phantom.mask, prepared.placement))
        labels.append(n % len(CLASSES))
    order = np.arange(number) % different
    samples = [
        Sample(Path(f"{n}.png"), CLASSES[labels[n % different]], patient=str(n % different)) for n in range(number)
    ]
    train = PreparedSet(samples, np.stack(images)[order], np.stack(masks)[order], np.array(labels)[order])
    return Partition(train, train.subset([]), train.subset([]), ())
