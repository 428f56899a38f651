"""The benchmark measures both sides in one run, and refuses a number that is not one."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import benchmark
from tests.benchmarks import training as benchmark_training
from tests.benchmarks.__main__ import main
from tumorlens.data.errors import InputError


@pytest.mark.slow  # measures starts of processes, both stages and both trainings
def test_figures_stand_beside_their_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_REPEATS", 1)
    real = benchmark_training.measure_training  # at 192 pixels it takes minutes where cores are shared
    monkeypatch.setattr(benchmark_training, "measure_training", lambda stage, steps, size: real(stage, steps, 64))
    options = ["--slices", "4", "--depth", "8", "--growth", "3", "--training", "1", "-o", str(tmp_path / "speed.json")]
    main(options)
    written = json.loads((tmp_path / "speed.json").read_text())
    assert [row["unit"] for row in written["figures"]] == [
        *("s", "MB", "ms", "ms", "ms a slice", "s"),
        *("ms a slice", "ms a slice"),
    ]
    for row in written["figures"]:
        assert row["ratio"] == pytest.approx(row["baseline"] / row["ours"], rel=0.05)
    start = written["figures"][0]
    assert start["ratio"] > 1.5  # no PyTorch to import
    floor = written["context"]["floor"]
    assert 5 < floor["gflop_per_slice"] < 30  # a ResNet-50 (8.2 GFLOP at 224 px) and a U-Net around another
    assert floor["least_ms_per_slice"] == pytest.approx(
        floor["gflop_per_slice"] / floor["matrix_product_tflops"], rel=0.02
    )
    assert [row["stage"] for row in written["context"]["loader"]] == ["classification", "segmentation"]
    assert written["context"]["growth"][0]["pictures"] == 3
    assert "| start to result, one picture, s |" in capsys.readouterr().out


def test_the_figures_are_printed_and_written(tmp_path, monkeypatch, capsys):
    figures = benchmark.Figures()
    figures.add("a folder, read to written", 20.0, 50.0, "ms a slice")
    floor = dict.fromkeys(("both_networks_ms_per_slice", "gflop_per_slice", "least_ms_per_slice"), 8.0)
    figures.context = {"floor": floor | {"matrix_product_tflops": 0.2, "share_of_rate": 0.5}}
    calls = []
    monkeypatch.setattr("tests.benchmarks.__main__.benchmark", lambda *a, say: calls.append(a) or figures)
    main(["--slices", "4", "--growth", "10, 100", "-o", str(tmp_path / "speed.json")])
    assert calls == [(4, 155, None, (10, 100), 0)]
    assert json.loads((tmp_path / "speed.json").read_text())["figures"][0]["ratio"] == 2.5
    lines = capsys.readouterr().out.splitlines()
    assert "| a folder, read to written, ms a slice | 20 | 50 | 2.5 |" in lines
    assert lines[-1].startswith("both networks, in batches: 8 ms a slice")


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
        benchmark._process([benchmark.sys.executable, "-c", "raise SystemExit('no such thing')"])
