"""The examples of the documentation run: Python as it stands, and commands with options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tests.test_docs import PAGES
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.pipeline import Pipeline

EXPORT = REPOSITORY / "docs" / "how-to" / "export-a-network.md"


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[list[str]]:
    """The words of each `tumorlens` command of a page, without placeholders such as `[OPTIONS]`."""
    text = "\n".join(_blocks(page, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("tumorlens ")]
    return [line[1:] for line in lines]


def _named(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = app
    while isinstance(command, click.Group):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"no command {words[0]!r}"
        command, words = child, words[1:]
    return command, words


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_options_that_exist(page):
    for words in commands_of(page):
        if words[0].startswith("-"):
            continue
        command, rest = _named(words)
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        unknown = [word for word in rest if re.match(r"-\D", word) and word.partition("=")[0] not in known]
        assert not unknown, " ".join(words)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder with the files that the examples name."""
    save_volume(tmp_path / "scan.nii.gz", SICK)
    np.save(tmp_path / "volume.npy", SICK.image)
    save(tmp_path / "scan.png", phantom_slice(3, "meningioma").image)
    (tmp_path / "scans").mkdir()
    for seed in (1, 2):
        save(tmp_path / "scans" / f"{seed}.png", phantom_slice(seed, "glioma").image)
    save(tmp_path / "holiday.jpg", np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    series(tmp_path / "series", SICK, SeriesNumber=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(page: Path) -> dict[str, object]:
    names: dict[str, object] = {}
    for number, block in enumerate(_blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_the_examples_in_python_run(at_home, capsys):
    names = _run(REPOSITORY / "docs" / "how-to" / "use-from-python.md")
    output = capsys.readouterr().out
    assert "1.png glioma" in output or "1.png tumor" in output
    assert "damaged.png" in output and len(names["results"]) == 1
    assert (at_home / "out" / "scan" / "overlay.png").is_file() and (at_home / "out" / "2" / "mask.png").is_file()
    assert names["array"].shape == SICK.image.shape
    names = _run(REPOSITORY / "README.md")
    assert names["mask"].shape == SICK.image.shape


@pytest.mark.slow
def test_an_exported_network_is_used_as_its_page_says(at_home):
    pytest.importorskip("onnx")
    done = CliRunner().invoke(app, ["export", "classification", "--format", "onnx", "-o", "classifier.onnx"])
    assert done.exit_code == 0, done.output
    names = _run(EXPORT)
    expected = Pipeline.load(engine="torch", precision="fp32").run("scan.png", RunOptions(force=True))
    np.testing.assert_allclose(names["probabilities"][0], list(expected.probabilities.values()), atol=0.003)


def test_a_report_is_written_as_its_page_says(at_home):
    Pipeline.load().run("scan.png").save("out/scan")
    page = REPOSITORY / "docs" / "how-to" / "write-a-report.md"
    (block,) = _blocks(page, "python")
    exec(compile(block.replace("pdf=True", "pdf=False"), page.name, "exec"), {})
    assert (at_home / "out" / "scan" / "report.html").is_file()
