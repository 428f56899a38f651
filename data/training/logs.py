"""What a training run says while it runs: a line an epoch, and the files of other programs that follow trainings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.plotting import plain

# Neither program may speak to a server, whatever the user's settings for other work are.
_OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder instead of a database, which newer versions ask to confirm
}


class EpochLines(L.Callback):
    """Says a line after each epoch, where there is no terminal for a progress bar.

    Args:
        say: Gets the line.
        best_by: The validation figure that chooses the epoch.
    """

    def __init__(self, say: Callable[[str], None], best_by: str) -> None:
        self.say, self.best_by = say, best_by
        self.begun: float | None = None  # of the first epoch of this process
        self.epochs = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()
        self.begun = self.started if self.begun is None else self.begun
        self.slices, self.validated = 0, False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # After the step it is that of the next one.
        self.rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.slices += len(batch["image"]) * trainer.world_size
        self.trained = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs += 1
        of, done = trainer.max_epochs or 0, trainer.current_epoch + 1
        each = (time.monotonic() - (self.begun or 0)) / self.epochs
        parts = [
            *self.figures({name: float(value) for name, value in trainer.callback_metrics.items()}),
            f"learning rate {self.rate:.1e}",
            f"{self.slices / max(self.trained - self.started, 1e-9):.1f} slices/s",
            f"{timedelta(seconds=round(each * (of - done)))} left",
        ]
        self.say(f"epoch {done} of {of}: {'; '.join(parts)}")

    def figures(self, metrics: dict[str, float]) -> list[str]:
        """The loss, the figure that training has too, and the one that chooses the epoch, in words."""
        trained = [name.removeprefix("train_") for name in metrics if name.startswith("train_")]
        lines = []
        for name in dict.fromkeys(["loss", *trained, self.best_by]):
            shown = [("training", f"train_{name}"), ("validation", f"val_{name}" if self.validated else "")]
            values = [f"{metrics[key]:.4f} {part}" for part, key in shown if key in metrics]
            if values:
                lines.append(f"{plain(name)} {', '.join(values)}")
        return lines


def stopped_early(trainer: L.Trainer, config: TrainingConfig) -> str:
    """Why a run stopped before its last epoch, in a sentence; empty if it did not."""
    stop = trainer.early_stopping_callback
    if not isinstance(stop, EarlyStopping) or not stop.stopped_epoch:
        return ""
    best = stop.stopped_epoch + 1 - stop.wait_count * config.validate_every
    moved = "fallen" if stop.mode == "min" else "risen"
    return (
        f"stopped after epoch {stop.stopped_epoch + 1} of {config.epochs}: {plain(config.best_by)} on validation has "
        f"not {moved} for {stop.wait_count} validations (--patience); best {float(stop.best_score):.4f} in epoch {best}"
    )


def check_logger(config: TrainingConfig) -> None:
    """Raise an `InputError` if the package of a run's logger is not installed."""
    if config.logger != "csv" and find_spec(config.logger) is None:
        raise InputError(
            f"--logger {config.logger} needs the package {config.logger}, which is not installed: "
            f"pip install {config.logger}"
        )


def make_loggers(out: Path, config: TrainingConfig) -> list[Logger]:
    """The run's loggers: CSV files, of which ``metrics.csv`` is made, and the one that the user names."""
    loggers: list[Logger] = [CSVLogger(out, name="logs")]
    if config.logger != "csv":
        os.environ.update(_OFFLINE)
    if config.logger == "tensorboard":
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    elif config.logger == "mlflow":
        place = (out / "mlruns").absolute()
        loggers.append(MLFlowLogger("tumorlens", out.name, tracking_uri=place.as_uri()))
    elif config.logger == "wandb":
        loggers.append(WandbLogger(out.name, save_dir=out, offline=True, project="tumorlens"))
    return loggers


def close_loggers(trainer: L.Trainer) -> None:
    """End the run of wandb, so that the next one of this process is another."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
