"""Temporary folders go with their process, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tumorlens.data.scratch import ScratchFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")

HOLD = """
import pathlib, sys
from tumorlens.data.scratch import ScratchFolder
with ScratchFolder() as folder:
    (pathlib.Path(folder) / "deep").mkdir()
    (pathlib.Path(folder) / "deep" / "scan.nii").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test, here and in processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield tmp_path
    monkeypatch.undo()


@pytest.fixture
def hold():
    """Start a process that has a temporary folder, and give back both."""
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()


def test_a_folder_is_private_and_gone_at_the_end(temporary):
    with ScratchFolder() as folder:
        assert Path(folder).stat().st_mode & 0o077 == 0 and list(temporary.iterdir()) == [Path(folder)]
    assert not list(temporary.iterdir())


def test_the_folder_of_a_killed_process_is_deleted_by_the_next(hold):
    living, kept = hold()
    killed, left = hold()
    killed.kill()
    killed.wait()
    assert left.exists()
    with ScratchFolder():
        assert not left.exists() and (kept / "deep" / "scan.nii").exists()
    living.stdin.close()
    assert living.wait() == 0 and not kept.exists()


def test_a_folder_that_is_in_use_elsewhere_stays(temporary, hold):
    """In another container, the number of the process means nothing here."""
    _, folder = hold()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    renamed = temporary / f"tumorlens-{killed.pid}-abcdefgh.tmp"
    folder.rename(renamed)
    with ScratchFolder():
        assert (renamed / "deep" / "scan.nii").exists()


def test_what_is_not_ours_stays(temporary):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    yours = temporary / "yours"
    yours.mkdir()
    (yours / "scan.nii").touch()
    (temporary / f"tumorlens-{killed.pid}-abcdefgh.tmp").symlink_to(yours)
    (temporary / f"tumorlens-{killed.pid}-abcdefgi.tmp").touch()
    for name in (f"tumorlens-{killed.pid}-original", "tumorlens-data.tmp", f"tumorlens-{killed.pid}-abcdefg/h.tmp"):
        (temporary / name).mkdir(parents=True)
    before = sorted(temporary.rglob("*"))
    with ScratchFolder() as folder:
        assert [path for path in sorted(temporary.rglob("*")) if str(path) != folder] == before


def test_links_in_a_leftover_lead_nowhere(temporary, hold):
    (temporary / "yours").mkdir()
    (temporary / "yours" / "scan.nii").touch()
    killed, left = hold()
    (left / "deep" / "link").symlink_to(temporary / "yours")
    killed.kill()
    killed.wait()
    with ScratchFolder():
        assert not left.exists() and (temporary / "yours" / "scan.nii").exists()
