"""The fuzz harness reports every kind of fault, whole seeds are read, and a slice of the cases finds no fault."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.mutations import mutate, splice
from tests.fuzz.structures import structured
from tests.fuzz.targets import TARGETS, results_folder
from tests.fuzz.watch import Watcher
from tests.fuzz.worker import make_case
from tumorlens.data.errors import InputError

# Seeds that are not read, for good reasons: their damage must not be taken for more than a refusal.
REFUSED = {("tiff", "pages"), ("gif", "animation"), ("zip", "without DICOM files"), ("mask", "whole labels")}


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        ("crash", "crash SIGSEGV", "in _crash"),
        ("value", "ValueError", "tests/fuzz/planted.py:"),
        ("memory", "MemoryError", "tests/fuzz/planted.py:"),
        ("hang", "hang over 2 s", "in _hang"),
        ("hog", "memory over 700 MB", "in <listcomp>"),
    ],
)
def test_a_planted_fault_is_reported_and_repeated(name, kind, where, tmp_path, capsys):
    options = ["--limit-s", "2" if name == "hang" else "30", "--limit-mb", "700"]
    assert main(["--target", f"planted-{name}", "--cases", "7", "--keep", str(tmp_path), *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    (fault,) = {line.partition(" (")[0] for line in lines if line.startswith("FAULT") and "times" in line} or {lines[0]}
    assert f"planted-{name}, seed 1, case " in fault
    assert kind in fault and where in fault
    assert lines[-1] == f"1 faults; their files are in {tmp_path}"
    (kept,) = tmp_path.iterdir()
    assert f"--repeat {kept}" in "\n".join(lines)
    assert json.loads((kept / "case.json").read_text())["target"] == f"planted-{name}"
    assert main(["--repeat", str(kept), "--keep", str(tmp_path / "again"), *options]) == 1
    assert kind in capsys.readouterr().out


def test_cases_after_a_crash_are_run(tmp_path):
    watcher = Watcher(tmp_path / "scratch", tmp_path / "keep")
    report = watcher.run("planted-crash", 12)
    watcher.close()
    assert report.cases == 12 and report.ends > 1
    assert report.read + report.refused + report.faults[0].times == 12 and report.read > 1


def test_a_reader_without_faults_has_none(tmp_path, capsys):
    assert main(["--target", "planted-none", "--cases", "300", "--keep", str(tmp_path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("planted-none: 300 cases") and last == "0 faults"
    assert list(tmp_path.iterdir()) == []


def test_time_is_shared_by_the_targets(tmp_path, capsys):
    begun = time.monotonic()
    assert main(["--target", "planted-none", "bmp", "--seconds", "6", "--keep", str(tmp_path)]) == 0
    assert time.monotonic() - begun < 20
    counts = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines() if " cases in " in line]
    assert len(counts) == 2 and min(counts) > 20


def test_a_case_is_the_same_each_time_and_another_for_each_number():
    seeds = TARGETS["png"].seeds()
    cases = [make_case("png", seeds, None, 1, number) for number in range(200)]
    assert cases[: len(seeds)] == seeds
    assert cases[150:] == [make_case("png", seeds, None, 1, number) for number in range(150, 200)]
    assert len({next(iter(case.values())) for case in cases}) > 190
    assert cases[150:] != [make_case("png", seeds, None, 2, number) for number in range(150, 200)]


def test_only_the_files_that_are_fuzzed_are_damaged():
    seeds = TARGETS["index"].seeds()
    for number in range(2, 100):
        case = make_case("index", seeds, 1, 1, number)
        assert all(data == seeds[0][name] for name, data in case.items() if name != "index.csv")


def test_damage_of_any_bytes():
    source = random.Random(0)
    for data in (b"", b"a", bytes(3), bytes(5000)):
        for _ in range(300):
            assert isinstance(mutate(source, data), bytes) and isinstance(splice(source, data, b"xy"), bytes)
            assert len(structured(source, data)) <= 2**20


@pytest.mark.slow  # makes the seeds of every target
@pytest.mark.parametrize("name", TARGETS)
def test_whole_seeds_are_read(name, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "FUZZ_SCRATCH", str(tmp_path))
    results_folder.cache_clear()  # it lay in the folder of another test
    target = TARGETS[name]
    for number, files in enumerate(target.seeds()):
        folder = tmp_path / str(number) / "files"
        for inner, data in files.items():
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            (folder / inner).write_bytes(data)
        try:
            target.read(folder / next(iter(files)))
        except InputError as error:
            assert any(name == refused and text in str(error) for refused, text in REFUSED), error


@pytest.mark.slow  # a minute by design
def test_a_slice_of_the_cases_finds_no_fault(tmp_path, capsys):
    assert main(["--seconds", "60", "--keep", str(tmp_path)]) == 0, capsys.readouterr().out
