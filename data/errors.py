"""The one exception for input that cannot be used, and the texts of errors."""

from __future__ import annotations


class InputError(ValueError):
    """A file, value or setting from the user cannot be used.

    The message is one sentence that says what is wrong and where. The command line prints it without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with escapes for bytes that are not UTF-8, as in file names of old systems."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def reason_of(error: Exception) -> str:
    """The first line of an error's text, or the name of its type if the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
