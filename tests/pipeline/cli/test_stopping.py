"""A command that a signal stops cleans up, and its exit code names the signal."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import zipfile

import pytest

from tests.scans.pictures import save
from tests.scans.studies import series
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.cli.app import main
from tumorlens.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals here")


@pytest.fixture(autouse=True)
def plain_handlers():
    """The handlers of a command that was started as usual, even if the tests were started in another way."""
    plain = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in plain.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where the command unpacks archives."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def stopped(arguments, monkeypatch):
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tumorlens", *(str(a) for a in arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
)
def test_unpacked_files_are_removed(tmp_path, scratch, monkeypatch, capsys, number, code):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in series(tmp_path / "tmp"):
            archive.write(path, path.name)
    seen = []

    def load(**_):
        seen.extend(scratch.rglob("IM*"))
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(Pipeline, "load", load)
    before = signal.getsignal(number)
    assert stopped(["run", tmp_path / "study.zip", "-o", tmp_path / "out"], monkeypatch) == code
    assert len(seen) == 16 and not list(scratch.iterdir())
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.endswith("tumorlens: stopped; go on with --continue\n")


def test_a_second_signal_does_not_stop_the_cleaning_up(tmp_path, scratch, monkeypatch):
    real = tempfile.TemporaryDirectory.cleanup

    def load(**_):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(10)

    def cleanup(self):
        os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", cleanup)
    scan = save(tmp_path / "a.png", phantom_slice(1).image)
    assert stopped(["run", scan, "-o", tmp_path / "out"], monkeypatch) == 129
    assert not list(scratch.iterdir())


def test_ignored_signals_stay_ignored(tmp_path, monkeypatch):
    """As nohup does, for a training that outlives its terminal."""

    def load(**_):
        os.kill(os.getpid(), signal.SIGHUP)
        raise OSError("was not stopped")

    monkeypatch.setattr(Pipeline, "load", load)
    scan = save(tmp_path / "a.png", phantom_slice(1).image)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stopped(["run", scan, "-o", tmp_path / "out"], monkeypatch) == 2
