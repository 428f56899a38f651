"""The words of `tumorlens serve`; tests/pipeline/web opens its pages."""

from __future__ import annotations

import logging
import socket

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "other machines may reach 0.0.0.0, so give a secret with --token"),
        (["--token", " "], "--token is empty; give a secret"),
        (["--token", "clé"], "--token holds spaces or letters such as é; use ASCII letters, digits and signs"),
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


@pytest.mark.parametrize(
    ("arguments", "environ", "token"),
    [([], None, ""), ([], "b", "b"), (["--token", "ab+c/d==&x#%41"], "b", "ab+c/d==&x#%41")],
)
def test_the_token_is_an_option_or_in_the_environment(command, monkeypatch, arguments, environ, token):
    pytest.importorskip("nicegui")
    given = []
    monkeypatch.setattr("tumorlens.pipeline.web.app.run_server", lambda *rest: given.append(rest[4]))
    monkeypatch.delenv("TUMORLENS_TOKEN", raising=False)
    if environ is not None:
        monkeypatch.setenv("TUMORLENS_TOKEN", environ)
    assert command("serve", *arguments).exit_code == 0
    assert given == [token]


def test_an_empty_token_in_the_environment_is_one_sentence(command, monkeypatch):
    monkeypatch.setenv("TUMORLENS_TOKEN", "")
    result = command("serve")
    assert result.exit_code == 2
    assert "TUMORLENS_TOKEN is empty; give a secret" in result.stderr


def test_faults_of_pages_are_one_line_without_texts_of_files(caplog):
    pytest.importorskip("nicegui")
    from tumorlens.pipeline.web.app import _shorten_logs

    _shorten_logs()
    logs = [logging.getLogger(name) for name in ("nicegui", "uvicorn.error", "asyncio")]
    for log in logs:
        for error in (KeyError("Jane Doe"), TimeoutError("JavaScript did not respond within 15.0 s")):
            log.exception(error)
            try:
                raise error
            except Exception:
                log.exception("Exception in ASGI application")
    assert set(caplog.messages) == {"tumorlens: internal error, please report it (KeyError)"}
    assert len(caplog.messages) == 2 * len(logs)
    assert "Doe" not in caplog.text and "Traceback" not in caplog.text
    caplog.set_level(logging.INFO)  # as --verbose sets it
    logs[0].exception(KeyError("Jane Doe"))
    assert "Jane Doe" in caplog.text


def test_a_port_in_use_is_one_sentence(command):
    pytest.importorskip("nicegui")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("serve", "--port", port, "--no-browser")
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be used (Address already in use); choose another" in result.stderr


def test_an_output_folder_without_results_is_one_sentence(command, tmp_path):
    pytest.importorskip("nicegui")
    result = command("serve", tmp_path)
    assert result.exit_code == 2
    assert "no results.csv here" in result.stderr
