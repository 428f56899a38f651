"""`tumorlens info` describes the models and the devices."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.scans.pictures import save
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline import versions as module


def test_info(command):
    done = command("info", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["models"]["classification"]["intact"] is facts["models"]["segmentation"]["intact"] is True
    assert "cpu" in facts["devices"]
    text = command("info").stdout
    assert facts["models"]["segmentation"]["sha256"] in text
    assert command("--version").stdout.startswith("tumorlens ")


def test_two_builds_of_opencv_are_reported(command, monkeypatch):
    versions = {"python": "3.12", "opencv-python-headless": "4.12", "opencv-contrib-python": "4.11"}
    monkeypatch.setattr(module, "package_versions", lambda: versions)
    problem = module.opencv_problem()
    assert problem is not None and "opencv-python-headless and opencv-contrib-python share one folder" in problem
    assert f"problem: {problem}" in command("info").stdout
    del versions["opencv-contrib-python"]
    assert module.opencv_problem() is None
    assert "problem" not in command("info").stdout


def test_opencv_that_was_removed_with_another_build(tmp_path):
    call = (
        "import sys; sys.modules['cv2'] = None; sys.argv = ['tumorlens', 'run', 'a.png', '-o', 'out']\n"
        "from tumorlens.pipeline.cli.app import main; main()"
    )
    save(tmp_path / "a.png", phantom_slice(3, "glioma").image)
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("tumorlens: error: OpenCV (cv2) is missing or was removed with another build of it;")
    assert "pip install opencv-python-headless" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "results.csv").exists()
