"""What the screen shows: a progress line that makes room for other lines, and errors in one line."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

import click
import pytest

from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.screen import Progress, own_remarks, say, user_errors, warn


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shown(self):
        """The text as it stands on the screen."""
        lines = [""]
        for part in self.getvalue().replace("\n", "\n\0").split("\0"):
            for piece in part.split("\r")[1:] or [part]:
                lines[-1] = piece + lines[-1][len(piece) :]
            if part.endswith("\n"):
                lines.append("")
        return lines


@pytest.fixture
def terminal(monkeypatch):
    """A screen, once a test calls it: between fixtures and test pytest sets its own."""

    def make():
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return make


def test_progress_is_one_line_that_is_gone_in_the_end(terminal):
    terminal = terminal()
    with Progress("slices") as progress:
        progress(1, 40)
        assert terminal.shown()[-1].startswith("[                    ] 1 of 40 slices")
        progress(20, 40)
        assert terminal.shown()[-1].startswith("[##########          ] 20 of 40 slices, 0:00 left")
        progress(40, 40)
        assert terminal.shown()[-1].strip() == ""
        progress(1, 2)  # the next part of the work
        assert "1 of 2" in terminal.shown()[-1]
    assert terminal.shown()[-1].strip() == ""


def test_a_warning_wipes_the_progress_first(terminal):
    terminal = terminal()
    with Progress("slices") as progress:
        progress(1, 40)
        warn("of something")
        assert [line.rstrip() for line in terminal.shown()] == ["tumorlens: warning: of something", ""]
        progress(2, 40)
        assert "2 of 40" in terminal.shown()[-1]


def test_no_progress_is_shown_where_it_would_fill_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("slices", hidden=True) as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("slices") as progress:
        assert progress is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.png: is a text"), "tumorlens: error: a.png: is a text"),
        (FileNotFoundError(2, "No such file", "a.png"), "tumorlens: error: a.png: No such file"),
        (OSError("the network is down"), "tumorlens: error: the network is down"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(error, line, capsys):
    with pytest.raises(click.exceptions.Exit) as left, user_errors():
        raise error
    assert (left.value.exit_code, capsys.readouterr().err) == (2, line + "\n")


def test_names_that_are_not_unicode_can_be_printed(capsys):
    say("M\udcfcller")
    assert capsys.readouterr().out == "M\\udcfcller\n"


def test_a_closed_pipe_does_not_stop_the_command(monkeypatch):
    """As in `tumorlens run ... --json | head -1`: the output goes nowhere from then on."""

    def broken(text):
        raise BrokenPipeError

    redirected = []
    monkeypatch.setattr(click, "echo", broken)
    monkeypatch.setattr("os.dup2", lambda new, old: redirected.append(old))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 7))
    say("a line")
    assert redirected == [7]


def test_our_remarks_are_hidden_for_a_while(caplog):
    logger = logging.getLogger("tumorlens.somewhere")
    with own_remarks(hidden=True):
        logger.warning("first")
    with own_remarks(hidden=False):
        logger.warning("second")
    assert [record.message for record in caplog.records] == ["second"]
