"""The one exception for input that cannot be used, and the texts of errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Characters that a terminal obeys: escapes, and those that turn the direction of writing. Tabs and line ends stay.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ENDS = re.compile("[\t\n\u2028\u2029]")


class InputError(ValueError):
    """A file, value or setting from the user cannot be used.

    The message is one sentence that says what is wrong and where. The command line prints it without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DiskFullError(InputError):
    """The disk has no room for what an input needs. The input itself may be sound."""


def is_of_the_disk(error: Exception) -> bool:
    """Whether an error says that no other file can be written either: the disk is full, or may only be read."""
    return is_disk_full(error) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_full or isinstance(error, DiskFullError)


# Extra -> the packages that it adds to those of other extras, by the names under which they are imported. Of a package
# that several add, users hear the first, unless the feature names another.
EXTRAS = {
    "data": ("matplotlib", "sklearn"),
    "volumes": ("SimpleITK", "nilearn", "scipy"),
    "matlab": ("h5py", "scipy"),
    "train": ("torch", "torchvision", "segmentation_models_pytorch", "timm", "monai", "lightning", "torchmetrics"),
    "app": ("nicegui", "prometheus_client", "dicomweb_client"),
    "dicom-node": ("pynetdicom", "dicomweb_client"),
    "cluster": ("ray", "fsspec", "pyarrow", "dicomweb_client"),
    "coco": ("pycocotools",),
    "pdf": ("weasyprint",),
    "export": ("onnx", "onnxscript"),
}
_CALLED = dict.fromkeys(EXTRAS["train"], "PyTorch")  # and what stands on it
_CALLED |= {"sklearn": "scikit-learn", "scipy": "SciPy", "nicegui": "NiceGUI", "ray": "Ray"}


@contextmanager
def needs(feature: str, extra: str | None = None) -> Iterator[None]:
    """Turn the lack of a package that an extra brings into an `InputError`.

    Args:
        feature: What needs it, the beginning of the sentence.
        extra: The extra with all that the feature needs; by default the first in `EXTRAS` that brings the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        bringing = [name for name, packages in EXTRAS.items() if package in packages]
        if not bringing:
            raise
        extra = extra or bringing[0]
        lacking = [package] if package in EXTRAS[extra] else absent_packages(EXTRAS[extra])[:1] or [package]
        raise InputError(_install(feature, extra, lacking)) from None


def missing(feature: str, extra: str, packages: Sequence[str] = ()) -> str | None:
    """The sentence for a user who lacks packages of an extra, or some of them; None if all are there.

    None of them is imported.
    """
    absent = absent_packages(packages or EXTRAS[extra])
    return _install(feature, extra, absent) if absent else None


def absent_packages(packages: Sequence[str]) -> list[str]:
    """Those that are not installed, by the names under which they are imported. None is imported."""
    from importlib.util import find_spec

    return [package for package in packages if find_spec(package) is None]


def require(feature: str, extra: str, packages: Sequence[str] = ()) -> None:
    """Raise the sentence of `missing` as an `InputError`, before any work is done."""
    if lack := missing(feature, extra, packages):
        raise InputError(lack)


def _install(feature: str, extra: str, packages: list[str]) -> str:
    *first, last = dict.fromkeys(_CALLED.get(package, package.replace("_", "-")) for package in packages)
    names, what = (f"{', '.join(first)} and {last}", "them") if first else (last, "it")
    return f"{feature} needs {names}; install {what} with: pip install 'tumorlens[{extra}]'"


def printable(text: str) -> str:
    """The text with escapes for what no terminal should get, as in names of files: bytes that are not UTF-8, and
    characters that it obeys."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """The `printable` text with escapes also for tabs and line ends, which names of files may hold."""
    return _ENDS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), printable(text))


def reason_of(error: Exception) -> str:
    """The first line of an error's text, or the name of its type if the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
