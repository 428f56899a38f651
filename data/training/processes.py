"""Several processes that train one network together, each on its share of every batch.

Lightning starts them by repeating the command (``--devices``), or finds those that torchrun or SLURM have started. Each
does the same work up to the end of the training, in step with the others. Then the first goes on alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from subprocess import Popen, TimeoutExpired
from threading import Event, Thread
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from tumorlens.data.config import TrainingConfig
from tumorlens.data.devices import pick_device
from tumorlens.data.errors import InputError

_PATIENCE = timedelta(hours=2)  # a process that hears nothing from the others for so long gives up
_FIRST_SPEAKS = 1.0  # seconds that the others leave the first process to say what went wrong in all of them
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset")  # in errors of a process whose partner ended
_ENDED = (
    "another process of this training was ended; repeat the command, with --resume if an epoch was finished, and with "
    "fewer --devices if memory is short"
)
_NOTICES_S = 10.0  # seconds that this process has to notice that another has ended
_fabric: L.Fabric | None = None  # of this program's training
_children: list[Popen[bytes]] = []  # processes that this one has started for it
_apart = Event()  # set once this process no longer waits for the others


def devices_of(config: TrainingConfig, where: torch.device) -> dict[str, Any]:
    """The devices of a run on devices of a kind, as Lightning's `Trainer` and `Fabric` take them."""
    one = [where.index] if where.type == "cuda" and where.index is not None else 1
    return {
        "devices": one if config.devices == 1 else config.devices,
        "num_nodes": config.nodes,
        "accelerator": {"cuda": "gpu"}.get(where.type, where.type),
    }


def start_processes(config: TrainingConfig) -> L.Fabric | None:
    """Start the other processes of a run, or join them; None for a run of a single one.

    Raises:
        InputError: The batch, the device, or what started this process does not fit, or this program has trained with
            several processes before.
    """
    global _fabric
    started = TorchElasticEnvironment.detect()
    if config.processes == 1:
        if started and int(os.environ["WORLD_SIZE"]) > 1:
            raise InputError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes; give train their number on each machine with "
                "--devices, and that of the machines with --nodes"
            )
        return None
    _check(config)
    launched: list[Popen[bytes]] = []
    try:
        fabric = L.Fabric(strategy=DDPStrategy(timeout=_PATIENCE), **devices_of(config, pick_device(config.device)))
        environment = getattr(fabric.strategy, "cluster_environment", None)
        if config.nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
            raise InputError(f"--nodes {config.nodes}: start the command on each machine, with torchrun or srun")
        launched = getattr(fabric.strategy.launcher, "procs", launched)
        fabric.launch()
    except BaseException as error:
        for child in launched:
            child.kill()  # it would wait for this one as long as it has patience
        if isinstance(error, InputError) or not isinstance(
            error, ValueError | RuntimeError | MisconfigurationException
        ):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"--devices {config.devices} --nodes {config.nodes}: the processes cannot start together ({reason})"
        ) from None
    _fabric = fabric
    if launched:
        _children.extend(launched)
        launched.clear()  # Lightning, which reads this list, would kill this process as soon as one of them ends
        Thread(target=_watch, name="children", daemon=True).start()
    return fabric


def _watch() -> None:
    """End this process if one that it has started was ended, and it waits for that one without hearing of it."""
    while not any(child.poll() for child in _children):
        if _apart.wait(1):
            return
    if _apart.wait(_NOTICES_S):
        return
    has_spoken = any((child.returncode or 0) > 0 for child in _children)
    _end_others(at_once=True)
    if not has_spoken:
        print(f"tumorlens: error: {_ENDED}", file=sys.stderr, flush=True)
    os._exit(2)


def _check(config: TrainingConfig) -> None:
    """Raise an `InputError` if a run cannot be shared by its processes."""
    if _fabric is not None:
        raise InputError("a program trains once with several processes; start another one for the next training")
    if rest := config.batch_size % config.processes:
        more = config.batch_size + config.processes - rest
        raise InputError(
            f"--batch-size {config.batch_size} is for all {config.processes} processes together, and is not a multiple "
            f"of their number; give {more}"
        )
    where = pick_device(config.device)
    if where.type == "mps" or where.index is not None:
        raise InputError(f"--device {config.device} is one device; leave it or --devices {config.devices} out")
    if where.type == "cuda" and torch.cuda.device_count() < config.devices:
        raise InputError(f"--devices {config.devices}: this machine has {torch.cuda.device_count()} GPUs")


def end_processes() -> None:
    """End the work in common: the first process goes on alone, the others leave the program."""
    if not together():
        return
    number = distributed.get_rank()
    _apart.set()
    distributed.destroy_process_group()
    if number:
        raise SystemExit(0)


def together() -> bool:
    """Whether this process trains together with others at the moment."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def one_voice() -> Iterator[None]:
    """Of the processes of a training that fails or is stopped, one says why. The others end without a word.

    Raises:
        InputError: Another process has ended and could not say why.
    """
    try:
        yield
    except BaseException as error:
        if not together() or isinstance(error, SystemExit):
            raise
        number = distributed.get_rank()
        _apart.set()
        if isinstance(error, KeyboardInterrupt):
            if number:
                raise SystemExit(130) from None
            _end_others(at_once=True)
            raise
        if number:
            time.sleep(_FIRST_SPEAKS)
        first = _is_first()
        if not number:
            _end_others(at_once=first)
        if not first:
            raise SystemExit(2) from None
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST):
            raise InputError(_ENDED) from None
        raise


def _is_first() -> bool:
    """Whether no other process of this training has failed before."""
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("tumorlens/failed", 1) == 1)
    except RuntimeError:  # the first process, which keeps the count, has ended
        return False


def _end_others(at_once: bool) -> None:
    """End the processes that this one has started, or let them finish what they say."""
    for process in _children:
        with suppress(TimeoutExpired):
            process.kill() if at_once else process.wait(5)
