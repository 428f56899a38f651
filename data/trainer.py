"""The Lightning trainer as both stages use it, and what every run folder holds.

It stands in `data` because this is the one room that both stages may import; it knows no model.
"""

from __future__ import annotations

import csv
import logging
import tempfile
import warnings
from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from data.atomic import whole_file, write_text
from data.cards import sha256_of
from data.compute import keep_freed_memory, pick_device, wants_bf16
from data.errors import InputError
from data.starts import START_HASH, known_start

if TYPE_CHECKING:
    from data.recipe import TrainingConfig

BEST, LAST = "best", "last"  # checkpoints
CONFIG = "config.yaml"
_HINTS = (
    "does not have many workers",
    "exists and is not empty",
    "LeafSpec",
    "logging interval",
    "no .val_dataloader",
)
_PRECISIONS = ("auto", "bf16", "fp32")
FREE = ("device", "workers", "prepared", "start")  # what a resumed run may change: it changes no result
# What a run was that began before there was such a setting.
_BEFORE: dict[str, Any] = {
    "blank": 0.0,
    "channel": None,
    "epoch_slices": 0,
    "freeze_stem": False,
    "label_weight": 0.0,
    "negative_share": 0.0,
    "not_brain": [],
    "own_outlines": False,
    "out_of_fold": "",
    "patients": 1.0,
    "prepared": "",
    "small_epochs": 0,
    "transplant": 0.0,
    "turn": 0.0,
    "validate_every": 1,
}


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


def write_metrics_table(out: Path) -> list[dict[str, str]]:
    """Rewrite ``out/metrics.csv`` from all logs below ``out/logs``; returns its rows, one per epoch."""
    logs = sorted((out / "logs").glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    rows: dict[int, dict[str, str]] = {}
    columns: dict[str, None] = {"epoch": None}
    for log in logs:
        fresh: dict[int, dict[str, str]] = {}
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                if not row.get("epoch"):
                    continue
                known = {k: v for k, v in row.items() if v and k != "step"}
                fresh.setdefault(int(row["epoch"]), {}).update(known)
        if fresh:  # a resumed run repeats the epoch it was cut off in, and all that came after it
            rows = {epoch: row for epoch, row in rows.items() if epoch < min(fresh)} | fresh
    for row in rows.values():
        columns.update(dict.fromkeys(sorted(row)))
    table = [rows[epoch] for epoch in sorted(rows) if any(k.startswith(("val_", "train_loss")) for k in rows[epoch])]
    with whole_file(out / "metrics.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(table)
    return table


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


def check_run(out: Path, config: Any, resume: bool) -> Path | None:
    """Check the run's folder, without touching it; returns the checkpoint to resume from, or none.

    Raises:
        InputError: A fresh run would overwrite one, a resume finds nothing, or finds another configuration.
    """
    last = out / "checkpoints" / f"{LAST}.ckpt"
    plain = with_start(config)
    pick_device(plain.get("device", "auto"))
    if plain.get("precision", "auto") not in _PRECISIONS:
        raise InputError(f"precision {plain['precision']!r} is none of {', '.join(_PRECISIONS)}")
    if resume:
        if not (last.is_file() and (out / CONFIG).is_file()):
            raise InputError(f"{out}: nothing to resume, {last.name} is not there; leave --resume out")
        changed = changed_setting(read_config(out), plain)
        if changed:
            raise InputError(f"{out}: the run began with {changed}; resume with the same settings")
        return last
    if last.is_file():
        raise InputError(f"{out}: a run is here already; use --resume to continue it, or another --out")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; --out takes a folder")
    try:
        with tempfile.TemporaryFile(dir=next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())):
            pass
    except OSError as error:
        raise InputError(f"{out}: --out cannot be written ({error.strerror})") from None
    return None


def changed_setting(kept: dict[str, Any], wanted: dict[str, Any], free: Collection[str] = FREE) -> str:
    """The first setting in which a run differs from what is wanted, as ``"seed = 0, not 3"``; empty if none does.

    Args:
        kept: Settings of the run, on its card or in its ``config.yaml``.
        wanted: From `plain_config`.
        free: Names that may differ.
    """
    known = _BEFORE | kept
    for name, value in wanted.items():
        if name in known and known[name] != value and name not in free:
            if name == START_HASH:
                return f"other weights than {wanted['init']} now holds"
            return f"{name} = {known[name]}, not {value}"
    return ""


def write_config(out: Path, config: Any) -> None:
    """``config.yaml`` of a run. One that goes on without the file of its first weights keeps what it knew of them."""
    settings = with_start(config)
    if START_HASH not in settings and settings.get("init") not in ("imagenet", "none") and (out / CONFIG).is_file():
        settings |= {key: value for key, value in read_config(out).items() if key in (START_HASH, "start")}
    write_text(out / CONFIG, yaml.safe_dump(settings, sort_keys=False))


def read_config(out: Path) -> dict[str, Any]:
    """The settings of a run, with what is known of its first weights."""
    return dict(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8")))


def chosen_state(out: Path) -> tuple[dict[str, Any], int]:
    """State and epoch of a run's best checkpoint, or of its last one where nothing was validated."""
    folder = out / "checkpoints"
    path = next(p for p in (folder / f"{BEST}.ckpt", folder / f"{LAST}.ckpt") if p.is_file())
    kept = torch.load(path, map_location="cpu", weights_only=True)
    return kept["state_dict"], int(kept["epoch"])


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


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain values that YAML and JSON can hold."""
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    return {k: _plain(v) for k, v in values.items()}


def with_start(config: Any) -> dict[str, Any]:
    """`plain_config`, with the SHA-256 of the weight file that a run starts from, and what that had learnt from: a path
    alone does not tell whether it still holds the same."""
    plain = plain_config(config)
    start = Path(str(plain.get("init", "")))
    return plain | ({START_HASH: sha256_of(start), **known_start(plain)} if start.is_file() else {})


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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
