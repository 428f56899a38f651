"""What an installation of tumorlens looks like from outside: one import name, and a wheel that is complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.pipeline import Pipeline

SCRIPT = """
import sys
from pathlib import Path

import numpy as np

import data
import pipeline
import segmentation
import tumorlens
from tumorlens import Pipeline

here = Path(__file__).parent
assert all(Path(module.__file__).is_relative_to(here) for module in (data, pipeline, segmentation))
result = Pipeline.load(device="cpu", engine=sys.argv[1], precision="fp32").run(np.load("scan.npy"))
print(result.label, int(result.mask.sum()), tumorlens.__file__)
"""


def _run_script(folder: Path, engine: str, package_folder: Path | None = None) -> list[str]:
    """The words of the last line that a script prints whose folder has modules with the names of our folders."""
    folder.mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "__init__.py").touch()
    for name in ("pipeline.py", "segmentation.py"):
        (folder / name).touch()
    (folder / "script.py").write_text(SCRIPT)
    np.save(folder / "scan.npy", phantom_slice(7, "meningioma").image)
    paths = os.environ | {"PYTHONPATH": "" if package_folder is None else str(package_folder)}
    done = subprocess.run([sys.executable, "script.py", engine], capture_output=True, text=True, cwd=folder, env=paths)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("engine", ["openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_script_beside_folders_of_the_same_names(tmp_path, engine):
    label, pixels, _ = _run_script(tmp_path / "study", engine)
    pipeline = Pipeline.load(device="cpu", engine=engine, precision="fp32")
    expected = pipeline.run(phantom_slice(7, "meningioma").image)
    assert (label, int(pixels)) == (expected.label, int(expected.mask.sum()))


@pytest.mark.parametrize("name", ["data", "classification", "segmentation", "pipeline"])
def test_nothing_else_of_ours_can_be_imported(name, tmp_path):
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "None"


@pytest.mark.slow
def test_a_wheel_is_complete_and_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"  # a copy, because setuptools leaves its intermediate files beside what it builds
    for name in ("data", "classification", "segmentation", "pipeline"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("tumorlens-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"tumorlens"}
    shipped = {
        *(
            f"tumorlens/{path.relative_to(REPOSITORY)}"
            for room in ("data", "classification", "segmentation", "pipeline")
            for path in (REPOSITORY / room).rglob("*.py")
            if "package" not in path.parts
        ),
        *(
            f"tumorlens/{stage}/weights/{name}{end}"
            for stage, name in (("classification", "classifier"), ("segmentation", "segmenter"))
            for end in (".json", ".safetensors")
        ),
        "tumorlens/data/inspection/page.html",
        *(f"tumorlens/data/indexes/{path.name}" for path in (REPOSITORY / "data" / "indexes").glob("*.csv")),
        "tumorlens/__init__.py",
        "tumorlens/py.typed",
    }
    assert shipped <= set(names)
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    label, pixels, origin = _run_script(tmp_path / "study", "torch", site)
    assert Path(origin).is_relative_to(site)
    assert label == "meningioma"
    assert int(pixels) > 0
