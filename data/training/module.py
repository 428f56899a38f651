"""What the training runs of both stages have in common: settings, loaders, optimizer, and their part of the card."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F

from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.normalization import Normalization, to_batch
from tumorlens.data.training.partition import Partition


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
    """A training batch as `data.preprocessing.normalization.to_batch` gives it, made smaller in the first epochs of a run that asks for it
    (progressive resizing: most of what there is to learn is seen at half the cost)."""
    batch = to_batch(images_nhw, normalization)
    if epoch >= config.small_epochs or config.small_size >= config.size:
        return batch
    side = (config.small_size, config.small_size)
    small = F.interpolate(batch, side, mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


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
