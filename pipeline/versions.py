"""Versions of tumorlens and of the packages that it uses."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# All builds of OpenCV write the same folder, cv2: the last one installed wins, and removing one removes it for all.
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")

_PACKAGES = (
    "tumorlens",
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "monai",
    "openvino",
    *OPENCV,
    "nibabel",
    "numpy",
    "pydicom",
    "highdicom",
    "pynrrd",
    "tifffile",
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


def opencv_problem() -> str | None:
    """What is wrong with the installed OpenCV, and the command that mends it; None where one build is whole."""
    from importlib.util import find_spec

    installed = [name for name in OPENCV if name in package_versions()]
    spec = find_spec("cv2")
    if spec is None or spec.origin is None:
        remove = f"pip uninstall {' '.join(installed)}; " if installed else ""
        return f"OpenCV (cv2) is missing or was removed with another build of it; {remove}pip install {OPENCV[0]}"
    if len(installed) > 1:
        return (
            f"{' and '.join(installed)} share one folder, so the last one installed counts, and removing one breaks "
            f"the other; keep one: pip uninstall {' '.join(installed)}; pip install {OPENCV[0]}"
        )
    return None
