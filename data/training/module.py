"""The common part of both stages' Lightning modules: input sizes, optimizer, seeding of every step."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from tumorlens.data.training.networks import layer_rates, layers_until
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.processes import together


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


_MORE: dict[str, dict[str, Any]] = {  # what an optimizer is to do besides its defaults
    # Fused means one kernel a tensor instead of a dozen: 1 to 3 ms a slice less in batches of 16 on two CPU cores.
    "adamw": {"fused": True},
    "adam": {"fused": True},
    "nadam": {"decoupled_weight_decay": True},
    "radam": {"decoupled_weight_decay": True},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {},
}
_OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
# Share of the run after the warm-up, 0 to 1 -> share of the peak learning rate.
_FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "linear": lambda done: 1 - done,
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.8)),
    "constant": lambda done: 1.0,
}


_LEAST_RATE = 0.1  # share of the peak learning rate from which a lengthened run goes on


def optimizer_and_schedule(
    groups: list[tuple[float, list[nn.Parameter]]], config: TrainingConfig, steps: int, lengthened: int = 0
) -> Any:
    """The optimizer and the schedule of the learning rate, as Lightning takes them.

    By default AdamW (I. Loshchilov and F. Hutter, ICLR 2019) under one cycle (L. Smith and N. Topin, 2019).

    Args:
        groups: Peak learning rates, and the weights that learn by them.
        config: Names of both, weight decay and warm-up.
        steps: Of the whole run.
        lengthened: Epoch from which the rate only falls along a cosine, see `StageModule.on_load_checkpoint`.
    """
    parameters = [{"params": group, "lr": rate} for rate, group in groups]
    optimizer = _OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **_MORE[config.optimizer]
    )
    warmup = max(config.warmup, 1.5 / steps)  # with one step to the peak the schedule divides by zero
    schedule: Any
    if config.scheduler == "onecycle" and not lengthened:
        rates = [rate for rate, _ in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warmup)
    else:
        fall, rise = _FALLS["cosine" if lengthened else config.scheduler], warmup * steps
        if lengthened:
            rise, steps = 0, steps * (config.epochs - lengthened) // config.epochs

        def share(step: int) -> float:
            return (step + 1) / (rise + 1) if step < rise else fall(min(1.0, (step - rise) / max(1.0, steps - rise)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StageModule(L.LightningModule):
    """Base of both stages' modules."""

    config: Any  # the stage's own `TrainingConfig`
    model: Any
    normalization: Normalization
    total_steps: int
    outputs: tuple[str, ...] = ()  # the classes of the outputs that learn labels
    lengthened: int = 0  # the epoch from which a resumed run was given more epochs; 0 for never

    def frozen_parts(self) -> list[nn.Module]:
        """The parts of the network that stay as they came."""
        return layers_until(self.model, self.config.frozen_until)

    def on_train_epoch_start(self) -> None:
        """Keep the batch statistics of frozen parts while the rest of the network is in training mode."""
        for part in self.frozen_parts():
            part.eval()

    def configure_optimizers(self) -> Any:
        groups = layer_rates(self.model, self.config.learning_rate, self.config.layer_decay)
        inner = {id(p) for p in self.model.parameters()}
        groups[0][1].extend(p for p in self.parameters() if id(p) not in inner)  # a head for training alone
        return optimizer_and_schedule(groups, self.config, self.total_steps, self.lengthened)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epochs"], checkpoint["lengthened"] = self.config.epochs, self.lengthened
        checkpoint["outputs"] = list(self.outputs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give a run that is resumed with more epochs a schedule for the rest of them.

        A schedule cannot be stretched once a part of it is done. From here on the learning rate falls along a cosine
        to zero (I. Loshchilov and F. Hutter, ICLR 2017). It begins where it is, but at least at a tenth of the peak,
        because at the end of most schedules nothing is learned any more. Early stopping counts anew.
        """
        self.lengthened = checkpoint.get("lengthened", 0)
        if checkpoint.get("epochs", self.config.epochs) == self.config.epochs:
            return
        self.lengthened = checkpoint["epoch"] + 1
        peaks = [rate for rate, _ in layer_rates(self.model, self.config.learning_rate, self.config.layer_decay)]
        states = checkpoint["optimizer_states"][0]["param_groups"]
        # One cycle, once it is over, has begun to rise again: PyTorch's last step lies behind its end.
        over = self.config.scheduler == "onecycle" and checkpoint["epoch"] + 1 >= checkpoint["epochs"]
        for state, peak in zip(states, peaks, strict=True):
            state["lr"] = max(0 if over else state["lr"], _LEAST_RATE * peak)
        rates = [state["lr"] for state in states]
        fresh = {"base_lrs": rates, "_last_lr": rates, "last_epoch": 0, "_step_count": 1}
        checkpoint["lr_schedulers"] = [{**fresh, "lr_lambdas": [None] * len(rates)}]
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("EarlyStopping"):
                state.update(wait_count=0, stopped_epoch=0)

    def training_batch(self, images_nhw: torch.Tensor) -> torch.Tensor:
        """A training batch as the network takes it, in some steps smaller, see `is_small_step`."""
        batch = to_batch(images_nhw, self.normalization)
        if is_small_step(self.config, self.global_step, self.total_steps):
            return to_small(batch, self.config.small_size)
        return batch

    def from_all(self, batch: dict[str, torch.Tensor], *outputs: torch.Tensor | None) -> tuple[Any, ...]:
        """A batch without its pictures, and the network's outputs for it, of all processes and in their order.

        So each computes the loss of the whole batch, whatever that is a mean of, with the gradients of one process.
        """
        if not together():
            return batch, *outputs

        def whole(values: torch.Tensor) -> torch.Tensor:
            stacked: Any = self.all_gather(values, sync_grads=True)  # (processes, n, ...), and slices are dealt out
            return stacked.transpose(0, 1).flatten(0, 1)

        real = whole(batch["real"])
        known = {name: whole(values)[real] for name, values in batch.items() if name != "image"}
        return known, *(None if values is None else whole(values)[real] for values in outputs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by seed, batch and process alone, so that a resumed run drops the same units."""
        batches = self.trainer.global_step * self.config.accumulate + batch_idx % self.config.accumulate
        torch.manual_seed(self.config.seed * 1_000_003 + batches * self.trainer.world_size + self.global_rank)

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
