"""What a file from a stranger must not do: run code, read other files, write into a page or a spreadsheet."""

from __future__ import annotations

import ast
import copy
import csv
import json
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.fileset import FileSet

from tests.conftest import REPOSITORY
from tests.pipeline.fixed import fixed_pipeline
from tests.scans.dicom import save_series
from tests.scans.pictures import save
from tests.test_architecture import ROOMS
from tumorlens.data.cards.weights import read_state
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.dicom.dicomdir import read_dicomdir
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan, source_files
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.report_batch import write_batch_report
from tumorlens.pipeline.outputs.report_html import render_report
from tumorlens.pipeline.outputs.table import csv_row, error_row, read_table
from tumorlens.pipeline.outputs.write import write_result

UNPICKLE = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def test_no_code_of_ours_can_unpickle():
    for file in (file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not UNPICKLE & {name.partition(".")[0] for name in names}, where
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert call not in RUNS_CODE, where
            assert call != "torch.load" or options.get("weights_only") == "True", where
            assert options.get("allow_pickle", "False") == "False", where
            assert not call.startswith("yaml.") or call in ("yaml.safe_load", "yaml.safe_dump"), where
            assert options.get("shell", "False") == "False", where


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "the-bomb-went-off"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("name", ["scan.png", "scan.mat", "scan.nii", "scan.dcm", "scan.nrrd", "scan.mgz", "scan.npy"])
def test_a_pickle_is_no_scan(tmp_path, mark, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    np.save(tmp_path / "objects.npy", np.array([Bomb(mark)], object), allow_pickle=True)
    for file in (tmp_path / name, tmp_path / "objects.npy"):
        with pytest.raises(InputError, match="this is not a"):
            open_scan(file)


def test_objects_in_hdf5_stay_bytes(tmp_path, mark):
    import h5py

    with h5py.File(tmp_path / "scan.mat", "w") as file:
        group = file.create_group("cjdata")
        group["image"] = np.void(pickle.dumps(Bomb(mark)))
        group["label"] = np.array([pickle.dumps(Bomb(mark)).hex()], h5py.string_dtype())
    with pytest.raises(InputError):
        open_scan(tmp_path / "scan.mat")


@pytest.mark.parametrize("name", ["own.pth", "own.ckpt", "own.safetensors"])
def test_weights_run_nothing(tmp_path, mark, name):
    torch.save({"state_dict": {"weight": Bomb(mark)}, "weight": Bomb(mark)}, tmp_path / name)
    with pytest.raises(InputError):
        read_state(tmp_path / name)


@pytest.fixture
def secret(tmp_path):
    """A file outside of the input folder, of the size that the headers below ask for."""
    path = tmp_path / "secret.raw"
    path.write_bytes(bytes(range(60)))
    (tmp_path / "in").mkdir()
    return path


def ways_out(secret):
    """Names by which a file in the folder ``in`` may reach another one."""
    (secret.parent / "in" / "link.raw").symlink_to(secret)
    (secret.parent / "in" / "links").symlink_to(secret.parent)
    return "../secret.raw", str(secret), "link.raw", "links/secret.raw", "./links/../../secret.raw"


@pytest.mark.parametrize("way", range(5))
def test_headers_read_nothing_outside_of_their_folder(tmp_path, secret, way):
    name = ways_out(secret)[way]
    grid = (
        "dimension: 3",
        "sizes: 3 4 5",
        "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "space: left-posterior-superior",
    )
    nrrd, mhd = tmp_path / "in" / "a.nhdr", tmp_path / "in" / "a.mhd"
    nrrd.write_text("\n".join(["NRRD0004", "type: uint8", *grid, "encoding: raw", f"data file: {name}", "", ""]))
    mhd.write_text(f"NDims = 3\nDimSize = 3 4 5\nElementType = MET_UCHAR\nElementDataFile = {name}\n")
    for header in (nrrd, mhd):
        with pytest.raises(InputError, match="outside its own folder"):
            open_scan(header)
        assert secret.resolve() not in [file.resolve() for file in source_files(header)]


@pytest.mark.parametrize("way", range(5))
def test_a_dicomdir_reads_nothing_outside_of_its_disk(tmp_path, secret, way):
    (file,) = save_series(tmp_path / "one", np.arange(60, dtype=np.uint16).reshape(3, 20, 1), np.eye(4))
    directory = FileSet()
    directory.add(file)
    directory.write(tmp_path / "in")
    secret.write_bytes(Path(file).read_bytes())
    path = tmp_path / "in" / "DICOMDIR"
    import pydicom

    content = pydicom.dcmread(path)
    for record in content.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ways_out(secret)[way].split("/")
    pydicom.dcmwrite(path, content)
    with pytest.raises(InputError, match=r"lists no file|are missing"):
        read_dicomdir(path)


def test_a_link_in_a_zip_is_no_link(tmp_path, secret):
    entry = zipfile.ZipInfo("scan.raw")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "../../secret.raw")
        archive.writestr(
            "scan.mhd", "NDims = 3\nDimSize = 3 4 5\nElementType = MET_UCHAR\nElementDataFile = scan.raw\n"
        )
    from tumorlens.data.formats.archives import unpack

    unpack(tmp_path / "a.zip", tmp_path / "in" / "zip")
    assert not any(path.is_symlink() for path in (tmp_path / "in" / "zip").rglob("*"))
    with pytest.raises(InputError, match="damaged or cut off"):
        open_scan(tmp_path / "in" / "zip" / "scan.mhd")


def places_of_text(content, path=()):
    """The place of every string in the content of a ``result.json``."""
    if isinstance(content, str):
        yield path
    for key, value in (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    ):
        yield from places_of_text(value, (*path, key))


def test_reports_escape_every_string(tmp_path):
    picture = phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image
    content = write_result(fixed_pipeline().run(picture), tmp_path, "scan.png", options=RunOptions())
    content["review"] = ["low confidence (0.5)"]
    content["scan"]["notes"] = ["a note"]
    shown = 0
    for place in list(places_of_text(content)):
        hostile = copy.deepcopy(content)
        inner = hostile
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = HOSTILE
        try:
            page = render_report(hostile, tmp_path)
        except (InputError, KeyError, ValueError, OSError):  # such a result has no report
            continue
        assert "<img src=x" not in page and "<script" not in page, place
        shown += "&lt;img src=x" in page
    assert shown >= 4  # name, review, notes and others do appear
    rows = [error_row(HOSTILE, HOSTILE), csv_row(content) | {"scan": HOSTILE + "2", "review": HOSTILE}]
    write_batch_report(tmp_path, rows, {row["scan"]: "folder" for row in rows})
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "<script>alert" not in page and page.count("&lt;img src=x") >= 3
    assert json.dumps(HOSTILE) not in page


@pytest.mark.parametrize("begin", ["=", "+", "-", "@"])
def test_no_name_of_a_file_is_a_formula_in_a_table(tumorlens, tmp_path, begin):
    for number, label in enumerate(("glioma", "no_tumor") * 3):
        folder = tmp_path / "set" / label / f"{begin}P{number}"
        folder.mkdir(parents=True)
        save(folder / f"{begin}1+1.png", phantom_slice(number, label, size=96, pixel_mm=2.3).image)
    here = tmp_path / "set" / "glioma" / f"{begin}P0"
    run = tumorlens("run", str(here), here / f"{begin}1+1.png", "-o", tmp_path / "out")
    split = tumorlens("data", "split", tmp_path / "set", "-o", tmp_path / "set" / "index.csv", "--folds", "3")
    assert (run.exit_code, split.exit_code) == (0, 0), run.output + split.output
    for table in (tmp_path / "out" / "results.csv", tmp_path / "set" / "index.csv"):
        with table.open(newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1 and not any(cell.startswith(begin) for row in rows for cell in row)
    samples = load_samples(tmp_path / "set" / "index.csv")
    assert {sample.patient for sample in samples} >= {f"{begin}P0"}
    assert all(sample.image.is_file() for sample in samples)
    assert read_table(tmp_path / "out" / "results.csv")[0]["scan"] == f"{begin}1+1.png"
