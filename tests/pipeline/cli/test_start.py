"""The command starts quickly, because it loads only what the call needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.scans.pictures import save
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.cli import app as page
from tumorlens.pipeline.pipeline import Pipeline

HELP = "import sys; sys.argv = ['tumorlens', '--help']; from tumorlens.pipeline.cli.app import main; main()"
RUN = (
    "import sys; sys.argv = ['tumorlens', 'run', 'a.png', '-o', 'out', '--overwrite', '--device', 'cpu', '-q']\n"
    "from tumorlens.pipeline.cli.app import main\n"
    "try:\n    main()\n"
    "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
)
NEVER_FOR_HELP = {"numpy", "torch", "openvino", "cv2", "PIL", "pydantic", "rich", "logging", "yaml"}
NEVER_FOR_A_PICTURE = {
    *("torch", "torchvision", "monai", "lightning", "torchmetrics", "timm", "scipy", "sklearn", "matplotlib", "jinja2"),
    *("pydicom", "highdicom", "nibabel", "h5py", "SimpleITK", "nrrd", "gdcm", "tifffile", "rich", "pydantic", "typer"),
    "onnx",
    "openvino_telemetry.main",
}


def python(*arguments, cwd=REPOSITORY):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def commands(places=page.COMMANDS, above=()):
    """Words of a command, and the line on it in the list of commands."""
    for name, (place, text) in places.items():
        yield [*above, name], text
        if not isinstance(place, str):
            yield from commands(place, (*above, name))


@pytest.fixture
def warm(tmp_path):
    """A folder with a picture, on a machine that has run the pipeline before."""
    Pipeline.load(device="cpu")
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    return tmp_path


def test_help_loads_nothing_heavy():
    """Of the top and of every command, in one process."""
    words = [[], *(words for words, _ in commands())]
    code = (
        "import sys; from tumorlens.pipeline.cli.app import app\n"
        f"for words in {words}:\n"
        "    try:\n        app.main([*words, '--help'], prog_name='tumorlens')\n"
        "    except SystemExit as stop:\n        assert not stop.code, words\n"
        f"print(sorted({NEVER_FOR_HELP} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


def test_a_run_on_a_picture_loads_nothing_for_other_formats_and_no_torch(warm):
    done = python("-c", RUN + f"print(sorted({NEVER_FOR_A_PICTURE} & set(sys.modules)))", cwd=warm)
    assert done.stdout.strip() == "[]"
    assert (warm / "out" / "a" / "overlay.png").is_file()


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ({}, {"OMP_WAIT_POLICY = 'PASSIVE'", "GOMP_SPINCOUNT = '0'"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY = 'ACTIVE'"}),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is PyTorch's on Linux")
def test_threads_of_a_training_wait_without_spinning(monkeypatch, own, shown):
    """OpenMP says so itself, when PyTorch loads it. A setting of the user's own stays."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"OMP_DISPLAY_ENV": "verbose", **own}.items():
        monkeypatch.setenv(name, value)
    words = ["tumorlens", "train", "classification", "--data", "absent", "--arch", "mlp", "--init", "none", "-o", "x"]
    code = (
        f"import sys; sys.argv = {words}\nfrom tumorlens.pipeline.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 2 and 'torch' in sys.modules\n"
    )
    lines = python("-c", code).stderr.splitlines()
    assert all(any(setting in line for line in lines) for setting in shown), lines


def seconds(*arguments, repeats=5):
    """The least time of a process."""

    def once():
        start = time.perf_counter()
        python(*arguments)
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Modules are compiled once, as for a user, whatever this environment says."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "compiled"))


@pytest.mark.slow  # measures time
def test_help_is_quick(compiled):
    python("-c", HELP)  # compiles
    assert seconds("-c", HELP) < 1.8 * seconds("-c", "import click")  # of which most of a start consists


# Adds up what the imports cost the processor, not how long they wait for it: other processes may compute as well.
TIMED_IMPORTS = """
import builtins, importlib, threading, time
state, costs = threading.local(), []
def timed(load):
    def wrapper(*args, **kwargs):
        if getattr(state, "inside", False):
            return load(*args, **kwargs)
        state.inside, begun = True, time.thread_time()
        try:
            return load(*args, **kwargs)
        finally:
            state.inside = False
            costs.append(time.thread_time() - begun)
    return wrapper
builtins.__import__, importlib.import_module = timed(builtins.__import__), timed(importlib.import_module)
"""


@pytest.mark.slow  # measures time
def test_the_imports_of_a_run_are_quick(warm, compiled):
    """All imports of a run take at most 2.2 times as long as those of the libraries that no run goes without."""

    def cost(code):
        return float(python("-c", f"{TIMED_IMPORTS}{code}\nprint(sum(costs))", cwd=warm).stdout)

    calls = [RUN, "import numpy, cv2, openvino, PIL.Image"]
    run, libraries = zip(*([cost(code) for code in calls] for _ in range(6)), strict=True)  # the first compiles
    assert min(run) < 2.2 * min(libraries)


def test_the_list_of_commands_says_what_the_commands_say(command):
    for words, text in commands():
        done = command(*words, "--help")
        assert done.exit_code == 0
        assert " ".join(done.stdout.split("\n\n")[1].split()) == text, words
        assert len(text) <= 88  # a line of the list


def test_every_command_ends_its_help_with_examples(command):
    for words in ([], *(words for words, _ in commands())):
        text = command(*words, "--help").stdout
        if not words or "Commands:" not in text:
            examples = text.partition("\nExamples:\n")[2].strip().splitlines()
            assert examples
            assert all(line.strip().startswith(" ".join(["tumorlens", *words])) for line in examples)
