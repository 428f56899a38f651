"""The benchmark measures both sides in one run, and refuses a number that is not one."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest

from tests.benchmarks import benchmark, rounds
from tests.benchmarks import training as benchmark_training
from tests.benchmarks.__main__ import main
from tumorlens.data.errors import InputError


@pytest.mark.slow  # measures starts of processes, both stages and both trainings
def test_figures_stand_beside_their_baseline(tmp_path, monkeypatch, capsys):
    for name in ("_ROUNDS", "_FEWEST_ROUNDS"):
        monkeypatch.setattr(rounds, name, 1)
    monkeypatch.setattr(benchmark, "_CALLS", 2)
    real = benchmark_training.training_loops  # at 192 pixels it takes minutes where cores are shared
    monkeypatch.setattr(benchmark_training, "training_loops", lambda stage, steps, size: real(stage, steps, 64))
    options = ["--slices", "4", "--depth", "8", "--growth", "3", "--training", "1", "-o", str(tmp_path / "speed.json")]
    main(options)
    written = json.loads((tmp_path / "speed.json").read_text())
    assert [row["unit"] for row in written["figures"]] == [
        *("s", "MB", "ms", "ms", "ms a slice", "s"),
        *("ms a slice", "ms a slice"),
    ]
    for row in written["figures"]:
        costs = np.array(row["rounds"])  # (rounds, ours and plain PyTorch, wall and processor time)
        assert costs.shape[1:] == ((2, 1) if row["unit"] == "MB" else (2, 2))
        assert (costs > 0).all()
        assert row["ours"] == pytest.approx(np.median(costs[:, 0, 0]), rel=0.05)
        assert row["ratio"]["least"] == pytest.approx((costs[:, 1, 0] / costs[:, 0, 0]).min(), rel=0.05)
    start = written["figures"][0]
    assert start["ratio"]["least"] > 1.5  # no PyTorch to import
    context = written["context"]
    floor = context["floor"]
    assert 5 < floor["gflop_per_slice"] < 30  # a ResNet-50 (8.2 GFLOP at 224 px) and a U-Net around another
    assert floor["least_ms_per_slice"] == pytest.approx(
        floor["gflop_per_slice"] / floor["matrix_product_tflops"], rel=0.02
    )
    assert list(context["steps_ms"]) == ["read", "prepare", "classify", "segment", "conclude", "write"]
    assert all(context["steps_ms"].values())
    assert [row["stage"] for row in context["loader"]] == ["classification", "segmentation"]
    grown = context["growth"][0]
    assert grown["pictures"] == 3
    assert grown["processor_ms_each"] > 0
    assert "| start to result, one picture, s |" in capsys.readouterr().out


def test_the_figures_are_printed_and_written(tmp_path, monkeypatch, capsys):
    figures = benchmark.Figures()
    costs = [[[20, 40], [50, 50]], [[20, 40], [44, 50]], [[22, 40], [55, 60]]]
    figures.add("a folder, read to written", "ms a slice", np.array(costs, float))
    figures.add("peak memory of that", "MB", np.array([[[400.0], [1000.0]]]))
    floor = dict.fromkeys(("both_networks_ms_per_slice", "gflop_per_slice", "least_ms_per_slice"), 8.0)
    share = {"median": None, "least": 0.4, "most": 0.9}
    figures.context = {
        "floor": floor | {"matrix_product_tflops": 0.2, "share_of_rate": share},
        "steps_ms": {"read": 3.2, "prepare": 4.0},
    }
    calls = []
    monkeypatch.setattr("tests.benchmarks.__main__.benchmark", lambda *a, say: calls.append(a) or figures)
    main(["--slices", "4", "--growth", "10, 100", "-o", str(tmp_path / "speed.json")])
    assert calls == [(4, 155, None, (10, 100), 0)]
    row = json.loads((tmp_path / "speed.json").read_text())["figures"][0]
    assert row["ratio"] == {"median": 2.5, "least": 2.2, "most": 2.5}
    assert row["rounds"] == costs
    lines = capsys.readouterr().out.splitlines()
    assert "| a folder, read to written, ms a slice | 20 | 50 | 2.5 | 1.25 |" in lines
    assert "| peak memory of that, MB | 400 | 1000 | 2.5 | - |" in lines
    assert "processor time of a slice in ms: read 3.2, prepare 4" in lines
    assert lines[-1].startswith("both networks, in batches: 8 ms a slice")
    assert lines[-1].endswith("ratio too noisy (0.4 to 0.9)")


def test_a_ratio_that_differs_from_round_to_round_is_refused():
    figures = benchmark.Figures()
    quiet_processor = [[[10, 8], [14, 16]], [[10, 8], [29, 16]], [[10, 8], [20, 17]]]
    figures.add("a folder", "ms a slice", np.array(quiet_processor, float))
    assert figures.table().splitlines()[-1] == "| a folder, ms a slice | 10 | 20 | too noisy (1.4 to 2.9) | 2 |"
    assert figures.rows[0]["ratio"] == {"median": None, "least": 1.4, "most": 2.9}
    assert figures.rows[0]["rounds"] == quiet_processor


@pytest.mark.parametrize(("last", "median"), [(2.5, 2.0), (2.6, None)])
def test_rounds_may_differ_by_a_quarter(last, median):
    assert rounds.ratio_of(np.array([[1, 2], [2, 4], [1, last]]))["median"] == median


def test_the_sides_take_turns_and_long_ones_less_often(monkeypatch):
    seen = []
    sides = [lambda: seen.append("ours") or 1.0, lambda: seen.append("plain") or 2.0]
    assert rounds.run_rounds(*sides, warm=1).tolist() == [[1, 2]] * 3
    assert seen == ["ours", "plain"] * 4
    monkeypatch.setattr(rounds, "_LONG_S", 0)
    assert len(rounds.run_rounds(*sides)) == 2


def test_processor_time_is_measured_beside_wall_time():
    wall, processor = rounds.spent(lambda: time.sleep(0.2))
    assert processor < 0.1 < wall
    worker = "sum(range(3_000_000))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    alone, of_children = (benchmark._process([sys.executable, "-c", code]) for code in ("pass", outer))
    assert of_children[1] > 1.5 * alone[1]  # two interpreters and the work


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--growth", "10,many"], "--growth: '10,many' is not a list of whole numbers such as 10,100"),
        (["--slices", "3"], "--slices: 3 is less than 4"),
    ],
)
def test_numbers_that_cannot_be_measured(options, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_start_that_fails_is_not_a_figure():
    with pytest.raises(InputError, match=r"a measured process ended with 1 \(no such thing\)"):
        benchmark._process([sys.executable, "-c", "raise SystemExit('no such thing')"])
