"""The trainer: a moved run keeps its best epoch, a run that stopped early is over."""

from __future__ import annotations

import os
import re
import signal
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tests.data.training.runs import classifier_config, segmenter_config, train
from tumorlens.data import devices
from tumorlens.data.errors import InputError
from tumorlens.data.training import run as run_module
from tumorlens.data.training import trainer as room
from tumorlens.data.training.trainer import make_trainer, run_trainer


def test_a_run_that_was_moved_keeps_its_best_epoch(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp")
    train(config, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    states = torch.load(tmp_path / "there" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (stored,) = [state for name, state in states.items() if name.startswith("_Best")]
    best = make_trainer(tmp_path / "there", config, "val_macro_f1", progress=False).checkpoint_callback
    best.load_state_dict(stored)
    assert best.best_model_score == stored["best_model_score"]
    assert best.best_model_path == str((tmp_path / "there" / "checkpoints" / "best.ckpt").resolve())
    assert list(best.best_k_models) == [best.best_model_path]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch, processes):
    last = tmp_path / "checkpoints" / "last.ckpt"
    plugins = []
    with monkeypatch.context() as patch:
        patch.setattr(room.L, "Trainer", lambda **settings: plugins.extend(settings["plugins"]))
        make_trainer(tmp_path, classifier_config("x", devices=processes), None)
    (writer,) = (plugin for plugin in plugins if isinstance(plugin, TorchCheckpointIO))
    writer.save_checkpoint({"epoch": 1}, last)

    def stop(part):
        assert part.parent == last.parent and part.stat().st_size > 0
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "flush", stop)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"epoch": 2}, last)
    assert torch.load(last, weights_only=True) == {"epoch": 1}
    assert list(last.parent.iterdir()) == [last]


def test_a_run_that_stopped_early_is_over(tmp_path):
    """Resumed, it must not train on, or it might choose another epoch than it did."""
    state = {"epoch": 3, "callbacks": {"EarlyStopping{'monitor': 'val_dice'}": {"stopped_epoch": 3}}}
    torch.save(state, tmp_path / "last.ckpt")
    run_trainer(None, None, None, None, tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, {"accelerator": "cpu", "devices": 1, "precision": "32-true", "benchmark": False}),
        ("cuda", (8, 0), {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed", "benchmark": True}),
        ("cuda:1", (7, 5), {"accelerator": "gpu", "devices": [1], "precision": "32-true", "benchmark": True}),
    ],
)
def test_a_gpu_computes_in_bfloat16_and_with_the_fastest_convolutions(
    monkeypatch, tmp_path, device, capability, expected
):
    """What Lightning is asked for, on a machine that has no GPU."""
    monkeypatch.setattr(room, "pick_device", torch.device)
    monkeypatch.setattr(room.L, "Trainer", lambda **settings: settings)
    monkeypatch.setattr(devices, "_cpu_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    settings = make_trainer(tmp_path, classifier_config("x", device=device, precision="auto"), None)
    assert {name: settings[name] for name in expected} == expected


class _Kill(L.Callback):
    """Ends the process that augments, as a system without memory does."""

    def on_train_batch_start(self, trainer, module, batch, index):
        for worker in trainer.train_dataloader._iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_process_that_is_killed_ends_the_run_with_a_sentence(phantom_set, tmp_path, monkeypatch):
    def make(*args, **rest):
        trainer = make_trainer(*args, **rest)
        trainer.callbacks.append(_Kill())
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", make)
    sentence = r"the process that augments slices .*; repeat the command, with --resume if an epoch was finished.*"
    with pytest.raises(InputError) as failure:
        train(segmenter_config(phantom_set, workers=1, batch_size=2, epochs=20), tmp_path)
    assert re.fullmatch(sentence, str(failure.value))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal. "), r".*\(pid 7\) is killed by signal.*"),
        (ConnectionResetError(104, "Connection reset by peer"), "the process that augments slices was ended; repeat.*"),
        (EOFError(), "the process that augments slices was ended; repeat.*"),
    ],
)
def test_however_the_end_of_a_process_shows_it_is_one_sentence(error, sentence):
    with pytest.raises(InputError, match=sentence):
        run_trainer(SimpleNamespace(fit=_raise(error)), None, None, None, None)


def test_other_errors_of_training_are_not_hidden():
    with pytest.raises(RuntimeError, match="size mismatch"):
        run_trainer(SimpleNamespace(fit=_raise(RuntimeError("size mismatch"))), None, None, None, None)


def _raise(error):
    def fit(*args, **rest):
        raise error

    return fit


def test_a_single_process_trains_in_a_job_of_slurm_that_has_several_tasks(phantom_set, tmp_path, monkeypatch):
    """As in a batch script, or in the second task of ``srun``. It also removes what stopped processes have prepared."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    settings = {"NTASKS": "2", "JOB_ID": "5", "PROCID": "1", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for each in (fabric, rank_zero_only):  # Lightning reads the number of the process when it is imported
        monkeypatch.setattr(each, "rank", 1)
    (tmp_path / "prepared").mkdir()
    train(classifier_config(phantom_set, arch="mlp"), tmp_path)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "prepared").exists()
