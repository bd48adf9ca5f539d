"""The page's state and the run's tables in, the ASGI application out: the page's files, its API, its streams."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgeclip.documents import decode_json
from edgeclip.errors import EdgeclipError, InputError, PromptError
from edgeclip.printable import printable
from edgeclip.prompts import PromptTable, make_classes
from edgeclip.runtime.page.state import PageState
from edgeclip.runtime.page.video import BOUNDARY, JpegVideo
from edgeclip.version import __version__

MakeTable = Callable[[str, str], PromptTable]

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_VIEWERS = 32  # streams under way at once, video and events together
_RECORD_GAP_S = 0.1
_LOOK_S = 1.0
_MAX_TABLE = 512 * 1024 * 1024
_MAX_PROMPTS = 256 * 1024
_SHOWN_CLASSES = 2000
_NO_EDITOR = (
    "Class names cannot be edited here because no text encoder is at hand: it needs the model on a machine with "
    "edgeclip[export] installed. A table made there with edgeclip prompts build can be uploaded instead."
)


class _Prompts(msgspec.Struct, forbid_unknown_fields=True):
    table: str
    classes: str | list[str]


class _Refused(Exception):
    """A request that cannot be done, and the HTTP status that says so."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Stream(StreamingResponse):
    """A response without end, which takes one of the seats while it lasts."""

    def __init__(self, seats: asyncio.Semaphore, body: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(body, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._seats.locked():
            refusal = _json({"error": f"expected at most {_VIEWERS} streams at once: close another page"}, 503)
            await refusal(scope, receive, send)
            return
        async with self._seats:
            await super().__call__(scope, receive, send)


class WebApp:
    """The live page and its API.

    Args:
        page: of the run.
        executor: where JPEGs are made.
        tables_executor: where tables are made and read.
        make_table: (table name, class names separated by commas) -> table; slow; None where there is no text encoder.
    """

    def __init__(
        self, page: PageState, executor: Executor, tables_executor: Executor, make_table: MakeTable | None
    ) -> None:
        self._page = page
        self._run = page.run
        self._make_table = make_table
        self._tables_executor = tables_executor
        self._seats = asyncio.Semaphore(_VIEWERS)
        self._changing = asyncio.Lock()
        self._videos = [JpegVideo(page, latest, executor) for latest in page.sources.values()]
        folder = Path(str(resources.files("edgeclip") / "runtime" / "page" / "static"))
        files = {f"/{path.name}": (path.read_bytes(), _KINDS[path.suffix]) for path in folder.iterdir()}
        files["/"] = files.pop("/index.html")
        self.asgi = Starlette(
            routes=[
                *(Route(path, partial(_file, content=content, kind=kind)) for path, (content, kind) in files.items()),
                Route("/video/{source:path}", self._video),
                Route("/api/state", self._state),
                Route("/api/events", self._events),
                Route("/api/tables", self._tables),
                Route("/api/tables/{name}", self._upload, methods=["PUT"]),
                Route("/api/prompts", self._prompts, methods=["POST"]),
                Route("/api/stop", self._stop, methods=["POST"]),
            ],
            exception_handlers={_Refused: _refused, EdgeclipError: _refused},
        )

    async def _state(self, request: Request) -> Response:  # noqa: ARG002 - the signature of every handler
        page, manifest = self._page, self._run.bundle.manifest
        latest = [item.record for item in page.sources.values() if item.record]
        return _json(
            {
                "version": __version__,
                "model": manifest.model.name,
                "bundle": printable(self._run.bundle.path.name, lines=False),
                "now_s": page.now_s(),
                "sources": [
                    {"name": source.name, "live": source.live, "fps": source.fps, "total": source.total}
                    | {"video": f"/video/{position}", "ended": page.sources[source.name].ended}
                    for position, source in enumerate(self._run.sources)
                ],
                "tables": self._described_tables(),
                "regions": [{"name": region.name, "polygon": region.polygon} for region in self._run.regions],
                "editor": {"enabled": self._make_table is not None, "reason": "" if self._make_table else _NO_EDITOR},
                "account": page.totals(),
                "samples": list(page.samples),
                "latest": latest,
                "history": page.history(),
                "events": page.events_after(0),
                "ended": page.ended,
            }
        )

    async def _events(self, request: Request) -> Response:
        after = request.headers.get("last-event-id") or request.query_params.get("after") or ""
        number = _number(after)
        number = self._page.event_count if number is None else number
        return _Stream(self._seats, self._messages(request, number), "text/event-stream")

    async def _messages(self, request: Request, number: int) -> AsyncIterator[bytes]:
        """Server-sent events: what is new to this viewer since the last message to it."""
        page = self._page
        counts = dict.fromkeys(page.sources, 0)
        version, sampled_s, ended, tables = -1, -1.0, -1, self._run.tables.current()
        yield b"retry: 1000\n\n"
        while True:
            await page.bell.wait(partial(page.newer_than, version), timeout_s=_LOOK_S)
            version, over = page.version, page.ended
            if await request.is_disconnected():
                return
            for source, latest in page.sources.items():
                if latest.count != counts[source]:
                    counts[source] = latest.count
                    yield _message("record", latest.json())
            for event in page.events_after(number):
                number = event.number
                yield _message("event", msgspec.json.encode(event), number)
            if (now_ended := sum(item.ended is not None for item in page.sources.values())) != ended:
                ended = now_ended
                reasons = {name: item.ended for name, item in page.sources.items() if item.ended is not None}
                yield _message("sources", msgspec.json.encode(reasons))
            if (now_tables := self._run.tables.current()) is not tables:
                tables = now_tables
                yield _message("tables", msgspec.json.encode(self._described_tables()))
            if over or (page.samples and page.samples[-1].at_s != sampled_s):
                sample = page.samples[-1] if page.samples else None
                sampled_s = sample.at_s if sample else -1.0
                yield _message("account", msgspec.json.encode({"account": page.totals(), "sample": sample}))
            if over:
                yield _message("end", msgspec.json.encode(over))
                return
            await asyncio.sleep(_RECORD_GAP_S)

    async def _video(self, request: Request) -> Response:
        wanted = request.path_params["source"]
        names = list(self._page.sources)
        position = names.index(wanted) if wanted in names else _number(wanted)
        if position is None or position >= len(names):
            known = ", ".join(f"{place} ({name})" for place, name in enumerate(names))
            raise _Refused(404, f"expected a source out of {known}, got {wanted!r}")
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return _Stream(self._seats, self._videos[position].parts(), kind)

    async def _tables(self, request: Request) -> Response:  # noqa: ARG002
        return _json({"tables": self._described_tables()})

    def _described_tables(self) -> list[dict[str, Any]]:
        tables = self._run.tables
        return [
            {
                "name": name,
                "made_as": scorer.table.name,
                "count": len(scorer.labels),
                "classes": [" | ".join(item.names) for item in scorer.table.classes[:_SHOWN_CLASSES]],
                "templates": len(scorer.table.templates),
                "content_hash": scorer.table.content_hash,
            }
            for name, scorer in zip(tables.names, tables.current(), strict=True)
        ]

    async def _upload(self, request: Request) -> Response:
        name = self._known_table(request.path_params["name"])
        try:
            with tempfile.TemporaryFile() as file:  # without a name: nothing is left, whatever ends this
                async for chunk in _body(request, _MAX_TABLE):
                    await run_in_threadpool(file.write, chunk)
                file.flush()
                path = Path(f"/proc/self/fd/{file.fileno()}")
                try:
                    await self._replace(name, lambda: PromptTable.load(path))
                except EdgeclipError as error:
                    # The sender knows nothing of our temporary file.
                    raise _Refused(422, str(error).replace(str(path), "the uploaded file")) from error
        except OSError as error:
            raise _Refused(507, f"the table cannot be kept ({error.strerror}): make room for it") from error
        return self._replaced(name)

    async def _replace(self, name: str, make: Callable[[], PromptTable]) -> None:
        """Make a table and use it; one at a time."""
        async with self._change():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._tables_executor, lambda: self._run.tables.replace(name, make()))

    async def _prompts(self, request: Request) -> Response:
        make = self._make_table
        if make is None:
            raise _Refused(501, _NO_EDITOR)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise _Refused(415, 'expected JSON: {"table": "name", "classes": "mug, bottle"}')
        body = b"".join([chunk async for chunk in _body(request, _MAX_PROMPTS)])
        try:
            wanted = decode_json(body, _Prompts, where="what was sent")
        except InputError as error:
            raise _Refused(400, f'expected {{"table": "name", "classes": "mug, bottle"}}: {error}') from error
        name = self._known_table(wanted.table)
        classes = await run_in_threadpool(_class_names, wanted.classes)
        await self._replace(name, lambda: make(name, classes))
        return self._replaced(name)

    async def _stop(self, request: Request) -> Response:  # noqa: ARG002
        self._run.stop()
        return _json({"stopping": True}, 202)

    def _known_table(self, name: str) -> str:
        if name not in self._run.tables.names:
            raise _Refused(404, f"expected a table out of {', '.join(self._run.tables.names)}, got {name!r}")
        return name

    def _change(self) -> asyncio.Lock:
        if self._changing.locked():
            raise _Refused(409, "another table is being made: wait for it and try again")
        return self._changing

    def _replaced(self, name: str) -> Response:
        (described,) = (table for table in self._described_tables() if table["name"] == name)
        return _json(described)


def _class_names(given: str | list[str]) -> str:
    """Class names as one line, separated by commas, of what came from a browser.

    Raises:
        PromptError: no class, an empty name, a duplicate, or the name of a file: whoever builds tables may read classes
            from files, and nobody may have files read from afar.
    """
    lines = given if isinstance(given, list) else given.replace("\n", ",").split(",")
    classes = make_classes([line for line in lines if line.strip()])
    text = ", ".join(" | ".join((item.label, *(name for name in item.names if name != item.label))) for item in classes)
    if "," not in text and (text.endswith((".txt", ".json")) or _exists(text)):
        raise PromptError(f"expected class names, got {text!r}, which is the name of a file: write the names here")
    return text


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than a name can be, or with a null in it
        return False


def _number(text: str) -> int | None:
    """A whole number as it is written in a request; None for anything else, and for more digits than any has."""
    return int(text) if len(text) < 16 and text.isascii() and text.isdigit() else None


async def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces; refused as soon as it is, or says that it is, larger than the limit."""
    announced = _number(request.headers.get("content-length", "0"))
    size = limit + 1 if announced is None else announced
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            yield chunk
    if size > limit:
        raise _Refused(413, f"expected at most {limit / 1024:,.0f} KiB, got more")


async def _file(request: Request, *, content: bytes, kind: str) -> Response:  # noqa: ARG001
    return Response(content, media_type=kind)


async def _refused(request: Request, error: Exception) -> Response:  # noqa: ARG001
    if isinstance(error, _Refused):
        return _json({"error": str(error)}, error.status)
    return _json({"error": str(error)}, 400 if isinstance(error, InputError) else 422)


def _message(kind: str, data: bytes, number: int | None = None) -> bytes:
    identity = b"" if number is None else b"id: %d\n" % number
    return b"event: %s\n%sdata: %s\n\n" % (kind.encode(), identity, data)


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
