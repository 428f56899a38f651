"""Versions of this program and of what it stands on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "tumorlens",
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "monai",
    "openvino",
    "opencv-python-headless",
    "nibabel",
    "numpy",
    "pydicom",
    "highdicom",
    "pynrrd",
    "lightning",
    "torchmetrics",
    "scikit-learn",
    "scipy",
    "timm",
)


@cache
def package_versions() -> dict[str, str]:
    """Package -> version, ``python`` included; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
