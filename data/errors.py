"""The one exception that stands for a mistake in what the user gave."""

from __future__ import annotations


class InputError(ValueError):
    """A file, value or setting from the user cannot be used.

    The message is one sentence that says what is wrong and where; the command line prints it without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with bytes that are no UTF-8 (file names of old systems) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def reason_of(error: Exception) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
