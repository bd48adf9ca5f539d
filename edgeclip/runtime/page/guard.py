"""A request for the live page in; the page's answer out, or a refusal of whoever may not ask.

Without a token, only this machine may ask, and only through an address of its own: a page of elsewhere whose name was
made to point here (DNS rebinding) sends its own name as ``Host``. With a token, whoever knows it may. In both cases
requests that another site's page made are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("edgeclip")

_SEND_S = 20.0  # a browser that takes nothing for so long is gone
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_PUBLIC = {"/style.css", "/icon.svg"}  # what the page that asks for the token needs
_ASK_FOR_TOKEN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeclip</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/style.css"><main class="gate"><h1>edgeclip</h1>
<p>This page needs its token. Open the address that edgeclip printed when it started, or enter the token here.</p>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button></form></main></html>"""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine, as seen from itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that lets in only those who may.

    Args:
        app: what it guards.
        token: what a request must bring, as ``Authorization: Bearer``, ``?token=`` or cookie; None for loopback only.
        cookie: name of the cookie.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, cookie: str) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = False

        async def bounded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            with anyio.fail_after(_SEND_S):
                await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, bounded_send)
        except ClientDisconnect:
            _log.debug("a viewer of the live page left before it had sent all")
        except TimeoutError:
            _log.debug("a viewer of the live page took nothing for %g s and was let go", _SEND_S)
        except Exception as error:  # noqa: BLE001 - said in the log, and to the browser where it still listens
            _log.warning("the live page failed on %s: %s: %s", scope["path"], type(error).__name__, error)
            if not started:
                await _refuse(500, "this request failed: the log of edgeclip says why")(scope, receive, bounded_send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_host_name(host)):
            return _refuse(403, f"expected the Host of a loopback address such as localhost, got {host!r}")
        if (origin := headers.get("origin")) is not None:
            try:
                asked_from = urlsplit(origin).netloc
            except ValueError:
                return _refuse(400, f"expected an Origin such as http://{host}, got {origin!r}")
            if asked_from != host:
                return _refuse(403, f"expected a request from this page, got one from {origin}")
        # A link may lead to the page from anywhere; pictures and data may not be taken into other sites' pages.
        if scope["path"] != "/" and headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            return _refuse(403, "expected a request from this page, got one from another site")
        if self._token is None or scope["path"] in _PUBLIC:
            return None
        return self._check_token(scope, headers)

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        in_query = next((value for name, value in query if name == "token"), None)
        if scope["path"] == "/" and in_query is not None and self._is_token(in_query):
            # On to an address without the token, which would stay in the browser's history.
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            response = RedirectResponse("/" + (f"?{rest}" if rest else ""), status_code=303)
            response.set_cookie(self._cookie, in_query, httponly=True, samesite="strict")
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = (in_query, bearer, _cookie(headers.get("cookie", ""), self._cookie))
        if any(value and self._is_token(value) for value in given):
            return None
        if scope["path"] == "/":
            return HTMLResponse(_ASK_FOR_TOKEN, status_code=401)
        return _refuse(401, "expected the token of this page, as Authorization: Bearer … or ?token=…")

    def _is_token(self, value: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(value.encode(), self._token.encode())


def _refuse(status: int, sentence: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str, name: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return None
    return morsel.value if morsel else None
