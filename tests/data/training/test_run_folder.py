"""The run folder: settings that a resumed run may change, tables that any file name goes into."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.trust.evidence import write_predictions
from tumorlens.data.config import DataConfig
from tumorlens.data.errors import InputError
from tumorlens.data.training.partition import load_partition
from tumorlens.data.training.run_folder import changed_setting, check_run, read_config, write_config
from tumorlens.segmentation.evaluation.metrics import write_scores


def test_a_resumed_run_may_change_the_device_and_be_longer_but_not_change_the_recipe(tmp_path):
    config = ClassifierConfig(data=(str(tmp_path),), epochs=3)
    write_config(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert check_run(tmp_path, replace(config, device="cpu", workers=4), resume=True).name == "last.ckpt"
    assert check_run(tmp_path, replace(config, epochs=9), resume=True).name == "last.ckpt"
    with pytest.raises(InputError, match="the run began with epochs = 3, not 2"):
        check_run(tmp_path, replace(config, epochs=2), resume=True)
    with pytest.raises(InputError, match=r"the run began with learning_rate = 0\.0004, not 0\.1"):
        check_run(tmp_path, replace(config, learning_rate=0.1, epochs=9), resume=True)


def test_data_that_were_moved_are_given_a_new_place(tmp_path):
    (tmp_path / "new").mkdir()
    config = ClassifierConfig(data=(str(tmp_path / "old"),))
    write_config(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"data are not at .*old any more; give the new place of all of them with --data"
    ):
        check_run(tmp_path, config, resume=True)
    moved = replace(config, data=(str(tmp_path / "new"),))
    assert check_run(tmp_path, moved, resume=True).name == "last.ckpt"
    with pytest.raises(InputError, match="the run began with data"):
        check_run(tmp_path, replace(moved, data=moved.data * 2), resume=True)
    write_config(tmp_path, moved)
    with pytest.raises(InputError, match="the run began with data"):  # they are where they were
        check_run(tmp_path, replace(config, data=(str(tmp_path),)), resume=True)


def test_a_longer_run_keeps_the_lengths_it_had(tmp_path):
    config = ClassifierConfig(data=("x",), epochs=3)
    for epochs in (3, 5, 5, 9):
        write_config(tmp_path, replace(config, epochs=epochs))
    assert (read_config(tmp_path)["epochs"], read_config(tmp_path)["lengthened"]) == (9, [3, 5])


def test_the_first_changed_setting_is_named():
    recorded = {"seed": 0, "transplant": 0.0, "workers": 2}
    assert changed_setting(recorded, recorded | {"workers": 5}) == ""
    assert changed_setting(recorded, recorded | {"transplant": 0.15}) == "transplant = 0.0, not 0.15"
    assert changed_setting(recorded, recorded | {"seed": 4}, free=("seed",)) == ""


def test_a_file_name_that_is_not_utf8_does_not_end_a_run(phantom_set, tmp_path):
    part = load_partition(DataConfig((str(phantom_set),), size=64)).test
    odd = replace(part.samples[0], image=Path("M\udcfcller.png"), patient="M\udcfcller")
    part = replace(part, samples=[odd, *part.samples[1:]])
    write_scores(tmp_path / "test.csv", part, part.masks)
    write_predictions(tmp_path / "predictions.csv", part, np.full((len(part), 4), 0.25, np.float32))
    for name in ("test.csv", "predictions.csv"):
        with (tmp_path / name).open(encoding="utf-8") as file:
            assert next(csv.DictReader(file))["image"] == "M\\udcfcller.png"
