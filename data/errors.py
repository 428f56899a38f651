"""The one exception for input that cannot be used, and the texts of errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
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


# The packages of the extra `train`, by the names under which they are imported.
TRAIN_PACKAGES = ("torch", "torchvision", "segmentation_models_pytorch", "timm", "monai", "lightning", "torchmetrics")


@contextmanager
def needs_train(feature: str) -> Iterator[None]:
    """Turn the lack of a package of the extra ``train`` into an `InputError`.

    Args:
        feature: What needs it, the beginning of the sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in TRAIN_PACKAGES:
            raise
        raise InputError(f"{feature} needs PyTorch; install it with: pip install 'tumorlens[train]'") from None


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
