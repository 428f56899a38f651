"""The Lightning trainer as both stages use it, and what every run folder holds.

It stands in `data` because this is the one room that both stages may import; it knows no model.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from tumorlens.data.devices import keep_freed_memory, pick_device, wants_bf16
from tumorlens.data.errors import InputError
from tumorlens.data.training.run_folder import BEST, LAST, write_metrics_table

if TYPE_CHECKING:
    from tumorlens.data.config import TrainingConfig


class MetricsTable(L.Callback):
    """Joins Lightning's logs of this run and of the runs it resumes into one ``metrics.csv``, a row an epoch."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        write_metrics_table(self.out)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)


class Finite(L.Callback):
    """Ends a run whose loss, weights or answers are no numbers any more, before a checkpoint keeps them."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images = batch["image"]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        most = torch.finfo(torch.float16).max  # what the weight file can hold
        learnt = all(bool(p.detach().abs().max() <= most) for p in pl_module.parameters())
        if not (learnt and all(bool(b.isfinite().all()) for b in pl_module.buffers())):
            raise _diverged(trainer, "weights")
        # Batch normalisation in training hides what the same weights answer later.
        modes = [(part, part.training) for part in pl_module.modules()]
        with torch.inference_mode():
            answers = pl_module.eval()(self.images)
        for part, mode in modes:
            part.training = mode
        if not bool(answers.isfinite().all()):
            raise _diverged(trainer, "answers")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)
        if not bool(trainer.callback_metrics["train_loss"].isfinite()):
            raise _diverged(trainer, "losses")


def _diverged(trainer: L.Trainer, what: str) -> InputError:
    return InputError(f"training diverged: after epoch {trainer.current_epoch} its {what} are not finite; lower --lr")


class _Best(ModelCheckpoint):
    """The best checkpoint, which stays the best to beat where the run's folder was moved: Lightning takes up what it
    knows of it only at the very same path."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = dict(state_dict) | {"dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = here(moved.get(name, ""))
        moved["best_k_models"] = {here(path): score for path, score in moved.get("best_k_models", {}).items()}
        super().load_state_dict(moved)


def make_trainer(out: Path, config: TrainingConfig, monitor: str | None, progress: bool = True) -> L.Trainer:
    """A trainer that keeps the best and the last checkpoint, stops early, and logs to CSV below `out`.

    Args:
        out: The run's folder.
        config: Epochs, patience, device and precision.
        monitor: The validation figure that must rise; none for a run without validation, whose last epoch counts.
        progress: Show a progress bar.
    """
    quiet_lightning()
    where = pick_device(config.device)
    if where.type == "cpu":
        keep_freed_memory()
    callbacks: list[L.Callback] = []
    if monitor is not None:  # before the last checkpoint, which keeps what the best one knows
        callbacks += [
            _Best(out / "checkpoints", BEST, monitor=monitor, mode="max", enable_version_counter=False),
            EarlyStopping(monitor, mode="max", patience=config.patience),
        ]
    callbacks += [
        Finite(),
        # A callback of its own: Lightning's save_last follows the best checkpoint and skips epochs without a new best.
        # After every epoch, validated or not.
        ModelCheckpoint(out / "checkpoints", LAST, enable_version_counter=False, save_on_train_epoch_end=True),
        LearningRateMonitor("epoch"),
        MetricsTable(out),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    return L.Trainer(
        devices=[where.index] if where.type == "cuda" and where.index is not None else 1,
        accelerator={"cuda": "gpu"}.get(where.type, where.type),
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.validate_every,
        precision="bf16-mixed" if wants_bf16(config.precision, where) else "32-true",
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
        callbacks=callbacks,
        logger=CSVLogger(out, name="logs"),
        enable_progress_bar=progress,
        enable_model_summary=False,
    )


def fit(trainer: L.Trainer, module: L.LightningModule, training: Any, validation: Any, checkpoint: Path | None) -> None:
    """Run the loop. Where the user stops it, Lightning leaves by `SystemExit`; here it stays a `KeyboardInterrupt`."""
    if checkpoint is not None:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stops = [state for name, state in kept["callbacks"].items() if name.startswith("EarlyStopping")]
        if any(state["stopped_epoch"] for state in stops):  # the run was over; only what comes after it was cut off
            return
        # Lightning opens the loader before it tells the sampler the epoch, and worker processes draw at once.
        training.sampler.set_epoch(int(kept["epoch"]) + 1)
    try:
        trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None


def quiet_lightning() -> None:
    """Keep Lightning's hints for developers off the user's screen; errors still show."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for hint in (
        "does not have many workers",
        "exists and is not empty",
        "LeafSpec",
        "logging interval",
        "no .val_dataloader",
    ):
        warnings.filterwarnings("ignore", f".*{hint}.*")
