"""Labelled frames in; a live page for browsers out, served from a thread of its own (``docs/web.md``)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.prompts import PromptTable, make_classes
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sources.address import host_and_port, without_password
from edgeclip.runtime.sources.base import Frame

_log = logging.getLogger("edgeclip")

_SAMPLE_S = 1.0
_LEAVE_S = 2  # what viewers have to take the last messages when the run is over
_JOIN_S = 6.0
_SEND_BUFFER = 256 * 1024  # a slow browser sees the present, not what the kernel kept for it
_SHORTEST_TOKEN = 8


class WebSink(Sink):
    """The live page: video with labels, events, plots, counts, and tables to be replaced.

    Args:
        host: address to listen on; anything but loopback requires a token.
        port: 0 for a free one.
        token: what a browser must bring; by default none on loopback, and a random one beyond it.
        make_table: (table name, class names separated by commas) -> table, for the prompt editor; may be slow, is
            called on a worker thread, and says what is wrong by raising an EdgeclipError.
        open_browser: open the page in this machine's browser.

    Attributes:
        url: where the page is, with its token; known once opened.

    Raises:
        InputError: a token that can be guessed; (when opened) the address cannot be listened on.
        MissingExtraError: (when opened) the extra ``web`` is not installed.
    """

    name = "web"
    wants_pixels = True

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
        make_table: Callable[[str, str], PromptTable] | None = None,
        open_browser: bool = False,
    ) -> None:
        if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
            raise InputError(f"expected a token of at least {_SHORTEST_TOKEN} ASCII characters, got {len(token)}")
        if not 0 <= port <= 65535:
            raise InputError(f"expected a port from 0 to 65535, got {port}")
        self._host = host
        self._port = port
        self._token = token
        self._make_table = make_table
        self._open_browser = open_browser
        self._closing = threading.Event()
        self.url = ""

    @classmethod
    def at(
        cls, address: str, *, token: str | None = None, bundle: Bundle | None = None, templates: Sequence[str] = ()
    ) -> WebSink:
        """A page at ``HOST:PORT``, whose viewers can edit the classes where the bundle's text encoder is installed.

        Args:
            bundle: whose text encoder encodes new classes; None for a page without an editor.
            templates: for new classes, ``{}`` standing for the name.

        Raises:
            InputError: not an address, or a token that can be guessed.
        """
        found = host_and_port(address)
        if found is None or not found[0]:
            raise InputError(f"expected an address HOST:PORT or [IPv6]:PORT, got {without_password(address)!r}")
        host, port = found

        def make_table(name: str, classes: str) -> PromptTable:
            # Not text: what a browser sends must not name a file of this machine.
            assert bundle
            return bundle.encode_table(name, make_classes(classes.split(",")), templates, progress=go_on)

        def go_on(_done: int, _total: int) -> None:
            if page._closing.is_set():
                raise InputError("the run is over")

        make = make_table if bundle and bundle.has_text_encoder else None
        page = cls(host, port, token, make_table=make)
        return page

    def open(self, run: Run) -> None:
        """Listen, and serve from a thread."""
        uvicorn = require("uvicorn", purpose="serve the live page", extra="web")
        guard = require("edgeclip.runtime.page.guard", purpose="serve the live page", extra="web")
        app = require("edgeclip.runtime.page.app", purpose="serve the live page", extra="web")
        state = require("edgeclip.runtime.page.state", purpose="serve the live page", extra="web")
        connections = require("edgeclip.runtime.page.connections", purpose="serve the live page", extra="web")
        if self._token is None and not guard.is_loopback(self._host):
            self._token = secrets.token_urlsafe(24)
        listener = _listen(self._host, self._port)
        port = listener.getsockname()[1]
        self._page = state.PageState(run)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edgeclip-web-jpeg")
        # A pool's threads are waited for before the interpreter ends: torn down under them, a library may abort.
        self._tables_executor = ThreadPoolExecutor(1, thread_name_prefix="edgeclip-web-tables")
        web_app = app.WebApp(self._page, self._executor, self._tables_executor, self._make_table)
        config = uvicorn.Config(
            guard.Guard(web_app.asgi, token=self._token, cookie=f"edgeclip_{port}"),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",  # what goes wrong is said by the guard, in edgeclip's own log
            access_log=False,
            server_header=False,
            http=connections.PageConnection,
            limit_concurrency=connections.MOST,
            timeout_graceful_shutdown=_LEAVE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener)), name="edgeclip-web", daemon=True
        )
        self._thread.start()
        self.url = _url(self._host, port, self._token)
        _log.info("live page at %s", self.url)
        if self._open_browser:
            webbrowser.open(self.url)

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        """Keep the latest record and frame of the source."""
        self._page.add(labelled, frame)

    def end(self, source: str, events: list[Event], reason: str) -> None:
        """Show that a source ended."""
        self._page.end_source(source, events, reason)

    def close(self, *, complete: bool) -> None:
        """Tell the pages that the run is over, with its counts, and stop serving."""
        self._closing.set()
        self._page.finish(complete=complete)
        self._server.should_exit = True
        self._thread.join(_JOIN_S)
        for executor in (self._executor, self._tables_executor):
            executor.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, listener: socket.socket) -> None:
        self._page.bell.bind(asyncio.get_running_loop())
        sampling = asyncio.create_task(self._sample())
        try:
            await self._server.serve(sockets=[listener])
        finally:
            sampling.cancel()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._page.sample()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: what can be no host's name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the live page cannot listen on {host} ({reason}): choose another host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(
            f"the live page cannot listen on {host} port {port} ({error.strerror}): "
            "choose another port, or 0 for any that is free"
        ) from error
    return listener


def _url(host: str, port: int, token: str | None) -> str:
    # Where every address is listened on, the name of this machine is one that others can use.
    shown: Any = socket.gethostname() if host in {"0.0.0.0", "::", ""} else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?token={quote(token)}" if token else "")
