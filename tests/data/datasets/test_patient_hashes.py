"""Patients as hashes: one of the ID under every path, or of the content of the file if it has no ID."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.folds import CLUSTER
from tumorlens.data.datasets.patient_hashes import hash_id, hash_patients
from tumorlens.data.datasets.sample import Sample, slices_of
from tumorlens.data.phantom import phantom_slice, phantom_volume


def test_an_id_has_one_hash_for_any_file():
    assert hash_id("p1") == hashlib.sha256(b"tumorlens:p1").hexdigest()[:12]
    samples = [Sample(Path("a.png"), "glioma", "p1"), Sample(Path("b/none.png"), "", "p1"), Sample(Path("a"), "", "p2")]
    assert hash_patients(samples) == [hash_id("p1"), hash_id("p1"), hash_id("p2")]
    assert hash_id("\udcff")  # a folder whose name is not UTF-8 names its patient


def test_without_an_id_a_renamed_copy_has_the_same_hash(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        save(tmp_path / name, phantom_slice(seed, "glioma").image)
    shutil.copy(tmp_path / "a.png", tmp_path / "renamed.png")
    names = ("a.png", "renamed.png", "b.png", "a.png")
    patients = ("", "", "", f"{CLUSTER}3")  # the number of a group of look-alikes changes with the data
    first, renamed, other, grouped = hash_patients(
        [Sample(tmp_path / name, "glioma", patient) for name, patient in zip(names, patients, strict=True)]
    )
    assert first == renamed == grouped != other


def test_a_volume_without_an_id_counts_by_its_files(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        save_volume(tmp_path / f"{name}.nii.gz", phantom_volume(seed, "no_tumor", (32, 32, 6), (7.2, 7.2, 24.0)))
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "moved" / "c.nii.gz")
    hashes = [
        set(hash_patients(slices_of(Sample(tmp_path / n, "")))) for n in ("a.nii.gz", "moved/c.nii.gz", "b.nii.gz")
    ]
    assert [len(group) for group in hashes] == [1, 1, 1]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(OSError, match="gone"):
        hash_patients([Sample(tmp_path / "gone.png", "glioma")])
