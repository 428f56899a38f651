"""Versions of tumorlens and of the packages that it uses."""

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
    """Package -> version, including ``python``; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
