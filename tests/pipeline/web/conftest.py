"""Fixtures of the browser tests: a server as users start it, and pages in Chromium that watch what they load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE, NARROW = (1400, 900), (390, 844)
_NOT_OURS = ("PYTEST_", "NICEGUI_", "TUMORLENS_TOKEN")  # of the environment
LOADED_MS = 60_000  # until the models are loaded, on a busy machine


def _missing() -> str:
    """Why there is no browser, or an empty string."""
    if not shutil.which("chromium"):
        return "no chromium; install it with: apt-get install chromium"
    try:
        import nicegui  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError as error:
        return f"no {error.name}; install it with: pip install -e '.[test]'"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if "browser" in item.keywords]
    reason = _missing() if marked else ""
    for item in marked if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))


class Server:
    """A running `tumorlens serve`.

    Attributes:
        url: The address that it printed.
        process: The process.
        folder: Where it makes its temporary folders, and nothing else does.
    """

    def __init__(self, folder: Path, arguments: tuple[Any, ...]) -> None:
        self.folder = folder
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tumorlens.pipeline.cli.app", "serve", "--port", "0", "--no-browser"]
            + [str(argument) for argument in arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http\S+", line)
        if found is None:
            raise AssertionError(f"the server did not start: {line}{self.process.communicate(timeout=30)}")
        self.url = found[0]

    def stop(self) -> tuple[int, str]:
        """Stop it; returns its exit code and what it printed on stderr."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    @property
    def files(self) -> list[str]:
        """All files in its temporary folders."""
        return sorted(file.name for file in self.folder.rglob("*") if file.is_file())


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`start_server(*arguments) -> Server`: a server of its own; the session's end stops it."""
    servers: list[Server] = []

    def start(*arguments: Any) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), arguments))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def serve(start_server: Callable[..., Server]) -> Callable[..., str]:
    """`serve(*arguments) -> address` of a server; calls with the same arguments share one."""
    known: dict[tuple[str, ...], Server] = {}

    def address(*arguments: Any) -> str:
        key = tuple(str(argument) for argument in arguments)
        if key not in known:
            known[key] = start_server(*arguments)
        return known[key].url

    address.server = lambda *arguments: known[tuple(map(str, arguments))]  # type: ignore[attr-defined]
    return address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser of a file's tests. Playwright keeps an event loop running, which other files' tests cannot bear."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(address, size=WIDE, scheme="light", quiet=True) -> page`, in a browser of its own.

    At the end, the test fails if a page has asked another host for anything, or if its console shows an error. With
    `quiet=False` errors are allowed: what the test does makes the server refuse something.
    """
    contexts, faults = [], []

    def open_page(
        address: str, size: tuple[int, int] = WIDE, scheme: str = "light", quiet: bool = True, **settings: Any
    ) -> Any:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **settings)
        contexts.append(context)
        page = context.new_page()
        ours = urlsplit(address).netloc

        def check(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob", "about") and parts.netloc != ours:
                faults.append(f"{request.url} was requested")

        page.on("request", check)
        page.on("websocket", check)
        if quiet:
            page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: faults.append(f"page: {error}"))
        page.set_default_timeout(LOADED_MS)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        with suppress(Exception):  # the test may have closed it
            context.close()
    assert not faults, "\n".join(faults)


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The size of a desktop's window, then of a phone's."""
    chosen: tuple[int, int] = request.param
    return chosen


@pytest.fixture
def out(finished_batch, tmp_path):
    """A copy of the results of `finished_batch`, to decide on."""
    shutil.copytree(finished_batch[1], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def review(start_server, finished_batch, out):
    """`review() -> Server` for the batch; calls stop nothing, so that two servers may share it."""
    servers = []

    def start(*arguments):
        servers.append(start_server(out, "--scans", finished_batch[0], *arguments))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


def serious_faults(page: Any) -> list[str]:
    """What axe-core finds on a page that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']} ({fault['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
