"""The words of `tumorlens serve`; tests/pipeline/web opens its pages."""

from __future__ import annotations

import socket
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "other machines may reach 0.0.0.0, so give a secret with --token"),
        (["--token", " "], "--token is empty; give a secret"),
        (["--scans", "x"], "there is no OUT"),
        (["--port", "70000"], "70000 is not allowed; give 0 to 65535"),
        (["--host", "no such host", "--token", "x"], "this machine does not know the name"),
    ],
)
def test_wrong_use_is_one_sentence(command, arguments, sentence):
    pytest.importorskip("nicegui")
    result = command("serve", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


def test_a_port_in_use_is_one_sentence(command):
    pytest.importorskip("nicegui")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("serve", "--port", port, "--no-browser")
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be used (Address already in use); choose another" in result.stderr


def test_without_nicegui_the_message_names_the_extra(command, monkeypatch):
    monkeypatch.delitem(sys.modules, "tumorlens.pipeline.web.app", raising=False)
    monkeypatch.setitem(sys.modules, "nicegui", None)
    result = command("serve")
    assert result.exit_code == 2
    assert "pip install 'tumorlens[app]'" in result.stderr


def test_an_output_folder_without_results_is_one_sentence(command, tmp_path):
    pytest.importorskip("nicegui")
    result = command("serve", tmp_path)
    assert result.exit_code == 2
    assert "no results.csv here" in result.stderr
