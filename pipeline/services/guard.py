"""`Guard`: nobody but the user's own browser, or who knows the token, reaches the server."""

from __future__ import annotations

import hashlib
import html
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_COOKIE = "tumorlens"
_API = ("/v1", "/metrics")
_WITHOUT_TOKEN = ("/v1/health", "/v1/ready")  # for whoever watches the server; they say nothing about scans
_NO_TOKEN = "this server needs a token: open the address that it printed, with ?token="
_NO_BEARER = "this server needs a token: send it as `Authorization: Bearer TOKEN`"
_HEADERS = (
    # NiceGUI's pages run scripts of their own. Nothing may come from, or go to, another host.
    (
        "content-security-policy",
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application in front of another. It judges every request and every websocket.

    With a token, all of them need it: once as ``?token=`` (a cookie keeps it from then on), or as a bearer. Only
    ``/v1/health`` and ``/v1/ready`` do not. Without one, the server must be reached by a name of this machine: a
    foreign page that resolves its own name to 127.0.0.1 is refused. Pages of other origins are refused in both cases.
    """

    def __init__(self, app: App, token: str = "") -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if refusal:
            await _answer(scope, send, 403, refusal)
        elif not self._token or scope["path"] in _WITHOUT_TOKEN or self._knows(scope, headers):
            await self._app(scope, receive, _with_headers(send))
        elif _is_page(scope) and _equal(query.pop("token", ""), self._token):
            await self._welcome(scope, send, query)
        else:
            await _answer(scope, send, 401, _NO_TOKEN, headers=[("www-authenticate", "Bearer")])

    def _refusal(self, headers: dict[str, str]) -> str:
        host = headers.get("host", "")
        if not self._token and _name_of(host) not in LOCAL_HOSTS:
            return "this server answers only on this machine, as localhost or 127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return "pages of other origins may not use this server"
        return ""

    def _knows(self, scope: Message, headers: dict[str, str]) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(bearer.strip(), self._token):
            return True
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except Exception:  # some other server's
            return False
        morsel = cookies.get(_cookie_of(scope))
        return morsel is not None and _equal(morsel.value, _hash(self._token))

    async def _welcome(self, scope: Message, send: Send, query: dict[str, str]) -> None:
        """Set the cookie and lead to the same address without the token.

        A redirect would not do: after a link on another page, browsers do not send a strict cookie along with it.
        """
        path = "/" + quote(scope["path"].lstrip("/"))  # never another host
        target = html.escape(path + (f"?{urlencode(query)}" if query else ""), quote=True)
        cookie = f"{_cookie_of(scope)}={_hash(self._token)}; Path=/; HttpOnly; SameSite=Strict"
        page = f'<!doctype html><title>tumorlens</title><meta http-equiv="refresh" content="0; url={target}">'
        await _answer(scope, send, 200, page, "text/html; charset=utf-8", [("set-cookie", cookie)])


def _is_page(scope: Message) -> bool:
    """Whether a person asks for a page: those who call the API do not follow it to another address."""
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and not scope["path"].startswith(_API)


def _cookie_of(scope: Message) -> str:
    """The cookie's name, with the port: browsers share cookies between the ports of a host."""
    return f"{_COOKIE}-{(scope.get('server') or ('', 0))[1]}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _host_of(origin: str) -> str | None:
    """Host and port of an origin, lower case; None where it is not an address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """The host's name without its port and brackets, lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_encoded(_HEADERS)]
        await send(message)

    return send_with_headers


def _encoded(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _answer(
    scope: Message,
    send: Send,
    status: int,
    text: str,
    kind: str = "text/plain; charset=utf-8",
    headers: list[tuple[str, str]] | None = None,
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    if scope["path"].startswith(_API):
        kind, text = "application/json", json.dumps({"detail": _NO_BEARER if text == _NO_TOKEN else text})
    every = [("content-type", kind), ("cache-control", "no-store"), *(headers or []), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": _encoded(every)})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
