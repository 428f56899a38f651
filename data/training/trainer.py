"""The Lightning trainer of both stages: checkpoints, early stopping, one table of metrics, an end to diverged runs."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tumorlens.data.devices import keep_freed_memory, pick_device, wants_bf16
from tumorlens.data.errors import InputError
from tumorlens.data.files import flush, remove_stale_parts, whole_file
from tumorlens.data.training.batch_norm import SyncedLayers
from tumorlens.data.training.logs import EpochLines, make_loggers
from tumorlens.data.training.module import StageModule
from tumorlens.data.training.processes import devices_of
from tumorlens.data.training.run_folder import BEST, LAST, read_checkpoint, write_metrics_table

if TYPE_CHECKING:
    from tumorlens.data.config import TrainingConfig


class MetricsTable(L.Callback):
    """Joins Lightning's logs of a run and of its resumed parts into one ``metrics.csv``, one row an epoch."""

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
    """Ends a run whose loss, weights or outputs are not finite, before they reach a checkpoint."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images = batch["image"]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        most = torch.finfo(torch.float16).max  # of the weight file's numbers
        small = all(bool(p.detach().abs().max() <= most) for p in pl_module.parameters())
        if not (small and all(bool(b.isfinite().all()) for b in pl_module.buffers())):
            raise _diverged(trainer, "weights")
        # In training mode, batch normalization can hide that the same weights fail in evaluation mode.
        modes = [(part, part.training) for part in pl_module.modules()]
        with torch.inference_mode():
            answers = pl_module.eval()(self.images)
        for part, mode in modes:
            part.training = mode
        if trainer.strategy.reduce_boolean_decision(not bool(answers.isfinite().all()), all=False):
            raise _diverged(trainer, "answers")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)
        if not bool(trainer.callback_metrics["train_loss"].isfinite()):
            raise _diverged(trainer, "losses")


def _diverged(trainer: L.Trainer, what: str) -> InputError:
    return InputError(f"training diverged: after epoch {trainer.current_epoch} its {what} are not finite; lower --lr")


class _Best(ModelCheckpoint):
    """The best checkpoint, also after the run's folder was moved.

    Lightning restores the best score only if the folder has the same path.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = dict(state_dict) | {"dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = here(moved.get(name, ""))
        moved["best_k_models"] = {here(path): score for path, score in moved.get("best_k_models", {}).items()}
        super().load_state_dict(moved)


class _WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written beside the last one, and then take its place.

    Lightning writes them among the temporary files of the machine. From there they would be copied over the last one,
    where these lie on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()  # `torch.save` into a file hides that the disk is full
        torch.save(checkpoint, content)
        with whole_file(Path(path)) as part:
            part.write_bytes(content.getbuffer())
            flush(part)


class _OwnSignals(L.Callback):
    """Leaves SIGTERM to the program: Lightning would wait for processes that are busy with something else."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


def make_trainer(
    out: Path,
    config: TrainingConfig,
    monitor: str | None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> L.Trainer:
    """A trainer that saves the best and the last checkpoint, stops early, and logs to files below `out`.

    Args:
        out: The run's folder.
        config: Epochs, patience, device and precision.
        monitor: The validation figure that must rise, or, if it is a loss, fall; None for a run without validation,
            whose last epoch counts.
        progress: Show a progress bar, or without a terminal say a line an epoch.
        say: Gets that line.
    """
    quiet_lightning()
    remove_stale_parts(out / "checkpoints")
    where = pick_device(config.device)
    if where.type == "cpu":
        keep_freed_memory(training=True)
    callbacks: list[L.Callback] = []
    mode = "min" if monitor is not None and monitor.endswith("loss") else "max"
    bar = progress and sys.stderr.isatty()
    if monitor is not None:  # before the last checkpoint, which stores the state of the best one
        callbacks += [
            _Best(out / "checkpoints", BEST, monitor=monitor, mode=mode, enable_version_counter=False),
            EarlyStopping(monitor, mode=mode, patience=config.patience),
        ]
    if config.ema > 0:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    callbacks += [
        Finite(),
        # A second callback, after every epoch: Lightning's save_last skips epochs without a new best.
        ModelCheckpoint(out / "checkpoints", LAST, enable_version_counter=False, save_on_train_epoch_end=True),
        LearningRateMonitor("epoch"),
        MetricsTable(out),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=5) if bar else EpochLines(say, config.best_by))
    alone = LightningEnvironment()  # whatever SLURM says of the job in which it runs
    together: dict[str, Any] = {"plugins": [alone, _WholeCheckpoints()]}
    if config.processes == 1:
        alone.set_global_rank(0)
    else:
        callbacks.append(_OwnSignals())
        # A network may have weights that a batch does not use.
        plugins = [SyncedLayers(where.type == "cpu"), _WholeCheckpoints()]
        together = {"strategy": "ddp_find_unused_parameters_true", "plugins": plugins}
    return L.Trainer(
        **devices_of(config, where),
        **together,
        use_distributed_sampler=False,
        accumulate_grad_batches=config.accumulate,
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.validate_every,
        precision="bf16-mixed" if wants_bf16(config.precision, where) else "32-true",
        benchmark=where.type == "cuda",  # cuDNN tries its algorithms once per input size; a run has one or two
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
        callbacks=callbacks,
        logger=make_loggers(out, config),
        enable_progress_bar=bar,
        enable_model_summary=False,
    )


def run_trainer(
    trainer: L.Trainer, module: StageModule, training: Any, validation: Any, checkpoint: Path | None
) -> None:
    """Run the training loop, from a checkpoint if there is one. A run that stopped early is not trained
    further unless it has more epochs now.

    Raises:
        InputError: A process that augments was ended from outside, or the system has no memory left for it.
        KeyboardInterrupt: The user stopped it; Lightning itself would raise `SystemExit`.
    """
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        stops = [stop for name, stop in state["callbacks"].items() if name.startswith("EarlyStopping")]
        lengthened = "epochs" in state and state["epochs"] != module.config.epochs
        if any(stop["stopped_epoch"] for stop in stops) and not lengthened:
            return
        # Lightning opens the loader before it sets the sampler's epoch, and worker processes draw at once.
        training.sampler.set_epoch(int(state["epoch"]) + 1)
    try:
        trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A process that ends while it hands over a batch shows as a broken connection only.
        how = " was ended"
        if isinstance(error, RuntimeError):
            if not str(error).startswith("DataLoader worker"):
                raise
            how = str(error).partition(". ")[0].removeprefix("DataLoader worker")
        raise InputError(
            f"the process that augments slices{how}; repeat the command, with --resume if an epoch was finished, and "
            "with fewer --workers if memory is short"
        ) from None


def quiet_lightning() -> None:
    """Hide Lightning's hints for developers; errors still show."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for hint in (
        "does not have many workers",
        "exists and is not empty",
        "LeafSpec",
        "logging interval",
        "no .val_dataloader",
        "sync_dist=True",  # each process has the figures of all
        "strides do not match bucket view",
    ):
        warnings.filterwarnings("ignore", f".*{hint}.*")
