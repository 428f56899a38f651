"""Formats with native decoders are read in worker processes, and nobody notices until a decoder dies."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.io import savemat

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import FORMATS, open_scan, prepare_to_open, read_here
from tumorlens.data.workers import isolation

GRAY = (np.add.outer(np.arange(90), np.arange(70)) * 2 % 256).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY], 2)
CASES = {
    "gray.tif": {"compression": "tiff_lzw"},
    "color.tif": {"compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"compression": "jpeg"},
    "gray.webp": {"lossless": True},
    "color.webp": {"quality": 70},
    "v5.mat": {},
    "packed.mat": {"do_compression": True},
    "v73.mat": {},
}


@pytest.fixture
def no_workers():
    isolation._end_all()
    isolation._idle.clear()


def write(path):
    settings = CASES[path.name]
    if path.suffix != ".mat":
        Image.fromarray(COLOR if path.stem == "color" else GRAY).save(path, **settings)
    elif path.stem != "v73":
        cjdata = {"image": GRAY.astype(np.int16), "label": 3, "PID": "99", "tumorMask": GRAY > 200}
        savemat(path, {"cjdata": cjdata}, **settings)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("cjdata/image", data=GRAY.T, compression="gzip")
            file["cjdata/tumorMask"] = (GRAY.T > 200).astype(np.uint8)
            file["cjdata/label"], file["cjdata/PID"] = [[3.0]], np.array([[57], [57]], np.uint16)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_worker_reads_what_this_process_reads(tmp_path, name, no_workers):
    path = write(tmp_path / name)
    scan = open_scan(path)
    assert len(isolation._workers) == 1
    here = read_here(scan.format, path, None, None)
    assert np.array_equal(scan.voxels, here.voxels) and scan.voxels.dtype == here.voxels.dtype
    assert scan.path == path and scan.source_shape == here.source_shape
    if path.suffix == ".mat":
        assert np.array_equal(scan.annotation.mask, GRAY > 200)
        assert (scan.annotation.label, scan.annotation.patient) == ("pituitary", "99")


@pytest.mark.parametrize("row", [row.name for row in FORMATS if not row.isolated])
def test_the_isolated_formats_are_those_with_native_decoders(row):
    assert row not in ("tiff", "webp", "matlab")


def test_a_relative_path_in_a_folder_that_changes(tmp_path, monkeypatch):
    for folder, image in (("a", GRAY), ("b", 255 - GRAY)):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "1.tif")
    for folder, image in (("a", GRAY), ("b", 255 - GRAY)):
        monkeypatch.chdir(tmp_path / folder)
        scan = open_scan("1.tif")
        assert np.array_equal(scan.voxels, image) and scan.path == Path("1.tif")


def test_the_worker_that_was_prepared_reads_the_file(tmp_path, no_workers):
    path = write(tmp_path / "jpeg.tif")
    prepare_to_open(path)
    (worker,) = isolation._idle
    assert np.abs(open_scan(path).voxels.astype(int) - GRAY).mean() < 30
    assert {worker} == isolation._workers


def test_preparing_never_fails_and_starts_nothing_without_need(tmp_path, no_workers):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    (tmp_path / "text.tif").write_text("no picture")
    (tmp_path / "empty.mat").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.tif")  # opening it would wait for ever
    for name in ("a.png", "text.tif", "empty.mat", "pipe.tif", "missing.tif", "."):
        prepare_to_open(tmp_path / name)
    prepare_to_open(Path(get_testdata_file("MR_small.dcm")))
    assert not isolation._workers


def test_a_worker_that_is_killed_between_two_files_is_replaced(tmp_path, no_workers):
    path = write(tmp_path / "gray.tif")
    open_scan(path)
    (worker,) = isolation._workers
    os.kill(worker.process.pid, signal.SIGKILL)
    assert np.array_equal(open_scan(path).voxels, GRAY)


def mutated(content, chance):
    """The content with a few bytes changed, mostly in its head, or cut out."""
    changed = bytearray(content)
    reach = chance.choice((len(changed), 700))
    for _ in range(chance.choice((1, 2, 8, 32))):
        at = chance.randrange(min(reach, len(changed)))
        if chance.random() < 0.8:
            changed[at] = chance.choice((0, 255, 127, 128, changed[at] ^ 1 << chance.randrange(8)))
        elif len(changed) > 500:
            del changed[at : at + chance.choice((1, 16, 400))]
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_damaged_files_are_input_errors_or_scans(tmp_path, monkeypatch, name):
    monkeypatch.setattr(isolation, "_SECONDS", 4.0)
    seed = write(tmp_path / name) if name in CASES else Path(get_testdata_file(name))
    content, chance = seed.read_bytes(), random.Random(name)
    failures = 0
    for _ in range(150):
        path = tmp_path / "damaged"
        path.write_bytes(mutated(content, chance))
        try:
            assert open_scan(path).voxels.size
        except InputError as error:
            failures += 1
            assert str(error).startswith(f"{path}: ")
    assert failures > 10
    assert len(isolation._workers) == 1
