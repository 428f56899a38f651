"""The folder of a training run: settings, checkpoints, metrics, and the part of the card that describes the run."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from tumorlens.data.cards.lineage import START_HASH, known_start, patients_of_run
from tumorlens.data.config import TrainingConfig
from tumorlens.data.datasets.load import find_source
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.picture_hashes import PictureHashes
from tumorlens.data.devices import pick_device
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of, whole_file, write_text
from tumorlens.data.training.partition import Partition

CONFIG = "config.yaml"
BEST, LAST = "best", "last"  # checkpoints
# A resumed run may change these: they change no result.
FREE = ("device", "devices", "nodes", "workers", "prepared", "logger", "start")
_PRECISIONS = ("auto", "bf16", "fp32")


def describe_run(out: Path, parts: Partition, best_epoch: int, command: str) -> dict[str, Any]:
    """The part of a card that says how the weights came about.

    The settings are those in the run's folder, because the file of the initial weights may hold other weights now.
    Patients and pictures are hashes, see `data.datasets.patient_hashes` and `data.datasets.picture_hashes`.
    """
    training = read_config(out)
    members = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    with suppress(OSError, InputError):  # a file that was moved during the training must not cost the weights
        patients = {name: hash_patients(part.samples) for name, part in members.items()}
        training = patients_of_run(training, patients, PictureHashes.of(parts.train.images).text)
    return {
        "training": training,
        "n_slices": {name: len(part) for name, part in members.items()},
        "dropped_near_duplicates": len(parts.dropped),
        **({} if parts.leaks is None else {"leaking_test_slices": parts.leaks}),
        "best_epoch": best_epoch,
        "date": date.today().isoformat(),
        "command": command,
    }


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
                filled = {k: v for k, v in row.items() if v and k != "step"}
                fresh.setdefault(int(row["epoch"]), {}).update(filled)
        if fresh:  # a resumed run repeats the epoch in which it was stopped, and all later ones
            rows = {epoch: row for epoch, row in rows.items() if epoch < min(fresh)} | fresh
    for row in rows.values():
        columns.update(dict.fromkeys(sorted(row)))
    table = [rows[epoch] for epoch in sorted(rows) if any(k.startswith(("val_", "train_loss")) for k in rows[epoch])]
    with whole_file(out / "metrics.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(table)
    return table


def check_run(out: Path, config: TrainingConfig, resume: bool) -> Path | None:
    """Check the run's folder without changing it; returns the checkpoint to resume from, None for a new run.

    Raises:
        InputError: A new run would overwrite one, or a resumed one has no checkpoint, other settings or fewer epochs,
            or its data were moved.
    """
    last = out / "checkpoints" / f"{LAST}.ckpt"
    plain = with_start(config)
    pick_device(plain.get("device", "auto"))
    if plain.get("precision", "auto") not in _PRECISIONS:
        raise InputError(f"precision {plain['precision']!r} is not one of {', '.join(_PRECISIONS)}")
    if resume:
        if not (last.is_file() and (out / CONFIG).is_file()):
            raise InputError(f"{out}: nothing to resume, {last.name} is not there; leave --resume out")
        recorded = read_config(out)
        free = {*FREE, "epochs"} if plain["epochs"] >= recorded.get("epochs", 1) else set(FREE)
        moved = [source for source in recorded.get("data", ()) if not _is_there(source)]
        if moved and len(plain["data"]) == len(recorded["data"]):
            free.add("data")
        changed = changed_setting(recorded, plain, free)
        if changed:
            raise InputError(f"{out}: the run began with {changed}; resume with the same settings, or more --epochs")
        if moved and plain["data"] == recorded["data"]:
            raise InputError(
                f"{out}: the run's data are not at {', '.join(moved)} any more; give the new place of all of them with "
                "--data, in the same order"
            )
        return last
    if last.is_file():
        raise InputError(f"{out}: there is a run already; use --resume to continue it, or another --out")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; --out takes a folder")
    try:
        with tempfile.TemporaryFile(dir=next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())):
            pass
    except OSError as error:
        raise InputError(f"{out}: --out cannot be written ({error.strerror})") from None
    return None


def _is_there(source: str) -> bool:
    try:
        find_source(source)
    except InputError:
        return False
    return True


def changed_setting(recorded: dict[str, Any], settings: dict[str, Any], free: Collection[str] = FREE) -> str:
    """The first setting in which a recorded run differs, as ``"seed = 0, not 3"``; empty if none does.

    Args:
        recorded: Settings on the run's card or in its ``config.yaml``.
        settings: The settings to compare with, from `plain_config`.
        free: Names that may differ.
    """
    for name, value in settings.items():
        if name in recorded and recorded[name] != value and name not in free:
            if name == START_HASH:
                return f"other weights than {settings['init']} now holds"
            return f"{name} = {recorded[name]}, not {value}"
    return ""


def write_config(out: Path, config: TrainingConfig) -> None:
    """Write a run's ``config.yaml``: its stage, all settings, and the record of its initial weights.

    If the file of the initial weights is missing, its earlier record stays. ``lengthened`` lists the epochs that the
    run was to have before it got more.
    """
    settings = {"stage": config.stage, **with_start(config)}
    before = read_config(out) if (out / CONFIG).is_file() else {}
    if START_HASH not in settings and config.init_file is not None:
        settings |= {key: before[key] for key in (START_HASH, "start") if key in before}
    ends = list(before.get("lengthened", ()))
    if before.get("epochs", config.epochs) < config.epochs:
        ends.append(before["epochs"])
    settings |= {"lengthened": ends} if ends else {}
    write_text(out / CONFIG, yaml.safe_dump(settings, sort_keys=False))


def read_config(out: Path) -> dict[str, Any]:
    """The settings of a run, with the record of its initial weights."""
    return dict(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8")))


def chosen_state(out: Path) -> tuple[dict[str, Any], int]:
    """State and epoch of a run's best checkpoint, or of its last one where validation chose none."""
    folder = out / "checkpoints"
    path = next(p for p in (folder / f"{BEST}.ckpt", folder / f"{LAST}.ckpt") if p.is_file())
    checkpoint = read_checkpoint(path)
    return checkpoint["state_dict"], int(checkpoint["epoch"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run.

    Raises:
        InputError: The file is damaged.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["epoch"]
    except Exception as error:  # torch.load raises a different type for every way a file can be wrong
        raise InputError(
            f"{path}: the checkpoint is damaged ({type(error).__name__}); put a whole copy there, or train again with "
            "another --out"
        ) from None
    return checkpoint


def check_outputs(out: Path, checkpoint: Path, outputs: Sequence[str]) -> None:
    """Check that a run to resume still learns the classes with which it began.

    Args:
        out: The run's folder.
        checkpoint: Where it continues.
        outputs: The classes that its data have now.

    Raises:
        InputError: The checkpoint is damaged, or its classes are others.
    """
    began = read_checkpoint(checkpoint).get("outputs", list(outputs))
    if began != list(outputs):
        raise InputError(
            f"{out}: the run began with the classes {', '.join(began)}, its data now have {', '.join(outputs)}; put "
            "the data back as they were, or train again with another --out"
        )


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain values that YAML and JSON can hold."""
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    return {k: _plain(v) for k, v in values.items()}


def with_start(config: Any) -> dict[str, Any]:
    """`plain_config`, with the SHA-256 of the initial weights' file and the record of their training.

    A path alone does not tell whether the file still holds the same weights.
    """
    plain = plain_config(config)
    start = config.init_file if isinstance(config, TrainingConfig) else Path(str(plain.get("init", "")))
    if start is None or not start.is_file():
        return plain
    return plain | {START_HASH: sha256_of(start), **known_start(plain | {"init": str(start)})}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
