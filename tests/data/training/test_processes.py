"""Several processes learn as one does, and end together."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.data.training.runs import BACKBONE, ENCODER, QUICK, STAGES, classifier_config, stage_of, train
from tests.waiting import until
from tumorlens.data.cards.card import read_card
from tumorlens.data.errors import InputError
from tumorlens.data.training.processes import start_processes
from tumorlens.segmentation.config import DECODER_CHANNELS

TRAIN = [sys.executable, "-m", "tumorlens.pipeline.cli.app", "train"]
SMALL = {
    "classification": ["--arch", BACKBONE],
    "segmentation": ["--encoder", ENCODER, "--label-weight", "0.1", "--negative-share", "0.4"],
}
LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the test finds processes in /proc")


def words(stage, data, out, *more):
    """The words of a command that trains a small network with two processes."""
    settings = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*TRAIN, stage, "--data", str(data), *settings, *SMALL[stage], "--devices", "2", "-o", str(out), *more]


def call(command, **rest):
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, **rest)


def rows_of(out):
    with (out / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def odd_set(phantom_set, tmp_path_factory):
    """The phantoms less one of the validation slices, so that two processes have not as many."""
    folder = shutil.copytree(phantom_set, tmp_path_factory.mktemp("odd") / "set")
    index = folder / "index.csv"
    lines = index.read_text().splitlines()
    validation = [line for line in lines if line.endswith(",1")]
    index.write_text("\n".join(line for line in lines if line != validation[-1]) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_learn_as_one_does(name, odd_set, tmp_path):
    """Losses and figures of training and validation; then one process goes on where the two have stopped."""
    more = {}
    if name == "segmentation":  # the decoder is that of the command
        more = {"label_weight": 0.1, "negative_share": 0.4, "decoder_channels": DECODER_CHANNELS}
    stage = stage_of(name, odd_set, **more)
    alone = train(stage.config, tmp_path / "one")
    done = call(words(name, odd_set, tmp_path / "two"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("epoch 1 of 2") == done.stdout.count("weights in") == 1

    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(one) == len(two) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    card = read_card(tmp_path / "two" / f"{stage.weights}.safetensors")
    assert card["n_slices"] == alone["n_slices"] == {"train": 24, "validation": 7, "test": 8}
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["devices"] == 2
    assert not (tmp_path / "two" / "prepared").exists()

    again = call([*TRAIN, name, "--resume", "--epochs", "3", "--devices", "1", "-o", str(tmp_path / "two")])
    assert (again.returncode, again.stderr) == (0, "")
    assert [row["epoch"] for row in rows_of(tmp_path / "two")] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_one_sentence(phantom_set, tmp_path):
    done = call(words("segmentation", phantom_set, tmp_path, "--lr", "1e30"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "training diverged" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_doubled", "sentence"), [(True, "the same picture across the split"), (False, "the data show one class only")]
)
def test_a_set_that_cannot_be_used_leaves_no_folder(phantom_set, tmp_path, is_doubled, sentence):
    """The first process has stored the slices by then. That there is one class is found after all have read them."""
    folder = shutil.copytree(phantom_set, tmp_path / "set")
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if is_doubled:
        first, last = (next(row["image"] for row in rows if row["fold"] == fold) for fold in ("0", "2"))
        shutil.copy(folder / first, folder / last)
    else:
        rows = [row for row in rows if row["label"] == "glioma"]
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = call(words("classification", folder, tmp_path / "run"))
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize(
    ("number", "to_child", "code", "sentence"),
    [
        (signal.SIGKILL, True, 2, "another process of this training was ended; repeat"),
        (signal.SIGTERM, False, 143, "tumorlens: stopped; go on with --resume"),
    ],
    ids=["a process is killed", "the user stops all"],
)
def test_the_end_of_one_process_is_that_of_all(phantom_set, tmp_path, number, to_child, code, sentence):
    more = "--epochs", "200", "--patience", "200", "--workers", "1"  # a forked worker keeps the connections open
    command = words("classification", phantom_set, tmp_path, *more)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not running.stdout.readline().startswith("epoch 2 of"):  # the first has its checkpoint
            assert running.poll() is None, running.stderr.read()
        task = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        children = [int(child) for child in task.read_text().split()]
        children = [child for child in children if "LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_text()]
        assert len(children) == 1
        os.kill(children[0] if to_child else running.pid, number)
        stderr = running.communicate(timeout=120)[1]
    assert (running.returncode, stderr.count("\n")) == (code, 1), stderr
    assert sentence in stderr
    until(lambda: not Path(f"/proc/{children[0]}").exists(), 60)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("0", ""), ("3", ""), ("KILL", "tumorlens: error: another process of this training was ended;")],
)
def test_a_process_that_cannot_hear_of_the_end_of_another_ends(code, sentence):
    """As on GPUs, where one that was killed says nothing. One that has failed has said why."""
    end = "kill -KILL $$" if code == "KILL" else f"exit {code}"
    program = (
        "import subprocess, threading, time\n"
        "from tumorlens.data.training import processes\n"
        "processes._NOTICES_S = 0.1\n"
        f"processes._children.append(subprocess.Popen(['sh', '-c', {end!r}]))\n"
        "threading.Thread(target=processes._watch, daemon=True).start()\n"
        "time.sleep(4)\n"
    )
    done = call([sys.executable, "-c", program])
    assert done.returncode == (0 if code == "0" else 2)
    assert done.stderr.startswith(sentence) and done.stderr.count("\n") == bool(sentence)


@pytest.mark.slow
@LINUX
def test_a_start_that_fails_leaves_no_process(phantom_set, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        command = words("classification", phantom_set, tmp_path / "run")
        with subprocess.Popen(
            command, env={**os.environ, **address}, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as running:
            stderr = running.communicate(timeout=120)[1]
    assert running.returncode == 2
    assert "--devices 2 --nodes 1: the processes cannot start together (" in stderr and stderr.count("\n") == 1

    def is_over():
        with suppress(ProcessLookupError):
            os.killpg(running.pid, 0)
            return False
        return True

    until(is_over, 60)


@pytest.mark.slow
def test_torchrun_starts_the_processes(phantom_set, tmp_path):
    """And each of them reads what the first has prepared."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    _, _, *rest = words("segmentation", phantom_set, tmp_path, "--prepared", str(tmp_path / "kept"), "--epochs", "1")
    done = call([*torchrun, *rest], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights in") == 1
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 1


@pytest.mark.parametrize(
    ("settings", "environment", "sentence"),
    [
        ({"devices": 3}, {}, "--batch-size 8 is for all 3 processes together, and is not a multiple.*; give 9"),
        ({"devices": 2, "nodes": 2}, {}, "--nodes 2: start the command on each machine, with torchrun or srun"),
        ({}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, "torchrun started 2 processes; give .* --devices"),
        (
            {"devices": 4},
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            "--devices 4 --nodes 1: the processes cannot start together .*world size",
        ),
        (
            {"devices": 2},
            {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "1"}
            | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1"},
            "--devices 2 --nodes 1: the processes cannot start together .*ntasks-per-node=4",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, environment, sentence, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence):
        start_processes(classifier_config("x", **settings))
