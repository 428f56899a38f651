"""A sweep reads what training reads, opens each file once, and passes over bad files."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np

from tests.scans.pictures import save_volume
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sweep import Unread, sweep
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare


def test_a_volume_is_opened_once_and_a_bad_one_costs_its_slices_only(tmp_path, monkeypatch):
    phantom = phantom_volume(7, "glioma", shape=(48, 60, 14), spacing_mm=(3.9, 3.6, 13))
    source = tmp_path
    save_volume(source / "t1.nii.gz", phantom)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), source / "mask.nii.gz")
    (source / "index.csv").write_text("image,mask,label\nt1.nii.gz,mask.nii.gz,glioma\n")
    samples = load_samples(source)
    whole = prepare(samples, Preprocess(64))
    opened = []
    os.utime(source / "t1.nii.gz", (1, 1))  # another file than the one that is kept open
    for module in ("datasets.sample", "masks.read"):
        monkeypatch.setattr(
            f"tumorlens.data.{module}.open_scan", lambda path, **how: opened.append(path) or open_scan(path, **how)
        )
    swept = list(sweep(samples, Preprocess(64)))
    assert sorted(path.name for path in opened) == ["mask.nii.gz", "t1.nii.gz"]
    for slice_, image, mask in zip(swept, whole.images, whole.masks, strict=True):
        assert np.array_equal(slice_.prepared.image, image)
        assert np.array_equal(np.zeros_like(mask) if slice_.mask is None else slice_.mask, mask)
    (source / "t1.nii.gz").write_bytes(b"")
    broken = list(sweep(samples, Preprocess(64)))
    assert len(broken) == len(samples)
    assert all(isinstance(slice_, Unread) and "t1.nii.gz" in slice_.reason for slice_ in broken)
