"""Who reaches a running server: tokens, foreign hosts, other origins, in a browser and without one."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import time
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def secret(serve) -> str:
    """The address of a server with a token."""
    return serve("--token", "open-sesame")


def status(address: str, path: str = "/", method: str = "GET", **headers: str) -> int:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse().status
    finally:
        connection.close()


def websocket(address: str, **headers: str) -> int:
    """The status of the answer to a request for a websocket; 101 opens it."""
    parts = urlsplit(address)
    lines = [
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
        f"Host: {headers.pop('Host', parts.netloc)}",
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(100).split()[1])


def test_without_a_token_only_this_machine_and_its_own_pages(serve):
    address = serve()
    host = urlsplit(address).netloc
    assert status(address) == 200
    assert status(address, Host="evil.com") == 403
    assert status(address, Origin="http://evil.com") == 403
    assert status(address, Origin="http://[evil") == 403
    assert status(address, "/uploads/x", "POST", Origin="http://evil.com") == 403
    assert websocket(address, Origin=f"http://{host}") == 101
    assert websocket(address, Origin="http://evil.com") == 403
    assert websocket(address, Host="evil.com") == 403


def test_with_a_token_everything_needs_it(secret):
    for path in ("/", "/style/theme.css", "/nowhere", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
        assert status(secret, path) == 401
    assert status(secret, "/?token=wrong") == 401
    assert status(secret, "/uploads/x", "POST") == 401
    assert websocket(secret) == 403
    assert status(secret, "/", Authorization="Bearer open-sesame") == 200


def test_the_address_with_the_token_opens_the_page(secret, open_page):
    assert secret.endswith("?token=open-sesame")
    page = open_page(secret)
    page.get_by_role("button", name="Choose files").wait_for()
    assert "token" not in page.url
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    page.reload()
    page.get_by_role("button", name="Healthy head").click()
    page.locator(".tl-answer h2").wait_for()


def test_signs_in_a_token_are_quoted_in_the_address(serve, open_page):
    token = "ab+c/d==&x#%41"
    address = serve("--token", token)
    page = open_page(address)
    page.get_by_role("button", name="Choose files").wait_for()
    assert status(address, Authorization=f"Bearer {token}") == 200


def test_clients_that_never_connect_and_an_early_stop_leave_no_trace(start_server):
    server, stopped = start_server(), start_server()
    assert stopped.stop() == (143, "tumorlens: stopped\n"), "while the models are loading"
    for _ in range(3):
        assert status(server.url) == 200
    time.sleep(75)  # NiceGUI forgets such clients after 60 s
    assert server.stop() == (143, "tumorlens: stopped\n")


def test_without_the_token_there_is_one_sentence(secret, open_page):
    page = open_page(secret.partition("?")[0], quiet=False)
    assert page.inner_text("body").strip() == (
        "this server needs a token: open the address that it printed, with ?token="
    )
