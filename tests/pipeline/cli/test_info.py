"""`tumorlens info` describes the models and the devices."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.pipeline.engines.networks import save_classifier
from tests.scans.pictures import save
from tumorlens.data.errors import EXTRAS
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


def test_info_of_weights_of_your_own(command, tmp_path):
    weights = save_classifier(tmp_path / "cnn.safetensors", size=64)
    facts = json.loads(command("info", "--json", "--classifier", weights).stdout)["models"]
    assert facts["classification"]["file"] == "cnn.safetensors" and facts["classification"]["input_size"] == 64
    assert facts["segmentation"]["file"] == "segmenter.safetensors"
    assert command("info", "--segmenter", weights).stdout.count("these weights are for classification") == 1


def test_info_says_what_extras_lack(command, monkeypatch):
    monkeypatch.setitem(EXTRAS, "coco", ("pycocotools", "no_such_package"))
    assert json.loads(command("info", "--json").stdout)["extras"]["coco"] == {"missing": ["no_such_package"]}
    text = command("info").stdout
    assert "  coco: no (no_such_package)\n" in text and "  train: yes\n" in text


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
