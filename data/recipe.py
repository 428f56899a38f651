"""What the training runs of both stages have in common: settings, loaders, optimizer, and their part of the card."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.augment import Augment
from data.errors import InputError
from data.loaders import epoch_length, lesion_free, make_loader, to_batch
from data.normalization import Normalization
from data.partition import DataConfig, Partition
from data.trainer import read_config


@dataclass(frozen=True)
class TrainingConfig(DataConfig):
    """Settings that both stages know.

    Attributes:
        init: ``"imagenet"`` (downloaded), ``"none"``, or a weight file.
        epochs: Length of the run, and of the learning-rate schedule.
        batch_size: Slices a step.
        epoch_slices: At most so many slices an epoch, others every time; 0 takes all.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        warmup: Share of the run until the peak.
        patience: Validations without a better figure before the run stops.
        validate_every: Epochs from one validation to the next; the last epoch has to be one of them.
        augment: Strength; 0 is none.
        turn: Share of the slices that are turned by one, two or three right angles; none without augmentation.
        transplant: Share of the slices whose lesion is healed, that get another's, or a piece of another head
            (`data.transplant`); only slices whose lesions are known take part.
        freeze_stem: Leave the first convolution and the first stage of a ResNet as they came.
        small_epochs: Epochs at the start in which the network sees smaller pictures (progressive resizing).
        small_size: Side of those in pixels.
        workers: Processes that augment ahead; 0 stays in one process.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        precision: ``auto``, ``bf16`` or ``fp32``.
    """

    init: str = "imagenet"
    epochs: int = 8
    batch_size: int = 32
    epoch_slices: int = 0
    learning_rate: float = 4e-4
    weight_decay: float = 0.02
    warmup: float = 0.2
    patience: int = 5
    validate_every: int = 1
    augment: float = 1.0
    turn: float = 0.1
    transplant: float = 0.05
    freeze_stem: bool = False
    small_epochs: int = 0
    small_size: int = 160
    workers: int = 0
    device: str = "auto"
    precision: str = "auto"


def loaders(
    config: TrainingConfig, parts: Partition, blank: float = 0.0, negative_share: float = 0.0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Augmented, shuffled training batches and plain validation batches.

    Args:
        config: Of the run.
        parts: Its slices.
        blank: Share of the training slices with blanked heads.
        negative_share: See `data.loaders.epoch_length`; 0 takes slices as they come.
    """
    augment = Augment(config.augment, config.turn) if config.augment > 0 else None
    training = make_loader(
        parts.train,
        config.batch_size,
        augment,
        config.seed,
        config.workers,
        shuffle=True,
        blank=blank,
        transplant=config.transplant,
        most=config.epoch_slices,
        negative_share=negative_share,
    )
    return training, make_loader(parts.validation, 2 * config.batch_size)


def chooses_epoch(config: TrainingConfig, parts: Partition) -> bool:
    """Whether validation chooses between epochs. A run that would validate once, at its end, has nothing to choose: its
    validation patients are measured when the network is trained, and not twice."""
    return len(parts.validation) > 0 and config.validate_every < config.epochs


def sides(config: TrainingConfig) -> list[int]:
    """The input's sides that a run will use, in pixels."""
    return [config.size, *([config.small_size] if config.small_epochs else [])]


def to_small_batch(
    images_nhw: torch.Tensor, normalization: Normalization, config: TrainingConfig, epoch: int
) -> torch.Tensor:
    """A training batch as `data.loaders.to_batch` gives it, made smaller in the first epochs of a run that asks for it
    (progressive resizing: most of what there is to learn is seen at half the cost)."""
    batch = to_batch(images_nhw, normalization)
    if epoch >= config.small_epochs or config.small_size >= config.size:
        return batch
    side = (config.small_size, config.small_size)
    small = F.interpolate(batch, side, mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


def epoch_slices(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """How many slices an epoch shows."""
    if negative_share:
        return epoch_length(lesion_free(parts.train), config.epoch_slices, negative_share)[0]
    return min(len(parts.train), config.epoch_slices or len(parts.train))


def total_steps(config: TrainingConfig, parts: Partition, negative_share: float = 0.0) -> int:
    """Optimizer steps of the whole run; a one-cycle schedule needs two."""
    steps = epoch_slices(config, parts, negative_share) // config.batch_size
    return max(2, max(1, steps) * config.epochs)


def adamw_one_cycle(model: nn.Module, config: TrainingConfig, steps: int) -> Any:
    """AdamW (Loshchilov and Hutter, ICLR 2019) under one cycle of the learning rate (Smith and Topin, 2019), in
    Lightning's form."""
    learning = [p for p in model.parameters() if p.requires_grad]
    # One kernel a tensor instead of a dozen: 1 to 3 ms a slice less in batches of 16 on two CPU cores.
    optimizer = torch.optim.AdamW(learning, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    warmup = max(config.warmup, 1.5 / steps)  # the schedule divides by zero where it is one step to the peak
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=warmup)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stage(L.LightningModule):
    """What the modules of both stages do in the same way."""

    config: Any  # the stage's own `TrainingConfig`
    model: Any

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout draws by seed and step alone, so that a resumed run draws what it would have drawn."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.trainer.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm. Lightning refuses to where the optimizer is fused, for such a one may unscale gradients by
        itself; bfloat16 and float32 scale none."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def check_steps(module: Stage, config: TrainingConfig, slices: int) -> None:
    """Raise an `InputError` if a run's steps show one slice, and the network cannot learn from one: batch normalization
    needs more than one value per channel, and of a small input the deepest layer has one.

    Args:
        module: Of the run; it stays as it is.
        config: Of the run.
        slices: How many an epoch shows.
    """
    if min(config.batch_size, slices) > 1:
        return
    for side in sides(config):
        trial = deepcopy(module).train()
        trial.on_train_epoch_start()  # what is frozen does not count
        try:
            with torch.no_grad():
                trial.model(torch.zeros(1, 3, side, side))
        except ValueError:
            raise InputError(
                f"steps of one slice are too few for this network at {side} pixels; raise --batch-size"
                + (" and --epoch-slices" if slices == 1 else "")
            ) from None


def describe_run(out: Path, parts: Partition, best_epoch: int, command: str) -> dict[str, Any]:
    """The part of a card that says how the weights came about; the settings are those that the run's folder keeps, for
    the file of the first weights may hold others by now."""
    return {
        "training": read_config(out),
        "n_slices": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
        "dropped_near_duplicates": len(parts.dropped),
        **({} if parts.leaks is None else {"leaking_test_slices": parts.leaks}),
        "best_epoch": best_epoch,
        "date": date.today().isoformat(),
        "command": command,
    }
