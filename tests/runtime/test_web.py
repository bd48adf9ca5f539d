"""The live page: a real server, a real bundle and a real browser; who may ask what, and what they get."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgeclip import Bundle, PromptTable
from edgeclip.errors import InputError, PromptError
from edgeclip.key_cache import KeyCache
from edgeclip.prompts import make_classes, unit_rows
from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.records import Event, LabelledFrame, Scored, View
from edgeclip.runtime.regions import Region, parse_tiles
from edgeclip.runtime.sinks.base import Run, SinkThread
from edgeclip.runtime.sources.base import Frame, Source
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.stream import Stream
from edgeclip.runtime.tables import TableSet
from tests.chromium import TEXT, Chromium
from tests.conftest import WIDTH, make_table

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from edgeclip.runtime.page.sink import WebSink

TOKEN = "correct horse"


def records(run: Run, count: int = 40) -> Iterator[tuple[LabelledFrame, Frame]]:
    """The frames of the run's sources in turn, with labels of its tables."""
    several = len(run.sources) > 1
    for index, frames in enumerate(zip(*(iter(source) for source in run.sources), strict=False)):
        if index == count:
            return
        for source, frame in zip(run.sources, frames, strict=True):
            name = source.name if several else ""
            tops = [[Scored(label, 0.6 / (place + 1)) for place, label in enumerate(scorer.labels)]
                    for scorer in run.tables.current()]  # fmt: skip
            views = [
                View(table, region, top[0].label, top[0].score, top)
                for table, top in zip(run.tables.names, tops, strict=True)
                for region in [region.name for region in run.regions] or [""]
            ]
            best = tops[0][0]
            events = []
            if index == 3:
                events = [Event("enter", best.label, index, frame.time_s, 0.05, 0.6, 0.61, source=name)]
            if index == 30:
                events = [Event("leave", best.label, index, frame.time_s, 0.05, 0.1, 0.93, end_s=1.35, source=name)]
            counts = run.account.sources[source.name]
            counts.read += 1
            counts.encoded += 1
            run.account.latency_ms.append(7.0)
            yield (
                LabelledFrame(index, frame.time_s, best.label, best.score, tops[0], 5.0, 7.0, source=name,
                              present=[best.label], events=events, views=views if len(views) > 1 else []),
                frame,
            )  # fmt: skip


