"""Masks: reading and writing them, also as other programs have them."""

from __future__ import annotations

# The rows of `data.masks.export.FORMATS`, and what a label can stand for; here, because ``--help`` needs neither NumPy
# nor the writers.
FORMAT_NAMES = ("png", "nifti", "nrrd", "dicomseg", "rtstruct", "coco", "labelme", "geojson", "itksnap", "slicer")
BY = ("lesion", "class", "region")
