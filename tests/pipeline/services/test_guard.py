"""Who is let in: hosts, origins, tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tumorlens.pipeline.services.guard import Guard

LOCAL = "127.0.0.1:8080"


def ask(
    guard: Guard, query: str = "", kind: str = "http", path: str = "/page", method: str = "GET", **headers: str
) -> dict[str, Any]:
    """The answer of a guard: status (200 where it lets through), headers and body."""
    sent: list[Any] = []
    scope = {
        "type": kind,
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "server": ("127.0.0.1", 8080),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, lambda: None, send))
    if kind == "websocket":
        return {"open": sent[0]["type"] == "websocket.accept"}
    return {
        "status": sent[0]["status"],
        "headers": {name.decode(): value.decode() for name, value in sent[0]["headers"]},
        "body": sent[1]["body"].decode(),
    }


async def _inside(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def local():
    return Guard(_inside)


@pytest.fixture
def secret():
    return Guard(_inside, "open sesame")


@pytest.mark.parametrize("host", [LOCAL, "localhost", "LOCALHOST:99", "[::1]:8080", "[::1]"])
def test_this_machine_is_let_in(local, host):
    assert ask(local, host=host)["body"] == "inside"


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8080", "127.0.0.1.evil.com", "localhost@evil.com", "", "[", "192.168.0.7"]
)
def test_foreign_hosts_are_refused(local, host):
    answer = ask(local, host=host)
    assert answer["status"] == 403
    assert "only on this machine" in answer["body"]
    assert ask(local, kind="websocket", host=host) == {"open": False}


def test_other_origins_are_refused(local, secret):
    token = "Bearer open sesame"
    for origin in ("http://evil.com", "http://[evil", "null", "http://127.0.0.1:9", "http://127.0.0.1:8080.evil.com"):
        assert ask(local, host=LOCAL, origin=origin)["status"] == 403
        assert ask(secret, host="me.example", origin=origin, authorization=token)["status"] == 403
        assert ask(local, kind="websocket", host=LOCAL, origin=origin) == {"open": False}
    assert ask(local, host=LOCAL, origin=f"http://{LOCAL}")["status"] == 200
    assert ask(local, kind="websocket", host=LOCAL, origin=f"http://{LOCAL}") == {"open": True}


def test_everything_needs_the_token(secret):
    for path in ("/", "/style/theme.css", "/_nicegui/x", "/uploads/x", "/views/x/slice/0/0"):
        assert ask(secret, path=path, host=LOCAL)["status"] == 401
    assert ask(secret, kind="websocket", host=LOCAL) == {"open": False}
    assert ask(secret, "token=open", host=LOCAL)["status"] == 401
    assert ask(secret, "token=", host=LOCAL)["status"] == 401
    assert ask(secret, host=LOCAL, cookie="tumorlens-8080=open sesame")["status"] == 401
    assert ask(secret, host=LOCAL, authorization="Basic open sesame")["status"] == 401
    assert ask(secret, host=LOCAL, authorization="Bearer open sesame")["status"] == 200


def test_the_token_in_the_address_becomes_a_cookie(secret):
    answer = ask(secret, "token=open%20sesame&scan=a", host="me.example:1")
    assert answer["status"] == 200
    assert "inside" not in answer["body"]
    assert 'url=/page?scan=a"' in answer["body"]
    cookie = answer["headers"]["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert "sesame" not in cookie
    pair = cookie.partition(";")[0]
    assert ask(secret, host="me.example:1", cookie=pair)["body"] == "inside"
    assert ask(secret, kind="websocket", host="me.example:1", cookie=pair) == {"open": True}
    assert ask(secret, host="me.example:1", cookie=pair[:-1])["status"] == 401


def test_the_token_in_the_address_opens_pages_only(secret):
    for path, method in (("/v1/scans", "GET"), ("/v1/scans", "POST"), ("/metrics", "GET"), ("/page", "POST")):
        answer = ask(secret, "token=open%20sesame", path=path, method=method, host=LOCAL)
        assert answer["status"] == 401 and "set-cookie" not in answer["headers"]
        assert ("Authorization: Bearer TOKEN" in answer["body"]) == (path != "/page")


def test_the_token_leads_to_no_other_host(secret):
    for path in ("//evil.com", "/\\evil.com", '//evil.com/"><script>'):
        body = ask(secret, "token=open%20sesame", path=path, host=LOCAL)["body"]
        target = body.partition("url=")[2].partition('"')[0]
        assert target.startswith("/") and target[1] not in "/\\"
        assert "<script>" not in body


def test_pages_may_load_nothing_from_elsewhere(local):
    headers = ask(local, host=LOCAL)["headers"]
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "http" not in headers["content-security-policy"]
