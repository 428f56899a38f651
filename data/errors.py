"""The one exception that stands for a mistake in what the user gave."""


class InputError(ValueError):
    """A file, value or setting from the user cannot be used.

    The message is one sentence that says what is wrong and where; the command line prints it without a traceback.
    """