class Page:
    """A run with a live page, and ways to ask it."""

    def __init__(
        self,
        bundle: Bundle,
        sources: list[Source],
        sink: WebSink,
        tables: list[PromptTable],
        regions: tuple[Region, ...],
    ) -> None:
        self.stopped = threading.Event()
        account = Account(sources={source.name: SourceCount() for source in sources})
        self.run = Run(bundle, tuple(sources), TableSet(bundle, tables), account, self.stopped.set, regions)
        self.sink = sink
        self.thread = SinkThread(sink, self.run)
        self.address = urlsplit(sink.url)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=10)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body (decoded where it is JSON) and headers of the answer."""
        connection = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        kind = response.getheader("content-type") or ""
        return (
            response.status,
            json.loads(data) if "json" in kind else data,
            {name.lower(): value for name, value in response.getheaders()},
        )

    def prompts(self, **content: Any) -> tuple[int, Any]:
        status, body, _ = self.ask(
            "POST", "/api/prompts", json.dumps(content).encode(), Content_Type="application/json"
        )
        return status, body


@pytest.fixture
def serve(tiny_bundle: Path, video: Path) -> Iterator[Callable[..., Page]]:
    """Starts a page over the tiny bundle; ``names`` are its sources, all of the same video."""
    bundle = Bundle.open(tiny_bundle)
    pages: list[Page] = []

    def start(
        names: tuple[str, ...] = ("yard",),
        tables: tuple[str, ...] = ("things",),
        regions: tuple[Region, ...] = (),
        **options: Any,
    ) -> Page:
        sources: list[Source] = []
        for name in names:
            source = open_source(str(video))
            source.name = name
            sources.append(source)
        made = [make_table(name, model_id=bundle.manifest.model.id, seed=seed) for seed, name in enumerate(tables)]
        pages.append(Page(bundle, sources, WebSink(port=0, **options), made, regions))
        return pages[-1]

    yield start
    for page in pages:
        page.thread.close(complete=True)
        assert not page.run.account.sink_failed
        for source in page.run.sources:
            source.close()


def table_bytes(bundle: Bundle, folder: Path, classes: list[str], *, width: int = WIDTH, model: str = "") -> bytes:
    rows = np.random.default_rng(1).standard_normal((len(classes), width)).astype(np.float32)
    table = PromptTable("new", make_classes(classes), unit_rows(rows), ("{}",), model or bundle.manifest.model.id)
    table.save(folder / "new.safetensors")
    return (folder / "new.safetensors").read_bytes()


class Messages:
    """The server-sent events of a page, one at a time."""

    def __init__(self, page: Page, after: int = 0) -> None:
        self._connection = page.connect()
        self._connection.request("GET", f"/api/events?after={after}")
        self._response = self._connection.getresponse()
        assert self._response.status == 200

    def until(self, kind: str) -> list[tuple[str, Any]]:
        """Messages up to the first of that kind."""
        got: list[tuple[str, Any]] = []
        name = ""
        while not got or got[-1][0] != kind:
            line = self._response.readline().decode()
            assert line, f"the stream ended before a message {kind!r}; got {[item[0] for item in got]}"
            if line.startswith("event: "):
                name = line.removeprefix("event: ").strip()
            elif line.startswith("data: "):
                got.append((name, json.loads(line.removeprefix("data: "))))
        return got

    def close(self) -> None:
        self._connection.close()


def play(page: Page, count: int = 40) -> None:
    """Label frames on this thread: behind a queue, a machine that is busy would drop some."""
    for labelled, frame in records(page.run, count):
        page.sink.write(labelled, frame)


def test_state_says_what_runs_and_what_was_seen(serve: Callable[..., Page]) -> None:
    page = serve()
    status, state, headers = page.ask("GET", "/api/state")
    assert (status, state["latest"], state["ended"]) == (200, [], None)
    assert headers["content-security-policy"].startswith("default-src 'self'")
    play(page)
    state = page.ask("GET", "/api/state")[1]
    assert state["sources"][0] == {
        "name": "yard", "live": False, "fps": 20.0, "total": 40, "video": "/video/0", "ended": None,
    }  # fmt: skip
    assert state["tables"][0]["classes"] == ["cat", "rocket", "cup | mug"]
    assert state["account"]["total"]["encoded"] == 40
    assert state["account"]["p50_ms"] == 7.0
    assert state["latest"][0]["record"]["frame"] == 39
    assert [event["event"]["kind"] for event in state["events"]] == ["enter", "leave"]
    assert page.ask("GET", "/api/tables")[1]["tables"] == state["tables"]


def test_every_event_reaches_a_viewer_and_the_end_comes_last(serve: Callable[..., Page]) -> None:
    page = serve()
    messages = Messages(page)
    play(page)
    page.thread.end("yard", [], "")
    page.thread.close(complete=True)
    got = messages.until("end")
    messages.close()
    assert [data["event"]["kind"] for kind, data in got if kind == "event"] == ["enter", "leave"]
    latest = [data["record"]["frame"] for kind, data in got if kind == "record"]
    assert latest[-1] == 39
    assert [data for kind, data in got if kind == "account"][-1]["account"]["total"]["read"] == 40
    assert got[-1][1] == {"complete": True, "interrupted": False}


def test_a_viewer_that_comes_back_gets_the_events_it_missed(serve: Callable[..., Page]) -> None:
    page = serve()
    play(page)
    messages = Messages(page, after=1)
    got = messages.until("event")
    messages.close()
    assert got[-1][1]["number"] == 2


def read_jpeg(response: http.client.HTTPResponse) -> bytes:
    """The next picture of a multipart stream."""
    size = 0
    while (line := response.readline()).strip() or not size:
        assert line, "the stream ended"
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    return response.read(size)


def test_video_is_jpeg_of_the_latest_frame_for_every_viewer(serve: Callable[..., Page]) -> None:
    import cv2

    page = serve(("front door", "yard"))
    connections = [page.connect(), page.connect()]
    for connection, path in zip(connections, ("/video/1", "/video/yard"), strict=True):
        connection.request("GET", path)
    play(page)
    for connection in connections:
        response = connection.getresponse()
        assert response.getheader("content-type", "").startswith("multipart/x-mixed-replace")
        jpeg = read_jpeg(response)
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (240, 320, 3)
        connection.close()
    status, body, _ = page.ask("GET", "/video/cellar")
    assert status == 404
    assert "front door" in body["error"]


def test_no_picture_is_made_while_nobody_watches(serve: Callable[..., Page]) -> None:
    page = serve()
    play(page)
    page.ask("GET", "/api/state")
    assert page.sink._executor._threads == set()


def test_a_slow_viewer_skips_records_and_holds_up_nobody(serve: Callable[..., Page]) -> None:
    page = serve()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", page.address.port))
    slow.settimeout(10)
    slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    quick = Messages(page)
    large = [Scored(f"class {index} " + "x" * 20_000, 0.1) for index in range(10)]
    count = 20  # 200 kB each: more than what lies between a server and a socket that nobody reads
    for index in range(count):
        page.sink.write(LabelledFrame(index, 0.0, "cat", 0.5, large, 1.0), None)
        while quick.until("record")[-1][1]["record"]["frame"] != index:
            pass
    quick.close()
    received = b""
    last = b'"frame":%d' % (count - 1)
    while last not in received:
        received += slow.recv(1 << 20)
    slow.close()
    assert received.count(b"event: record") < count


def test_too_many_viewers_are_told_so(serve: Callable[..., Page]) -> None:
    page = serve()
    viewers = [Messages(page) for _ in range(32)]
    status, body, _ = page.ask("GET", "/api/events")
    assert status == 503
    assert "close another page" in body["error"]
    for viewer in viewers:
        viewer.close()


def test_a_table_is_swapped_under_the_running_stream(serve: Callable[..., Page], tmp_path: Path) -> None:
    page = serve()
    messages = Messages(page)
    messages.until("sources")
    data = table_bytes(page.run.bundle, tmp_path, ["dog", "boat"])
    status, body, _ = page.ask("PUT", "/api/tables/things", data)
    assert (status, body["count"], body["name"]) == (200, 2, "things")
    assert page.run.tables.current()[0].labels == ("dog", "boat")
    assert messages.until("tables")[-1][1][0]["classes"] == ["dog", "boat"]
    messages.close()


def test_a_bad_table_is_refused_and_the_old_one_stays(serve: Callable[..., Page], tmp_path: Path) -> None:
    page = serve()
    bundle, before = page.run.bundle, page.run.tables.current()
    refused = {
        "not a readable .safetensors file": page.ask("PUT", "/api/tables/things", b"nonsense"),
        "width": page.ask("PUT", "/api/tables/things", table_bytes(bundle, tmp_path, ["dog"], width=8)),
        "model": page.ask("PUT", "/api/tables/things", table_bytes(bundle, tmp_path, ["dog"], model="other")),
    }
    keys = KeyCache(unit_rows(np.ones((1, WIDTH), np.float32)), np.zeros(1, np.int64), 1.0, 1.0)
    object.__setattr__(keys, "alpha", 1e308)  # finite, and no score of it is
    hostile = dataclasses.replace(before[0].table, cache=keys)
    hostile.save(tmp_path / "hostile.safetensors")
    refused["alpha"] = page.ask("PUT", "/api/tables/things", (tmp_path / "hostile.safetensors").read_bytes())
    for sentence, (status, body, _) in refused.items():
        assert status == 422
        assert sentence in body["error"]
        assert "/edgeclip-" not in body["error"]
    assert page.ask("PUT", "/api/tables/nothing", b"x")[0] == 404
    connection = page.connect()
    connection.request("PUT", "/api/tables/things", headers={"Content-Length": str(10**12)})
    assert connection.getresponse().status == 413
    connection.close()
    assert page.run.tables.current() is before


def test_class_names_become_a_table_where_there_is_a_text_encoder(serve: Callable[..., Page], tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def make(name: str, classes: str) -> PromptTable:
        asked.append((name, classes))
        if "unicorn" in classes:
            raise PromptError("expected animals that exist, got 'unicorn': remove it")
        made = make_classes(classes.split(","))
        rows = np.random.default_rng(2).standard_normal((len(made), WIDTH)).astype(np.float32)
        return PromptTable(name, made, unit_rows(rows), ("{}",), page.run.bundle.manifest.model.id)

    page = serve(make_table=make)
    status, body = page.prompts(table="things", classes=["mug | cup", "", "door"])
    assert (status, body["classes"]) == (200, ["mug | cup", "door"])
    assert asked == [("things", "mug | cup, door")]
    assert page.run.tables.current()[0].labels == ("mug", "door")
    assert page.prompts(table="things", classes="one\ntwo, three")[1]["count"] == 3
    secret = tmp_path / "secret"
    secret.write_text("password")
    os.mkfifo(tmp_path / "pipe")
    for status, content, sentence in (
        (400, {"table": "things", "classes": "unicorn"}, "remove it"),
        (400, {"table": "things", "classes": "cat, cat"}, "twice"),
        (400, {"table": "things", "classes": " "}, "at least one class"),
        (400, {"table": "things", "classes": str(secret)}, "name of a file"),
        (400, {"table": "things", "classes": str(tmp_path / "pipe")}, "name of a file"),
        (400, {"table": "things"}, "classes"),
        (404, {"table": "none", "classes": "cat"}, "things"),
    ):
        got, body = page.prompts(**content)
        assert got == status
        assert sentence in body["error"]
    assert page.ask("POST", "/api/prompts", b"table=things", Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert page.run.tables.current()[0].labels == ("one", "two", "three")


def test_without_a_text_encoder_the_editor_says_why_it_is_off(serve: Callable[..., Page]) -> None:
    page = serve()
    status, body = page.prompts(table="things", classes="cat")
    assert status == 501
    assert "edgeclip[export]" in body["error"]
    assert page.ask("GET", "/api/state")[1]["editor"] == {"enabled": False, "reason": body["error"]}


def test_the_run_is_stopped_from_the_page_only_by_post(serve: Callable[..., Page]) -> None:
    page = serve()
    assert page.ask("GET", "/api/stop")[0] == 405
    assert not page.stopped.is_set()
    assert page.ask("POST", "/api/stop")[0] == 202
    assert page.stopped.is_set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec_Fetch_Site": "same-origin"}, 200),
    ],
)
def test_on_loopback_other_sites_get_nothing(serve: Callable[..., Page], headers: dict[str, str], status: int) -> None:
    page = serve()
    assert page.ask("GET", "/api/state", **headers)[0] == status
    assert page.ask("POST", "/api/stop", **headers)[0] == (202 if status == 200 else 403)


def test_a_token_opens_the_page_by_header_query_or_cookie(serve: Callable[..., Page]) -> None:
    page = serve(token=TOKEN)
    quoted = TOKEN.replace(" ", "%20")
    assert page.sink.url.endswith(f"?token={quoted}")
    for path in ("/api/state", "/api/events", "/video/0", "/app.js"):
        status, body, headers = page.ask("GET", path)
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"
    status, body, _ = page.ask("GET", "/?token=wrong")
    assert status == 401
    assert b"needs its token" in body
    assert page.ask("GET", "/api/state", Authorization=f"Bearer {TOKEN}x")[0] == 401
    assert page.ask("GET", "/api/state", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert page.ask("GET", f"/api/state?token={quoted}")[0] == 200
    status, _, headers = page.ask("GET", f"/?token={quoted}&view=1")
    assert (status, headers["location"]) == (303, "/?view=1")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    name, value = cookie.partition(";")[0].split("=", 1)
    assert page.ask("GET", "/api/state", Cookie=f"{name}={value}")[0] == 200
    for wrong in (
        f"{name}=x",
        f"{name}=",
        f"{name}=None",
        f"{name}={value[:-1]}",
        f"x={value}",
        f"{name}x={value}",
        name,
    ):
        assert page.ask("GET", "/api/state", Cookie=wrong)[0] == 401, wrong
        assert page.ask("POST", "/api/stop", Cookie=wrong)[0] == 401, wrong
    for wrong in ("?token=", "?token", f"?Token={quoted}", f"?token=x&token={quoted}", f"?token={quoted}x"):
        assert page.ask("GET", f"/api/state{wrong}")[0] == 401, wrong
    for wrong in ("Bearer", "Bearer ", f"Basic {TOKEN}", "Bearer None"):
        assert page.ask("GET", "/api/state", Authorization=wrong)[0] == 401, wrong
    assert page.ask("POST", "/api/stop", Cookie=cookie.partition(";")[0], Origin="http://evil.example")[0] == 403


def test_beyond_loopback_a_token_is_made(serve: Callable[..., Page]) -> None:
    page = serve(host="0.0.0.0")
    token = page.sink.url.partition("?token=")[2]
    assert len(token) >= 32
    assert page.ask("GET", "/api/state")[0] == 401
    assert page.ask("GET", "/api/state", Host="camera.local", Authorization=f"Bearer {token}")[0] == 200


def raw_answer(page: Page, request: bytes) -> int:
    """The status of the answer to bytes that no library would send."""
    with socket.create_connection(("127.0.0.1", page.address.port or 0), timeout=10) as connection:
        connection.sendall(request)
        return int(connection.makefile("rb").readline().split()[1])


LONG = b"9" * 5000
PUT = b"PUT /api/tables/things HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[::1\r\n\r\n", {400}),
        (b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[x]y]\r\n\r\n", {400}),
        (b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nOrigin: http://\xe2\x84\x80:80\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nOrigin: " + LONG + b"\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\nHost: [::1\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\nHost: " + LONG + b"\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400, 403}),
        (b"GET /api/state HTTP/1.1\r\n\r\n", {400}),
        (b"GET /video/" + LONG + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /video/%D9%A3 HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /video/%C2%B2 HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /video/%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /api/events?after=" + LONG + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {200}),
        (b"GET /api/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: " + LONG + b"\r\n\r\n", {200}),
        (PUT + b"Content-Length: " + LONG + b"\r\n\r\n", {400, 413}),
        (PUT + b"Content-Length: 99999999999999999999\r\n\r\n", {400, 413}),
        (PUT + b"Content-Length: -1\r\n\r\n", {400}),
        (PUT + b"Content-Length: \xd9\xa3\r\n\r\n", {400}),
        (PUT + b"Transfer-Encoding: chunked\r\n\r\n" + LONG + b"\r\n", {400, 422}),
        (PUT + b"Cookie: " + b"=;" * 1000 + b"\r\nContent-Length: 0\r\n\r\n", {422}),
    ],
)  # fmt: skip
def test_garbage_in_a_request_is_the_senders_fault(
    serve: Callable[..., Page], request_: bytes, statuses: set[int]
) -> None:
    page = serve()
    assert raw_answer(page, request_) in statuses
    assert page.ask("GET", "/api/state")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"table": ' * 10_000,
        b'{"table": "things", "classes": ["\\ud800"]}',
        b'{"table": "\\ud800", "classes": "cat"}',
        b'{"table": "things", "classes": null}',
        b'{"table": "things", "classes": 1e999}',
        b'{"table": "things", "classes": "' + b"a" * 500 + b'.txt"}',
        b"\xff\xfe",
        b"",
    ],
)
def test_garbage_in_a_body_is_the_senders_fault(serve: Callable[..., Page], body: bytes) -> None:
    page = serve(make_table=lambda *_: pytest.fail("nothing is to be made of this"))
    before = page.run.tables.current()
    assert page.ask("POST", "/api/prompts", body, Content_Type="application/json")[0] == 400
    assert page.run.tables.current() is before


def test_a_long_name_is_no_file(serve: Callable[..., Page]) -> None:
    def make(name: str, classes: str) -> PromptTable:
        raise PromptError(f"asked for {len(classes)}")

    page = serve(make_table=make)
    assert page.prompts(table="things", classes="a" * 500) == (400, {"error": "asked for 500"})


@pytest.mark.parametrize("headers", [b"", b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n"], ids=["none", "half"])
def test_connections_that_ask_nothing_lock_nobody_out(serve: Callable[..., Page], headers: bytes) -> None:
    page = serve(token=TOKEN)
    asked = {"Authorization": f"Bearer {TOKEN}"}
    viewer = page.connect()
    viewer.request("GET", "/api/events", headers=asked)
    assert viewer.getresponse().status == 200
    held = []
    for _ in range(200):
        held.append(socket.create_connection(("127.0.0.1", page.address.port or 0), timeout=10))
        held[-1].sendall(headers)
    assert page.ask("GET", "/api/state", **asked)[0] == 200
    assert page.ask("GET", "/api/state")[0] == 401
    assert viewer.sock is not None  # who has asked keeps the place
    viewer.sock.settimeout(5)
    play(page, 1)
    assert viewer.sock.recv(1)
    for connection in held:
        connection.close()


def test_an_upload_that_is_cut_leaves_nothing(
    serve: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    page = serve()
    with socket.create_connection(("127.0.0.1", page.address.port or 0), timeout=10) as connection:
        connection.sendall(PUT + b"Content-Length: 1000000\r\n\r\n" + b"x" * 300_000)
        assert page.ask("GET", "/api/state")[0] == 200
        assert not list(room.iterdir())  # nor would a process that is killed now leave anything
    assert page.ask("GET", "/api/state")[0] == 200
    assert not list(room.iterdir())


WHILE_A_TABLE_IS_MADE = """
import http.client, sys, threading, time
from pathlib import Path
import tests.runtime.test_web as web
begun = threading.Event()
def make(name, classes):
    begun.set()
    time.sleep(1.5)
    print("made", flush=True)
    raise web.PromptError("nothing")
