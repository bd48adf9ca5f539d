"""Who may ask the live page, request by request: the guard alone, around an app that says that it was reached."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import quote

import anyio
import pytest

pytest.importorskip("starlette")

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeclip.runtime.page import guard as guard_module
from edgeclip.runtime.page.guard import Guard, is_loopback

TOKEN = "correct hörse"
COOKIE = "edgeclip_80"


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """What is guarded."""
    await PlainTextResponse("reached", headers={"Cache-Control": "max-age=9"})(scope, receive, send)


class Answer:
    """The status, headers and body of an answer."""

    def __init__(self, messages: list[Message]) -> None:
        start, *rest = messages
        assert start["type"] == "http.response.start"
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in rest).decode()

    @property
    def error(self) -> str:
        said: str = json.loads(self.body)["error"]
        return said


def messages_of(
    path: str = "/api/state", *, app: ASGIApp = page, token: str | None = None, query: str = "", **headers: str
) -> list[Message]:
    """What a guarded app sends to one request; a ``_`` in a header's name stands for ``-``."""
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(Guard(app, token=token, cookie=COOKIE), scope, receive, send)
    return sent


def ask(path: str = "/api/state", **request: Any) -> Answer:
    return Answer(messages_of(path, **request))


def opened(**request: Any) -> bool:
    """Whether a request that brings this much gets through a guard with a token."""
    answer = ask(token=TOKEN, host="camera.local", **request)
    assert (answer.status, answer.body == "reached") in ((200, True), (401, False))
    return answer.status == 200


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("localhost..", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("", False),
        ("localhost.example", False),
        ("mylocalhost", False),
        ("localhostX", False),
        ("X127.0.0.1", False),
        ("126.255.255.255", False),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("127.0.0.1.example", False),
        ("::2", False),
    ],
)
def test_loopback_is_this_machine_by_its_own_addresses(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1"])
def test_without_a_token_this_machine_may_ask(host: str) -> None:
    assert (ask(host=host).status, ask(host=host).body) == (200, "reached")


@pytest.mark.parametrize("host", ["evil.example", "localhost@evil.example", "[::1", "", "10.0.0.1:80"])
def test_without_a_token_no_other_name_may(host: str) -> None:
    answer = ask(host=host)
    assert answer.status == 403
    assert "www-authenticate" not in answer.headers, "no token would help"
    assert repr(host) in answer.error
    assert "loopback" in answer.error


def test_a_request_without_a_host_is_none_of_this_machine() -> None:
    answer = ask()
    assert answer.status == 403
    assert "got ''" in answer.error


@pytest.mark.parametrize("token", [None, TOKEN])
def test_another_sites_request_is_refused_with_and_without_a_token(token: str | None) -> None:
    brings = {"token": token, "host": "localhost:80", "authorization": f"Bearer {TOKEN}"}
    assert ask(**brings, origin="http://localhost:80").status == 200
    for origin in ("http://evil.example", "null", "http://localhost:81", "http://localhost", ""):
        answer = ask(**brings, origin=origin)
        assert answer.status == 403
        assert answer.error.endswith(f"from {origin}")
    answer = ask(**brings, origin="http://[::1")
    assert answer.status == 400
    assert "http://localhost:80" in answer.error
    assert "'http://[::1'" in answer.error


@pytest.mark.parametrize(
    ("path", "site", "status"),
    [
        ("/api/state", "cross-site", 403),
        ("/api/state", "same-site", 403),
        ("/api/state", "same-origin", 200),
        ("/api/state", "none", 200),
        ("/style.css", "cross-site", 403),
        ("/", "cross-site", 200),
        ("/", "same-site", 200),
    ],
)
def test_a_link_may_lead_to_the_page_and_nothing_else_may_be_taken_into_another_site(
    path: str, site: str, status: int
) -> None:
    answer = ask(path, host="localhost", sec_fetch_site=site)
    assert answer.status == status
    if status == 403:
        assert "another site" in answer.error


def test_the_token_opens_by_each_of_its_three_ways() -> None:
    plain = "plain-token"
    for brings in (
        {"authorization": f"Bearer {plain}"},
        {"authorization": f"Bearer   {plain} "},
        {"query": f"token={plain}"},
        {"query": f"view=1&token={plain}"},
        {"cookie": f"{COOKIE}={plain}"},
        {"cookie": f"other=1; {COOKIE}={plain}"},
        {"query": "token=wrong", "cookie": f"{COOKIE}={plain}"},
        {"query": "token=", "authorization": f"Bearer {plain}"},
    ):
        answer = ask(token=plain, **brings)
        assert (answer.status, answer.body) == (200, "reached"), brings
    assert opened(query=f"token={quote(TOKEN)}")
    assert opened(query=f"view=\xff&token={quote(TOKEN)}"), "a byte that is no UTF-8 is the sender's affair"
    assert opened(authorization=f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    "brings",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": f"{TOKEN} Bearer "},
        {"authorization": f"Basic {TOKEN}"},
        {"query": "token"},
        {"query": "token="},
        {"query": "token=wrong"},
        {"query": f"other={quote(TOKEN)}"},
        {"query": f"token=wrong&token={quote(TOKEN)}"},
        {"cookie": COOKIE},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": f"{COOKIE}="},
        {"cookie": f'other="{TOKEN}"'},
        {"cookie": "\x00=;;=,"},
    ],
)
def test_nothing_else_opens(brings: dict[str, str]) -> None:
    assert not opened(**brings)
    answer = ask(token=TOKEN, **brings)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "token" in answer.error


