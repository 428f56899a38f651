"""Runs of the command that are killed at any moment, or that meet in one folder, cost no scan."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.scans.pictures import save, table
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.outputs.table import COLUMNS

pytestmark = pytest.mark.slow

LABELS = ("meningioma", "no_tumor", "glioma", "pituitary")
N_SCANS, N_KILLS = 12, 6


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for n in range(N_SCANS):
        save(folder / f"p{n % 3}" / f"{n}.png", phantom_slice(60 + n, LABELS[n % 4], size=128, pixel_mm=1.7).image)
    (folder / "p1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return folder


@pytest.fixture
def start(scans):
    """Start the command on the scans, and end what is left of it at the end."""
    processes = []

    def run(out, *options):
        command = [sys.executable, "-c", "from tumorlens.pipeline.cli.app import main; main()", "run", str(scans)]
        process = subprocess.Popen(
            [*command, "-o", str(out), "--device", "cpu", "-q", *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def check_results(out):
    """Every result.json has all its files, each row without an error has a result, and no cell is missing."""
    for file in out.rglob("result.json"):
        for name in json.loads(file.read_text())["files"]:
            with Image.open(file.parent / name) as picture:
                picture.load()
    rows = table(out) if (out / "results.csv").exists() else []
    for row in rows:
        assert tuple(row) == COLUMNS and None not in row.values()
        assert row["error"] or (out / row["scan"].removesuffix(".png") / "result.json").is_file()
    return rows


def wait_for_progress(process, out, before):
    """Until something that was not there lies in the output folder, or the process ends."""
    while process.poll() is None and len(list(out.rglob("*"))) <= before:
        time.sleep(0.002)


def test_a_run_that_is_killed_again_and_again_ends_with_every_result(start, tmp_path):
    out, moments = tmp_path / "out", random.Random(20)
    n_rows = 0
    for n in range(N_KILLS):
        before = len(list(out.rglob("*")))
        process = start(out, *(["--continue"] if n else []))
        wait_for_progress(process, out, before + moments.randrange(3, 12))
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.wait()
        rows = check_results(out)
        assert len({row["scan"] for row in rows}) >= n_rows  # none is lost
        n_rows = len({row["scan"] for row in rows})
    last = start(out, "--continue")
    assert last.wait() == 1, last.stderr.read()  # one scan is broken
    rows = check_results(out)
    names = {f"p{n % 3}/{n}.png" for n in range(N_SCANS)}
    assert {row["scan"] for row in rows if not row["error"]} == names and len(rows) == len(names) + 1
    assert not list(out.rglob(".*"))
    assert start(tmp_path / "at_once").wait() == 1
    assert table(tmp_path / "at_once") == rows
    assert {p.relative_to(out) for p in out.rglob("*")} == {
        p.relative_to(tmp_path / "at_once") for p in (tmp_path / "at_once").rglob("*")
    }


@pytest.mark.parametrize("options", [(), ("--continue",), ("--overwrite",)], ids=str)
def test_of_three_runs_at_once_one_writes_and_the_others_say_so(start, tmp_path, options):
    out = tmp_path / "out"
    if options:
        assert start(out).wait() == 1
    processes = [start(out, *options) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [1, 2, 2], errors
    (writer,) = (process.pid for process, code in zip(processes, codes, strict=True) if code == 1)
    message = f"{out}: another run (process {writer}) writes here; wait until it ends, or choose another -o"
    assert [error.splitlines() == [f"tumorlens: error: {message}"] for error in errors].count(True) == 2, errors
    assert len(check_results(out)) == N_SCANS + 1 and not list(out.rglob(".*"))
