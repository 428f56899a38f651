"""The trainer: a moved run keeps its best epoch, a run that stopped early is over."""

from __future__ import annotations

import torch

from tests.data.training.runs import classifier_config, train
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


def test_a_run_that_stopped_early_is_over(tmp_path):
    """Resumed, it must not train on, or it might choose another epoch than it did."""
    state = {"epoch": 3, "callbacks": {"EarlyStopping{'monitor': 'val_dice'}": {"stopped_epoch": 3}}}
    torch.save(state, tmp_path / "last.ckpt")
    run_trainer(None, None, None, None, tmp_path / "last.ckpt")
