"""Prepared slices on disk: read once, made again if anything has changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training import prepared
from tumorlens.data.training.partition import load_partition


@pytest.fixture
def copy(phantom_set, tmp_path):
    return shutil.copytree(phantom_set, tmp_path / "set")


def count_readings(monkeypatch):
    readings = []
    real = prepared.prepare

    def prepare(samples, *rest):
        readings.append(len(samples))
        return real(samples, *rest)

    monkeypatch.setattr(prepared, "prepare", prepare)
    return readings


def test_the_second_run_reads_nothing(copy, tmp_path, monkeypatch):
    readings = count_readings(monkeypatch)
    config = DataConfig((str(copy),), size=64)
    plain = load_partition(config)
    storing = DataConfig((str(copy),), size=64, prepared=str(tmp_path / "kept"))
    for _ in range(2):
        parts = load_partition(storing)
        for name in ("train", "validation", "test"):
            one, other = getattr(plain, name), getattr(parts, name)
            assert one.samples == other.samples
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.masks, other.masks)
            np.testing.assert_array_equal(one.labels, other.labels)
    assert readings == [40]
    assert plain.train.masks.any()


@pytest.mark.parametrize("change", ["a picture", "a mask", "the size", "the label", "damage", "half"])
def test_a_changed_set_is_read_again(copy, tmp_path, monkeypatch, change):
    samples = load_samples(copy)
    folder = tmp_path / "kept"
    prepared.prepare_once(samples, Preprocess(64), folder)
    (file,) = folder.iterdir()
    readings = count_readings(monkeypatch)
    size = 64
    if change in ("a picture", "a mask"):
        sick = next(s for s in samples if s.mask)
        os.utime(sick.image if change == "a picture" else sick.mask, ns=(1, 1))
    elif change == "the size":
        size = 32
    elif change == "the label":
        (copy / "index.csv").write_text((copy / "index.csv").read_text().replace(",glioma,", ",pituitary,"))
        samples = load_samples(copy)
    elif change == "damage":
        file.write_bytes(file.read_bytes().replace(b"patients", b"patiemts"))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = prepared.prepare_once(samples, Preprocess(size), folder)
    assert readings == [40] and again.images.shape == (40, size, size)
    assert prepared.prepare_once(samples, Preprocess(size), folder).images.shape == (40, size, size)
    assert readings == [40]


def test_a_folder_that_cannot_be_written_to(copy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/kept: prepared slices cannot be stored there"):
        prepared.prepare_once(load_samples(copy), Preprocess(64), tmp_path / "file" / "kept")


def test_voxels_behind_a_header_count(tmp_path):
    volume = np.zeros((8, 8, 4), np.int16)
    nib.save(nib.Nifti1Pair(volume, np.eye(4)), tmp_path / "a.img")
    sample = Sample(tmp_path / "a.hdr", "glioma", patient="1", slice_index=1)
    before = prepared._key([sample], Preprocess(64))
    assert prepared._key([sample], Preprocess(64)) == before
    voxels = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(voxels + b"0")
    assert prepared._key([sample], Preprocess(64)) != before


def test_a_result_that_a_reviewer_corrects_is_read_again(copy, tmp_path, monkeypatch):
    """Its folder names the mask, and stays as it was."""
    samples = [s for s in load_samples(copy) if s.mask][:2]
    for name, sample in zip("ab", samples, strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(sample.mask, tmp_path / name / "mask.png")
    results = [replace(sample, mask=tmp_path / name) for name, sample in zip("ab", samples, strict=True)]
    readings = count_readings(monkeypatch)
    for _ in range(2):
        prepared.prepare_once(results, Preprocess(64), tmp_path / "kept")
    assert readings == [2]
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "a" / "mask.reviewed.png")
    assert not prepared.prepare_once(results, Preprocess(64), tmp_path / "kept").masks[0].any()
    prepared.prepare_once([replace(results[0], mask=tmp_path / "b"), results[1]], Preprocess(64), tmp_path / "kept")
    assert readings == [2, 2, 2]


def test_only_stored_sets_are_deleted(tmp_path):
    for name in ("0" * 32 + ".npz", "mine.npz"):
        (tmp_path / name).touch()
    prepared.remove_prepared(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.npz"]
    (tmp_path / "mine.npz").unlink()
    prepared.remove_prepared(tmp_path)
    assert not tmp_path.exists()
    prepared.remove_prepared(tmp_path)  # which is gone
