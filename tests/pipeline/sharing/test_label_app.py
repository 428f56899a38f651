"""The MONAI Label app, asked by MONAI Label's own client over its own server.

MONAI Label needs another NumPy than tumorlens, so it lies in an environment of its own. `$TUMORLENS_MONAILABEL` is the
path of its command.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save_volume
from tumorlens.data.phantom import phantom_volume

MONAILABEL = os.environ.get("TUMORLENS_MONAILABEL") or shutil.which("monailabel")
ASK = """
import json, sys
from monailabel.client import MONAILabelClient
client = MONAILabelClient(sys.argv[1], sys.argv[2])
answer = {"info": client.info()["models"]}
answer["file"], answer["params"] = client.infer("tumorlens", "head", {})
answer["errors"] = 0
for name in ("flat", "noise", "nothing"):
    try:
        client.infer("tumorlens", name, {})
    except Exception:
        answer["errors"] += 1
print(json.dumps(answer))
"""


def test_the_app_is_a_folder(command, tmp_path):
    app = tmp_path / "app"
    done = command("export", "pipeline", "--format", "monailabel-app", "-o", app)
    assert (done.exit_code, {path.name for path in app.iterdir()}) == (0, {"main.py", "README.md"}), done.output
    compile((app / "main.py").read_text(), "main.py", "exec")
    done = command("export", "classification", "--format", "monailabel-app", "-o", tmp_path / "other")
    assert (done.exit_code, "a monailabel-app asks both stages" in done.stderr) == (2, True)
    done = command("export", "pipeline", "--format", "onnx", "-o", tmp_path / "other.onnx")
    assert (done.exit_code, "a monailabel-app asks both stages" in done.stderr) == (2, True)


@pytest.fixture
def server(command, tmp_path):
    """The address of a server of the app, with a head, a volume of one value and one of noise as its studies."""
    if MONAILABEL is None:
        pytest.skip("MONAI Label is not installed; set TUMORLENS_MONAILABEL to its command")
    command("export", "pipeline", "--format", "monailabel-app", "-o", tmp_path / "app")
    save_volume(tmp_path / "studies" / "head.nii.gz", phantom_volume(7, "meningioma", shape=(96, 112, 12)))
    noise = np.random.default_rng(0).normal(100, 30, (96, 96, 8)).astype(np.float32)
    for name, voxels in (("flat", np.zeros((20, 20, 4), np.float32)), ("noise", noise)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "studies" / f"{name}.nii.gz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = tmp_path / "tumorlens"  # the code of this checkout, by the Python of the tests
    ours.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tumorlens.pipeline.cli.app "$@"\n')
    ours.chmod(0o755)
    call = [MONAILABEL, "start_server", "--app", str(tmp_path / "app"), "--studies", str(tmp_path / "studies")]
    call += ["--host", "127.0.0.1", "--port", str(port), "--conf", "tumorlens", str(ours), "--conf", "device", "cpu"]
    path = f"{Path(MONAILABEL).parent}{os.pathsep}{os.environ['PATH']}"  # it is a shell script that looks for Python
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            call, stdout=log, stderr=log, cwd=tmp_path, env=os.environ | {"PATH": path}, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                with urlopen(f"{url}/info/", timeout=60):
                    break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the script and the server that it has started
        process.wait()


@pytest.mark.slow
def test_its_client_gets_the_mask_of_a_run(server, command, tmp_path):
    python = Path(MONAILABEL).with_name("python")
    done = subprocess.run([python, "-c", ASK, server, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["info"]["tumorlens"]["type"] == "segmentation"
    done = command("run", tmp_path / "studies" / "head.nii.gz", "-o", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/result.json")]
    result = json.loads((folder / "result.json").read_text())
    expected, labels = nib.load(folder / "mask.nii.gz"), nib.load(answer["file"])
    np.testing.assert_allclose(labels.affine, expected.affine)
    np.testing.assert_array_equal(np.asarray(labels.dataobj) > 0, np.asarray(expected.dataobj) > 0)
    assert np.any(labels.dataobj)
    assert answer["params"]["label"] == result["label"] == "meningioma"
    assert answer["params"]["label_names"] == {f"lesion {n['number']}": n["number"] for n in result["lesions"]}
    assert str(tmp_path) not in json.dumps(answer["params"])
    assert answer["errors"] == 3  # its server says why in its log only
    log = (tmp_path / "log").read_text()
    assert "every voxel has the same value" in log and "the scan is refused: " in log
    assert "this scan is not among the studies" in log
