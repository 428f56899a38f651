"""Scans on disk for the tests, and tables read back."""

from __future__ import annotations

import csv

import nibabel as nib
from PIL import Image


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_volume(path, phantom):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    return path


def table(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))
