"""Fixtures shared by the tests: shipped models loaded once, phantoms on disk, the folder of real scans."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.scans.pictures import save, save_volume
from tests.scans.studies import HEALTHY, SICK, series
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.cli.app import app

REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("TUMORLENS_DATA", REPOSITORY.parent / "shared" / "datasets"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REAL.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real scans at {REAL}; set TUMORLENS_DATA")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def one_copy_of_each_module():
    """A module that a test has loaded once more would split the next tests: they patch one copy, and call the other."""
    yield
    for name, module in list(sys.modules.items()):
        parent, _, leaf = name.rpartition(".")
        if name.startswith("tumorlens.") and parent in sys.modules:
            assert getattr(sys.modules[parent], leaf, module) is module, f"there are two of {name}"


@pytest.fixture(scope="session")
def real() -> Path:
    return REAL


@pytest.fixture(scope="session")
def pipeline():
    """The shipped pipeline in torch and fp32 on the CPU, so that recorded numbers hold on every machine."""
    from tumorlens.pipeline.pipeline import Pipeline

    return Pipeline.load(device="cpu", engine="torch", precision="fp32")


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with index.csv, 40 phantom slices of 20 patients in 5 folds, and their masks."""
    folder = tmp_path_factory.mktemp("phantoms")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    rows = ["image,mask,label,patient,fold"]
    for patient in range(20):
        label = CLASSES[patient % 4]
        for view in range(2):
            seed = 100 * patient + view
            phantom = phantom_slice(seed, label, size=96, pixel_mm=2.3)
            name = f"{patient}_{view}.png"
            Image.fromarray(phantom.image).save(folder / "images" / name)
            Image.fromarray(phantom.mask * np.uint8(255)).save(folder / "masks" / name)
            mask = f"masks/{name}" if label != "no_tumor" else ""
            rows.append(f"images/{name},{mask},{label},p{patient},{patient // 4}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def command():
    """Calls the command line in this process: `command("run", path, "-o", out)` returns click's `Result`."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tumorlens(command, pipeline, monkeypatch):
    """`command` with the shipped models, which are loaded once for all tests."""
    from tumorlens.pipeline.pipeline import Pipeline

    def load(threshold=None, tta=False, **_):
        stages = replace(pipeline.classifier, tta=tta), replace(pipeline.segmenter, tta=tta)
        return replace(pipeline, classifier=stages[0], segmenter=stages[1], threshold=threshold)

    monkeypatch.setattr(Pipeline, "load", load)
    return command


@pytest.fixture
def blank_figures(monkeypatch):
    """Figures of `explore` are drawn and not rendered, which is what takes the time."""
    monkeypatch.setattr(
        "tumorlens.data.inspection.explore.save_figure", lambda figure, stream: stream.write(b"a picture")
    )


@pytest.fixture
def study(tmp_path):
    """A folder as users have it: pictures in folders, a volume, equal stems, and files that are not scans."""
    folder = tmp_path / "study"
    sick, healthy = phantom_slice(7, "meningioma").image, phantom_slice(1, "no_tumor").image
    save(folder / "a" / "sick.png", sick)
    save(folder / "b" / "healthy.jpg", healthy)
    save(folder / "b" / "twin.png", healthy)
    save(folder / "b" / "twin.bmp", healthy)
    save_volume(folder / "volume.nii.gz", phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    (folder / "notes.txt").write_text("no scan")
    save(folder / ".hidden.png", sick)
    return folder


@pytest.fixture
def hospital(tmp_path):
    """A study of four series in one folder, as a PACS exports it."""
    folder = tmp_path / "hospital" / "study"
    for number, tags in (
        (1, {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (3, {"SeriesDescription": "t1 tra", "ContrastBolusAgent": None}),
        (5, {"SeriesDescription": "t1 tra km"}),
        (9, {"SeriesDescription": "dose report", "Modality": "CT"}),
    ):
        for path in series(tmp_path / "tmp", SICK if number == 5 else HEALTHY, SeriesNumber=number, **tags):
            (folder / "IMAGES").mkdir(parents=True, exist_ok=True)
            path.rename(folder / "IMAGES" / f"{number}_{path.name}")
    return tmp_path / "hospital"
