"""The common part of both stages' Lightning modules: input sizes, optimizer, seeding of every step."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.normalization import Normalization, to_batch
from tumorlens.data.training.partition import Partition


def chooses_epoch(config: TrainingConfig, parts: Partition) -> bool:
    """Whether validation chooses between epochs.

    A run that validates once, at its end, has nothing to choose. Its validation patients are measured once, after
    training.
    """
    return len(parts.validation) > 0 and config.validate_every < config.epochs


def input_sizes(config: TrainingConfig) -> list[int]:
    """The sides of the network's input that a run uses, in pixels."""
    return [config.size, *([config.small_size] if config.small_share else [])]


def is_small_step(config: TrainingConfig, step: int, total_steps: int) -> bool:
    """Whether a step shows smaller pictures: a random `small_share` of all steps but the last tenth.

    Mixed resolution: a network learns most of what there is to learn at half the cost, and lesions of more sizes. It
    ends at the size at which it works, as H. Touvron et al. (NeurIPS 2019) recommend.
    """
    if config.small_size >= config.size or step >= 0.9 * total_steps:
        return False
    return bool(np.random.default_rng((config.seed, step)).uniform() < config.small_share)


def to_small(batch_nchw: torch.Tensor, side: int) -> torch.Tensor:
    """A batch with smaller pictures, ``(n, c, side, side)``."""
    small = F.interpolate(batch_nchw, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


def adamw_one_cycle(model: nn.Module, config: TrainingConfig, steps: int) -> Any:
    """AdamW (I. Loshchilov and F. Hutter, ICLR 2019) under one cycle of the learning rate (L. Smith and N. Topin,
    2019), as Lightning takes it.

    Args:
        model: Only parameters that require gradients are optimized.
        config: Peak learning rate, weight decay and warm-up.
        steps: Of the whole run.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    # Fused means one kernel a tensor instead of a dozen: 1 to 3 ms a slice less in batches of 16 on two CPU cores.
    optimizer = torch.optim.AdamW(learning, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    warmup = max(config.warmup, 1.5 / steps)  # with one step to the peak the schedule divides by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=warmup)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StageModule(L.LightningModule):
    """Base of both stages' modules."""

    config: Any  # the stage's own `TrainingConfig`
    model: Any
    normalization: Normalization
    total_steps: int

    def training_batch(self, images_nhw: torch.Tensor) -> torch.Tensor:
        """A training batch as the network takes it, in some steps smaller, see `is_small_step`."""
        batch = to_batch(images_nhw, self.normalization)
        if is_small_step(self.config, self.global_step, self.total_steps):
            return to_small(batch, self.config.small_size)
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by seed and step alone, so that a resumed run drops the same units."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.trainer.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm.

        Lightning refuses to clip for a fused optimizer, because it may unscale gradients itself. In bfloat16 and
        float32 no gradient is scaled.
        """
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def check_steps(module: StageModule, config: TrainingConfig, slices: int) -> None:
    """Check that the network can learn from as few slices as a step of the run shows.

    Batch normalization needs more than one value per channel. The deepest layer has a single one where a step shows one
    slice and the input is small.

    Args:
        module: The run's module. It is not changed.
        config: The run's settings.
        slices: Number of slices that an epoch shows.

    Raises:
        InputError: A step shows one slice, and the network cannot learn from one.
    """
    if min(config.batch_size, slices) > 1:
        return
    for size in input_sizes(config):
        trial = deepcopy(module).train()
        trial.on_train_epoch_start()  # frozen layers take no batch statistics
        try:
            with torch.no_grad():
                trial.model(torch.zeros(1, 3, size, size))
        except ValueError:
            raise InputError(
                f"steps of one slice are too few for this network at {size} pixels; raise --batch-size"
                + (" and --epoch-slices" if slices == 1 else "")
            ) from None
