"""The output of the command line: results, warnings, errors, progress."""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from tumorlens.data.errors import InputError, needs, printable

HELP_WIDTH = 100  # columns of --help on a wide terminal
_shown_progress: list[Progress] = []  # at most one; other lines wipe it first


def say(text: str) -> None:
    """Print a line of results. Where nobody reads it any more (`| head -1`), the command goes on all the same."""
    _wipe_progress()
    try:
        click.echo(printable(text))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_unless(quiet: bool) -> Callable[[str], None]:
    """`say`, or a function that says nothing."""
    return (lambda text: None) if quiet else say


def note(text: str) -> None:
    """Print a line on stderr, with our name in front."""
    _wipe_progress()
    click.echo(printable(f"tumorlens: {text}"), err=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    note(f"warning: {text}")


def show_error(text: str) -> None:
    """Print an error on stderr."""
    note(f"error: {text}")


def typed_command() -> str:
    """The command as the user typed it, for reports."""
    return "tumorlens " + shlex.join(sys.argv[1:])


def write_examples(formatter: click.HelpFormatter, lines: str | None) -> None:
    """Write the end of a help page: examples, a line each."""
    with formatter.section("Examples"):
        formatter.write("".join(f"  {line.strip()}\n" for line in (lines or "").strip().splitlines()))


@contextmanager
def user_errors(verbose: bool = False, stopped: Callable[[], str] = str, extra: str | None = None) -> Iterator[None]:
    """Turn an `InputError`, a missing package, or a failure of disk or network, into one line and exit code 2, and keep
    the warnings of other packages off the screen.

    Args:
        verbose: Let warnings and logs through.
        stopped: Called for advice when the user stops the command.
        extra: The extra with all that the command needs, see `data.errors.needs`.
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    else:
        warnings.simplefilter("ignore")
    try:
        with needs("this command", extra):
            yield
    except InputError as error:
        show_error(str(error))
        raise click.exceptions.Exit(2) from None
    except ModuleNotFoundError as error:
        from tumorlens.pipeline.versions import opencv_problem

        problem = opencv_problem() if error.name == "cv2" else None
        show_error(problem or f"the package {error.name} is missing; repair the installation of tumorlens with pip")
        raise click.exceptions.Exit(2) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        show_error(f"{place}{error.strerror or error}")
        raise click.exceptions.Exit(2) from None
    except KeyboardInterrupt:
        advice = stopped()
        note(f"stopped; {advice}" if advice else "stopped")
        raise click.exceptions.Exit(130) from None


@contextmanager
def own_remarks(hidden: bool) -> Iterator[None]:
    """Keep our own remarks (log records below an error) off the screen, if `hidden`."""
    import logging

    logger = logging.getLogger("tumorlens")
    before = logger.level
    if hidden:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def usage_message(error: click.UsageError) -> str:
    """A mistake in the words of a command, as one sentence that says what to do."""
    advice = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{_name_of(error.param)} is missing{advice}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_name_of(error.param)}: {error.message.rstrip('.')}{advice}"
    if isinstance(error, click.NoSuchOption | click.exceptions.NoSuchCommand) and error.possibilities:
        advice = f"; did you mean {' or '.join(error.possibilities)}?"
    return f"{error.message[:1].lower()}{error.message[1:].rstrip('.')}{advice}"


def _name_of(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return (param.metavar or param.human_readable_name).rstrip(".")


class Progress:
    """A line on stderr with the share of the work that is done and the time that is left. It is wiped at the end.

    The context is a function to call with the numbers done and of all, or None where stderr is not a terminal:

        with Progress("slices", hidden=quiet) as progress:
            evaluate(request, out, progress=progress)
    """

    def __init__(self, what: str, hidden: bool = False) -> None:
        self._what = what
        self._shown = not hidden and sys.stderr.isatty()
        self._width = 0
        self._begun: float | None = None

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self.update if self._shown else None

    def update(self, done: int, total: int) -> None:
        """Show the number done and of all."""
        now = time.monotonic()
        if self._begun is None or done >= total:
            self._begun = now if done < total else None
        if done >= total:
            self.wipe()
            return
        _wipe_progress(but=self)
        left = f", {_clock((now - (self._begun or now)) / done * (total - done))} left" if done else ""
        bar = "#" * (20 * done // total)
        text = f"[{bar:<20}] {done} of {total} {self._what}{left}"
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)
        _shown_progress[:] = [self]

    def wipe(self) -> None:
        """Wipe the line, so that other lines can follow."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
        _shown_progress[:] = [each for each in _shown_progress if each is not self]

    def __exit__(self, *_: object) -> None:
        self.wipe()


def _wipe_progress(but: Progress | None = None) -> None:
    for each in list(_shown_progress):
        if each is not but:
            each.wipe()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