bundle = web.Bundle.open(sys.argv[1])
source = web.open_source(sys.argv[2])
table = web.make_table("things", model_id=bundle.manifest.model.id)
page = web.Page(bundle, [source], web.WebSink(port=0, make_table=make), [table], ())
threading.Thread(target=page.prompts, kwargs={"table": "things", "classes": "cat"}, daemon=True).start()
begun.wait(10)
page.thread.close(complete=True, timeout_s=0.1)
print("over", flush=True)
"""


def test_a_table_under_way_is_ended_before_the_interpreter_is(tiny_bundle: Path, video: Path) -> None:
    command = [sys.executable, "-c", WHILE_A_TABLE_IS_MADE, str(tiny_bundle), str(video)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["over", "made"])


class _Waits:
    """A bundle whose text encoder takes long, a batch at a time."""

    has_text_encoder = True

    def __init__(self) -> None:
        self.batches = 0

    def encode_table(self, *_: Any, progress: Callable[[int, int], None]) -> PromptTable:
        while True:
            self.batches += 1
            progress(self.batches, 1000)


def test_no_batch_of_prompts_is_begun_once_the_page_closes() -> None:
    bundle = _Waits()
    page = WebSink.at("127.0.0.1:0", bundle=bundle)  # type: ignore[arg-type]
    page._closing.set()
    assert page._make_table
    with pytest.raises(InputError, match="over"):
        page._make_table("things", "cat")
    assert bundle.batches == 1


@pytest.mark.parametrize(
    "address", ["host:" + "9" * 5000, "host:\u0663", "host:-1", "host:70000", "[::1", ":80", "a" * 70 + ":0"]
)
def test_an_address_that_is_none_is_refused(address: str, serve: Callable[..., Page]) -> None:
    run = serve().run
    with pytest.raises(InputError):
        WebSink.at(address).open(run)


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InputError, match="at least 8"):
        WebSink(token="1234")


def test_a_port_that_is_taken_is_said_at_once(serve: Callable[..., Page], video: Path) -> None:
    page = serve()
    with pytest.raises(InputError, match=f"port {page.address.port} .*choose another port"):
        WebSink(port=page.address.port or 0).open(page.run)


def test_the_port_is_free_again_after_the_run(serve: Callable[..., Page]) -> None:
    page = serve()
    page.thread.close(complete=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", page.address.port or 0), timeout=5)


@contextmanager
def browser(tmp_path: Path) -> Iterator[Chromium]:
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium, which is not installed")
    with Chromium(tmp_path / "profile") as chromium:
        yield chromium


def test_the_page_in_a_browser(serve: Callable[..., Page], tmp_path: Path) -> None:
    page = serve(("front door", "yard"), ("things", "people"))
    with browser(tmp_path) as chromium:
        chromium.open(page.sink.url)
        chromium.wait_for(f"({TEXT}).includes('Waiting for the first frame')")
        play(page)
        chromium.wait_for("document.querySelector('#views')?.innerText.includes('rocket')")
        chromium.wait_for("document.querySelector('#video').naturalWidth === 320")
        chromium.wait_for("document.querySelectorAll('#events tbody tr').length === 2")
        chromium.wait_for("document.querySelector('#counts .total')?.innerText.split(/\\s+/).includes('80')")
        assert chromium.evaluate("document.querySelectorAll('#sources button').length") == 2
        assert chromium.evaluate("document.querySelector('#overlay').innerText").count("cat") == 2
        assert "0.93" in chromium.evaluate("document.querySelector('#events').innerText")
        assert chromium.evaluate("document.querySelector('#timeline').getAttribute('aria-label')").startswith(
            "Scores: "
        )
        assert "no text encoder" in chromium.evaluate("document.querySelector('#editor-off').innerText")
        assert chromium.screenshot(tmp_path / "page.png").stat().st_size > 20_000
        chromium.open(page.sink.url, width=390, height=844, dark=True)
        chromium.wait_for("document.querySelector('#views')?.innerText.includes('rocket')")
        assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
        page.thread.close(complete=True)
        chromium.wait_for("document.querySelector('#status').innerText === 'Stream ended'")
        assert "80 frames read" in chromium.evaluate("document.querySelector('#notice').innerText")


def test_a_stream_is_shown_while_it_runs(tiny_bundle: Path, video: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    sink = WebSink(port=0)
    with Stream(bundle, [open_source(str(video))], [bundle.table()], sinks=[sink]) as stream:
        frames = iter(stream)
        next(frames)
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(sink.url).port or 0, timeout=10)
        connection.request("GET", "/api/events")
        response = connection.getresponse()
        for _ in frames:
            pass
        end = response.read().decode()
        connection.close()
    assert "event: end" in end
    assert '"total":{"read":40,"dropped":0,"gated":0,"encoded":40' in end


def test_classes_are_edited_in_a_browser(serve: Callable[..., Page], tmp_path: Path) -> None:
    def make(name: str, classes: str) -> PromptTable:
        made = make_classes(classes.split(","))
        rows = np.random.default_rng(2).standard_normal((len(made), WIDTH)).astype(np.float32)
        return PromptTable(name, made, unit_rows(rows), ("{}",), page.run.bundle.manifest.model.id)

    page = serve(make_table=make, token=TOKEN)
    with browser(tmp_path) as chromium:
        chromium.open(page.sink.url)
        chromium.wait_for("document.querySelector('#classes')?.value.startsWith('cat')")
        assert "token" not in chromium.evaluate("location.href")
        chromium.evaluate("document.querySelector('#classes').value = 'tram\\nbus | coach'")
        chromium.evaluate("document.querySelector('#apply').click()")
        chromium.wait_for("document.querySelector('#editor-said').innerText.includes('2 classes')")
        assert page.run.tables.current()[0].labels == ("tram", "bus")
        chromium.evaluate("document.querySelector('#classes').value = 'tram\\ntram'")
        chromium.evaluate("document.querySelector('#apply').click()")
        chromium.wait_for("document.querySelector('#editor-said').innerText.includes('twice')")


def test_a_lost_server_is_said_and_found_again(serve: Callable[..., Page], tmp_path: Path, video: Path) -> None:
    page = serve()
    with browser(tmp_path) as chromium:
        chromium.open(page.sink.url)
        chromium.wait_for("document.querySelector('#status')?.dataset.state === 'waiting'")
        play(page)
        chromium.wait_for("document.querySelector('#still').width === 320")
        page.sink._server.force_exit = page.sink._server.should_exit = True  # as if the process were killed
        page.sink._thread.join(10)
        chromium.wait_for("document.querySelector('#status').innerText === 'Connection lost, retrying'")
        back = WebSink(port=page.address.port or 0)
        back.open(page.run)
        chromium.wait_for("document.querySelector('#status').dataset.state === 'waiting'")
        assert chromium.evaluate("document.querySelector('#still').width") == 320  # the last picture stays meanwhile
        back.close(complete=True)


def test_regions_are_drawn_over_the_video_and_chosen_there(serve: Callable[..., Page], tmp_path: Path) -> None:
    edge = Region("edge", ((1.0, 0.3), (1.0, 1.0), (0.82, 1.0)))
    page = serve(regions=(*parse_tiles("3x2")[:5], edge))
    assert page.ask("GET", "/api/state")[1]["regions"][-1] == {
        "name": "edge",
        "polygon": [list(p) for p in edge.polygon],
    }
    with browser(tmp_path) as chromium:
        chromium.open(page.sink.url)
        chromium.wait_for(f"({TEXT}).includes('Waiting for the first frame')")
        play(page)
        chromium.wait_for("document.querySelector('#tags')?.innerText.includes('cat')")
        chromium.wait_for("document.querySelector('#video').naturalWidth === 320")
        assert chromium.evaluate("document.querySelectorAll('#outlines g').length") == 6
        chromium.wait_for("document.querySelector('#regions').style.width !== ''")
        x, y = "tag.left - frame.left - frame.width / 3", "tag.top - frame.top - frame.height / 2"
        assert chromium.evaluate(
            "(() => { const frame = document.querySelector('#regions').getBoundingClientRect(),"
            " tag = document.querySelectorAll('#tags button')[4].getBoundingClientRect();"
            f" return Math.abs({x}) < 5 && Math.abs({y}) < 5; }})()"
        )
        chromium.evaluate("document.querySelectorAll('#tags button')[4].click()")
        chromium.wait_for("document.querySelector('#outlines g.selected') !== null")
        assert chromium.evaluate("document.querySelector('#region').value") == "tile 2,2"
        assert chromium.evaluate("document.querySelectorAll('#views .view').length") == 1
        chromium.screenshot(tmp_path / "page.png")
        middle = "(() => { const box = document.querySelector('#regions').getBoundingClientRect();"
        middle += " document.elementFromPoint(box.left + box.width * 0.97, box.top + box.height * 0.8)"
        chromium.evaluate(middle + ".dispatchEvent(new MouseEvent('click', { bubbles: true })); })()")
        chromium.wait_for("document.querySelector('#region').value === 'edge'")
        chromium.wait_for("document.querySelector('#tags button:last-child[aria-pressed=true]') !== null")
        chromium.evaluate("document.querySelector('#tags button:last-child').focus()")
        for kind in ("keyDown", "keyUp"):
            chromium.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
        chromium.wait_for("document.querySelector('#region').value === ''")
        chromium.open(page.sink.url, width=390, height=844, dark=True)
        chromium.wait_for("document.querySelector('#tags')?.innerText.includes('cat')")
        chromium.wait_for("document.querySelector('#regions').style.width !== ''")
        assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
        chromium.screenshot(tmp_path / "phone.png")