def test_a_cookie_that_is_none_opens_nothing_and_breaks_nothing() -> None:
    """``SimpleCookie`` refuses some names with an exception of its own."""
    assert not opened(cookie="a\x01b=1")
    assert not opened(cookie=f"{COOKIE}[]=1")


def test_the_page_itself_asks_for_the_token_and_what_that_looks_like_is_public() -> None:
    asked = ask("/", token=TOKEN)
    assert (asked.status, asked.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert 'name="token"' in asked.body
    assert "www-authenticate" not in asked.headers, "a browser would ask by a window of its own"
    for path, status in {"/style.css": 200, "/icon.svg": 200, "/style.css/": 401, "/app.js": 401}.items():
        assert ask(path, token=TOKEN).status == status
    assert ask("/", token=TOKEN, query="token=wrong").status == 401


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address() -> None:
    for query, location in {
        f"token={quote(TOKEN)}": "/",
        f"view=1&token={quote(TOKEN)}&empty=&token=2": "/?view=1&empty=",
    }.items():
        answer = ask("/", token=TOKEN, query=query)
        assert (answer.status, answer.headers["location"]) == (303, location)
        cookie, *attributes = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict"} <= set(attributes)
        assert opened(cookie=cookie)
    answer = ask("/", token="plain", query="token=plain")
    cookie = answer.headers["set-cookie"].split("; ")[0]
    assert cookie == f"{COOKIE}=plain"
    assert ask(token="plain", cookie=cookie).status == 200


def test_a_token_in_the_address_of_data_is_answered_at_once() -> None:
    assert ask("/api/state", token="plain", query="token=plain").body == "reached"


def test_every_answer_carries_the_headers_that_keep_it_to_this_page() -> None:
    for answer in (ask(host="localhost"), ask(host="evil.example")):
        assert answer.headers["content-security-policy"].split("; ") == [
            "default-src 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "form-action 'self'",
        ]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert ask(host="evil.example").headers["cache-control"] == "no-store"
    assert ask(host="localhost").headers["cache-control"] == "max-age=9", "an answer may say otherwise"


def test_what_is_not_a_request_is_left_alone() -> None:
    anyio.run(Guard(page, token=None, cookie=COOKIE), {"type": "lifespan"}, None, None)


def test_a_failure_is_said_in_the_log_and_to_a_browser_that_still_listens(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(*_: Any) -> None:
        raise RuntimeError("no such thing")

    answer = ask("/api/x", app=fails, host="localhost")
    assert answer.status == 500
    assert "log" in answer.error
    assert answer.headers["cache-control"] == "no-store"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("/api/x: RuntimeError: no such thing")


def test_a_failure_after_the_answer_began_is_not_answered_twice() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    (start,) = messages_of(app=fails, host="localhost")
    assert start["status"] == 200


def test_a_viewer_that_left_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def left(*_: Any) -> None:
        raise ClientDisconnect

    caplog.set_level(logging.DEBUG, "edgeclip")
    assert messages_of(app=left, host="localhost") == []
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_a_viewer_that_takes_nothing_is_let_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert guard_module._SEND_S == 20
    monkeypatch.setattr(guard_module, "_SEND_S", 0.05)
    caplog.set_level(logging.DEBUG, "edgeclip")

    async def never(_: Message) -> None:
        await anyio.sleep(30)

    async def run() -> None:
        scope = {"type": "http", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
        with anyio.fail_after(10):
            await Guard(page, token=None, cookie=COOKIE)(scope, never, never)

    anyio.run(run)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_what_is_guarded_receives_the_request_and_nothing_of_its_scope_is_lost() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await PlainTextResponse(f"{scope['path']} {message['type']}")(scope, receive, send)

    assert ask(app=echo, host="localhost").body == "/api/state http.request"
