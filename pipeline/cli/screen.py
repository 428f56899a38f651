"""What the command line shows: errors, warnings, progress."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from tumorlens.data.errors import InputError, printable

if TYPE_CHECKING:
    pass


def print_line(text: str) -> None:
    """A line on the output; where nobody reads it any more (`| head -1`), the batch goes on all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage_error(message: str) -> typer.Exit:
    typer.echo(f"tumorlens: error: {message}", err=True)
    return typer.Exit(2)


@contextmanager
def user_errors(verbose: bool = False, stopped: str = "", quiet: bool = False) -> Iterator[None]:
    """Turn an `InputError`, or a failure of disk or network, into one line and exit code 2, and keep other packages'
    warnings off the screen.

    Args:
        verbose: Let warnings and logs through.
        stopped: What to tell a user who has stopped the command.
        quiet: Keep our own remarks off the screen, too.
    """
    remarks = logging.getLogger("tumorlens")
    before = remarks.level
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    else:
        import warnings

        warnings.simplefilter("ignore")
    if quiet:
        remarks.setLevel(logging.ERROR)
    try:
        yield
    except InputError as error:
        typer.echo(f"tumorlens: error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(printable(f"tumorlens: error: {where}{error.strerror or error}"), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("tumorlens: stopped" + (f"; {stopped}" if stopped else ""), err=True)
        raise typer.Exit(130) from None
    finally:
        remarks.setLevel(before)


@contextmanager
def progress_bar(total: int, hidden: bool) -> Iterator[typer.models.Any]:
    """A bar on stderr for more than one scan, if stderr is a terminal."""
    if hidden or total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("scans", total=total)
        yield lambda: bar.advance(task)


def warned(text: str) -> None:
    """A warning on stderr."""
    typer.echo(printable(f"tumorlens: warning: {text}"), err=True)


def hushed(quiet: bool) -> Any:
    """What takes the lines for the screen."""
    return (lambda text: None) if quiet else lambda text: typer.echo(printable(text))


class ProgressLine:
    """One line on stderr that is written over as work goes on, if stderr is a terminal, and gone when it is done."""

    def __init__(self, hidden: bool = False) -> None:
        self.shown = not hidden and sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Any:
        return self.update if self.shown else None

    def update(self, done: int, total: int) -> None:
        """Show the number done and of all."""
        text = f"{done} of {total}"
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)
        if done >= total:
            self.clear()

    def clear(self) -> None:
        """Wipe the line, so that other lines can follow."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __exit__(self, *_: object) -> None:
        self.clear()


class Reading:
    """A progress bar for the reading of the data, gone when it is done."""

    def __init__(self, show: bool) -> None:
        self.show = show

    def __enter__(self) -> Any:
        if not self.show:
            return None
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("reading slices", total=None)
        self.bar.start()
        return self.update

    def update(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if done == total:
            self.bar.stop()

    def __exit__(self, *_: object) -> None:
        if self.show:
            self.bar.stop()
