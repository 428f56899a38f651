"""The numbers of a data report, against independent counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scans.phantoms import small_slice
from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.duplicates import alike_pairs, copy_pairs, signatures
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.inspection.numbers import count_copies, folds_of, numbers_of, remarks, source_auc
from tumorlens.data.inspection.statistics import measure
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess


def test_copies_and_the_borders_they_cross():
    images = [small_slice(s, "glioma").image for s in range(4)]
    images += [images[0][:, ::-1], images[1]]
    patients = ["a", "b", "c", "d", "e", "b"]
    splits = ["train", "train", "train", "test", "test", "test"]
    labels = ["glioma"] * 4 + ["pituitary", "glioma"]
    samples = [
        Sample(Path(f"{i}.png"), labels[i], patients[i], fold=(0, 0, 1, 2, 1, 0)[i], split=splits[i]) for i in range(6)
    ]
    signatures_nd = signatures(np.stack([Preprocess()(image).image for image in images]))
    stats = measure([], Preprocess())
    stats.samples, stats.signatures = samples, signatures_nd
    numbers = count_copies(samples, alike_pairs(signatures_nd), folds_of(stats))
    expected = {"alike_pairs": 2, "alike_slices": 4, "mirrored_pairs": 1, "pairs_of_two_patients": 1}
    expected |= {"pairs_of_two_labels": 1, "pairs_across_folds": 1, "pairs_across_official_split": 2}
    expected |= {"test_slices_with_a_copy_in_training": 2, "patients_across_official_split": 1}
    expected |= {"patients_across_folds": 0, "equal_files": 0, "pairs_without_patient": 0}
    assert {key: numbers[key] for key in expected} == expected


def test_folds_that_training_would_make(phantom_set):
    samples = [replace(sample, fold=None) for sample in load_samples(phantom_set)]
    made = folds_of(measure(samples, Preprocess(64)))
    assert made.origin == "made"
    assert made.numbers == make_folds(samples)
    few = folds_of(measure(samples[:6], Preprocess(64)))
    assert few.numbers is None
    assert few.reason == "3 patients are too few for 5 folds"


def test_a_frame_that_gives_the_class_away_is_called_out(tmp_path):
    for i in range(6):
        healthy = small_slice(i, "no_tumor").image
        save(tmp_path / "notumor" / f"{i}.png", healthy[:, :80] if i else healthy)
        save(tmp_path / "glioma" / f"{i}.png", small_slice(50 + i).image)
    stats = measure(load_samples(tmp_path), Preprocess(64))
    areas = source_auc(stats)
    assert areas["columns"] == pytest.approx((5 + 0.5) / 6)  # five of six are separated, one is tied with all
    assert areas["rows"] == 0.5
    lines = remarks(numbers_of(stats, [], folds_of(stats)))
    assert any("tells healthy from sick by its" in line and "columns" in line for line in lines)
    assert any("The patient of 12 slices is not known" in line for line in lines)
    assert any("No slice has a mask" in line for line in lines)


def test_neighbors_in_a_volume_are_not_copies(tmp_path):
    phantom = phantom_volume(7, "glioma", shape=(48, 60, 40), spacing_mm=(3.9, 3.6, 3))
    save_volume(tmp_path / "t1.nii.gz", phantom)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), tmp_path / "mask.nii.gz")
    (tmp_path / "index.csv").write_text("image,mask,label\nt1.nii.gz,mask.nii.gz,glioma\n")
    samples = load_samples(tmp_path)
    stats = measure(samples, Preprocess(64))
    pairs = copy_pairs(samples, stats.signatures)
    numbers = numbers_of(stats, pairs, folds_of(stats))
    assert numbers["files"] == 1
    assert numbers["slices"] == len(samples)
    assert pairs
    assert numbers["copies"]["alike_pairs"] == 0
