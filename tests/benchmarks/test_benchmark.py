"""The benchmark measures both sides in one run, and says when a number is none."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.benchmarks import benchmark
from tests.benchmarks import training as benchmark_training
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.app import app


def test_figures_stand_beside_their_baseline(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_REPEATS", 1)
    real = benchmark_training.measure_training  # at 192 pixels it takes minutes where cores are shared
    monkeypatch.setattr(benchmark_training, "measure_training", lambda stage, steps, size: real(stage, steps, 64))
    options = ["--slices", "4", "--depth", "8", "--growth", "3", "--training", "1", "-o", str(tmp_path / "speed.json")]
    done = CliRunner().invoke(app, ["benchmark", *options])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["unit"] for row in found["figures"]] == [
        *("s", "MB", "ms", "ms", "ms a slice", "s"),
        *("ms a slice", "ms a slice"),
    ]
    for row in found["figures"]:
        assert row["ratio"] == pytest.approx(row["baseline"] / row["ours"], rel=0.05)
    start = found["figures"][0]
    assert start["ratio"] > 1.5  # no PyTorch to import
    floor = found["context"]["floor"]
    assert 5 < floor["gflop_per_slice"] < 30  # a ResNet-50 (8.2 GFLOP at 224 px) and a U-Net around another
    assert floor["least_ms_per_slice"] == pytest.approx(
        floor["gflop_per_slice"] / floor["matrix_product_tflops"], rel=0.02
    )
    assert [row["stage"] for row in found["context"]["loader"]] == ["classification", "segmentation"]
    assert found["context"]["growth"][0]["pictures"] == 3
    assert "| start to result, one picture, s |" in done.stdout


def test_growth_that_is_no_number():
    done = CliRunner().invoke(app, ["benchmark", "--growth", "10,many"])
    assert done.exit_code == 2
    assert "--growth '10,many' is no list of whole numbers such as 10,100" in done.stderr


def test_a_start_that_fails_is_no_figure():
    with pytest.raises(InputError, match=r"was to be measured ended with 1 \(no such thing\)"):
        benchmark._process([benchmark.sys.executable, "-c", "raise SystemExit('no such thing')"])
