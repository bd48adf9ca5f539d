"""Events reach a real HTTP server, signed and in order, through its faults; what does not is counted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
from rich.console import Console

from edgeclip import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime.decision import DecisionOptions
from edgeclip.runtime.sinks import webhook as sink_webhook
from edgeclip.runtime.sinks.base import Sink, SinkThread, close_sinks
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.sinks.make import SinkOptions, make_sinks
from edgeclip.runtime.sinks.terminal import print_summary
from edgeclip.runtime.sinks.webhook import WebhookAddress, WebhookSink
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from tests.sink_runs import event, happens, make_run, pixels, push, record

Answer = int | tuple[int, dict[str, str]]


@dataclass
class Receiver:
    """A server that remembers what it was sent and answers from a list, and then 204."""

    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    hangs: threading.Event | None = None
    url: str = ""

    def events(self) -> list[int]:
        return [json.loads(body)["frame"] for _, _, body in self.requests]

    def deliveries(self) -> list[str]:
        return [headers["X-Edgeclip-Delivery"] for _, headers, _ in self.requests]


@contextmanager
def receiver(answers: list[Answer] | None = None, *, hangs: bool = False, port: int = 0) -> Iterator[Receiver]:
    kept = Receiver(answers or [], hangs=threading.Event() if hangs else None)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.requests.append((self.path, dict(self.headers), body))
            if kept.hangs:
                kept.hangs.wait(30)
                return
            answer = kept.answers.pop(0) if kept.answers else 204
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # a followed redirection would come so

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_port}/hook/s3cret"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2})
    thread.start()
    try:
        yield kept
    finally:
        if kept.hangs:
            kept.hangs.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_webhook, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(sink_webhook, "_LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(sink_webhook, "_FLUSH_S", 2.0)


def run_until(tiny_bundle: Path, sink: Sink, done: Callable[[], bool], *, events: int = 3) -> dict[str, str]:
    """Frames, every tenth with an event, into the sink; close it when ``done``. Returns why sinks failed."""
    run = make_run(tiny_bundle)
    thread = SinkThread(sink, run)
    for index in range(events * 10):
        thread.put(record(index, events=[event(index)] if index % 10 == 0 else []), pixels(index))
    assert happens(done)
    close_sinks([thread], complete=True)
    return run.account.sink_failed


def test_events_and_only_events_are_posted_in_order(tiny_bundle: Path) -> None:
    with receiver() as server:
        failed = run_until(tiny_bundle, WebhookSink(server.url), lambda: len(server.requests) == 3)
    assert failed == {}
    assert server.events() == [0, 10, 20]
    path, headers, body = server.requests[0]
    assert path == "/hook/s3cret"
    assert headers["Content-Type"] == "application/json"
    assert "X-Edgeclip-Signature" not in headers
    assert json.loads(body) == {
        "kind": "enter",
        "label": "cat",
        "frame": 0,
        "time_s": 0.0,
        "start_s": 0.0,
        "score": 0.75,
        "peak": 0.8,
        "source": "yard",
    }


def test_close_delivers_what_is_queued_and_what_left_with_its_source(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle)
    with receiver() as server:
        thread = SinkThread(WebhookSink(server.url), run)
        for index in range(50):
            thread.put(record(index, events=[event(index)]), pixels(index))
        thread.end("yard", [event(50, "leave", end_s=2.0)], "")
        thread.close(complete=True)
    assert server.events() == list(range(51))
    assert run.account.sink_failed == {}


def test_the_body_is_signed_and_credentials_are_sent(tiny_bundle: Path) -> None:
    with receiver() as server:
        url = server.url.replace("http://", "http://me:p%40ss@")
        run_until(tiny_bundle, WebhookSink(url, secret="key"), lambda: len(server.requests) == 3)
    for _, headers, body in server.requests:
        assert headers["X-Edgeclip-Signature"] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
        assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("answer", [500, 503, 408, 429, (503, {"Retry-After": "0"})])
def test_a_passing_fault_is_tried_again_with_the_same_delivery(tiny_bundle: Path, answer: Answer) -> None:
    with receiver([answer, answer]) as server:
        failed = run_until(tiny_bundle, WebhookSink(server.url), lambda: len(server.requests) == 5)
    assert failed == {}
    assert server.events() == [0, 0, 0, 10, 20]
    assert len(set(server.deliveries()[:3])) == 1
    assert len(set(server.deliveries())) == 3


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_a_refusal_for_good_passes_over_that_event_and_is_said(tiny_bundle: Path, status: int) -> None:
    with receiver([status]) as server:
        failed = run_until(tiny_bundle, WebhookSink(server.url), lambda: len(server.requests) == 3)
    assert server.events() == [0, 10, 20]
    assert f"it answered {status}" in failed["webhook"]
    assert "1 events were not delivered" in failed["webhook"]
    assert "s3cret" not in failed["webhook"]


@pytest.mark.usefixtures("_impatient")
def test_a_redirection_is_not_followed(tiny_bundle: Path) -> None:
    with receiver() as other, receiver([(302, {"Location": other.url})]) as server:
        failed = run_until(tiny_bundle, WebhookSink(server.url), lambda: len(server.requests) == 3)
        assert other.requests == []
    assert "302" in failed["webhook"]


@pytest.mark.usefixtures("_impatient")
def test_retry_after_is_waited_for(tiny_bundle: Path) -> None:
    """With own waits of at most 0.2 s, a server that asks for an hour hears nothing more until the end."""
    with receiver([(429, {"Retry-After": "3600"})]) as server:
        failed = run_until(
            tiny_bundle, WebhookSink(server.url), lambda: not happens(lambda: len(server.requests) > 1, 1.5)
        )
        assert server.events() == [0, 0, 10, 20]  # closing tries once more
    assert failed == {}


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("120", 120, 120), ("Fri, 31 Dec 2100 23:59:59 GMT", 1e8, 1e10), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0)],
)
def test_retry_after_is_a_number_or_a_date(header: str, least: float, most: float) -> None:
    asked_s = sink_webhook._retry_after_s(header)
    assert asked_s is not None
    assert least <= asked_s <= most


@pytest.mark.parametrize(
    "header", ["soon", "", "-5", "1e9", "nan", "inf", "²", "Mon, 99 Foo", "Fri, 31 Dec 0001 00:00:00 +2300", None]
)
def test_retry_after_that_cannot_be_read_asks_for_nothing(header: str | None) -> None:
    assert not sink_webhook._retry_after_s(header)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    "header", ["Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:59 -0000", "0", "-1", "now", "9" * 5000]
)
def test_no_retry_after_makes_it_hammer_the_server(tiny_bundle: Path, header: str) -> None:
    """With waits of 0.02 s to 0.2 s, a server hears from it some five times in half a second, whatever it asks for."""
    with receiver([(503, {"Retry-After": header})] * 1000) as server:
        pause = threading.Event()
        run_until(tiny_bundle, WebhookSink(server.url), lambda: not pause.wait(0.5))
        assert 1 <= len(server.requests) <= 15


@pytest.mark.usefixtures("_impatient")
def test_what_a_server_says_is_made_printable_and_short(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "\x1b[31mno\x9b" + "x" * 5000
    monkeypatch.setitem(BaseHTTPRequestHandler.responses, 404, (reason, ""))
    with receiver([404]) as server, caplog.at_level(logging.WARNING, logger="edgeclip"):
        failed = run_until(tiny_bundle, WebhookSink(server.url), lambda: len(server.requests) == 3)
    for said in (failed["webhook"], caplog.text):
        assert "it answered 404 \\x1b[31mno" in said
        assert len(said) < 1000
        assert "\x1b" not in said


@pytest.mark.usefixtures("_impatient")
def test_a_host_that_is_no_name_is_told(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle)
    push(run, [WebhookSink(f"http://{'a' * 70}.lan/x")], [record(0, events=[event(0)])])
    assert "1 events were not delivered" in run.account.sink_failed["webhook"]
    assert "there was no time" not in run.account.sink_failed["webhook"]


@pytest.mark.parametrize("password", ["hun/ter2", "12/hunter2", "hun?ter2", "1?hunter2", "1#hunter2", "h@hun/ter2"])
def test_a_password_that_is_not_escaped_is_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(InputError, match="%2F") as refused:
        WebhookAddress.parse(f"https://me:{password}@h/x")
    assert not re.search("hun|ter2", str(refused.value))


@pytest.mark.usefixtures("_impatient")
def test_an_endpoint_that_hangs_holds_up_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    run = make_run(tiny_bundle)
    records = [record(index, events=[event(index)]) for index in range(2000)]
    with receiver(hangs=True) as server:
        push(run, [WebhookSink(server.url), JsonlSink(tmp_path / "a.jsonl")], records)
        assert len(server.requests) == 1
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2000
    assert run.account.sink_failed.keys() == {"webhook"}
    lost = run.account.sink_dropped["webhook"]  # the thread's queue may overflow too, where this machine is slow
    assert f"{2000 - lost:,} events were not delivered" in run.account.sink_failed["webhook"]


@pytest.mark.usefixtures("_impatient")
def test_an_endpoint_that_dies_and_comes_back_misses_nothing(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle)
    with receiver() as first:
        thread = SinkThread(WebhookSink(first.url), run)
        thread.put(record(0, events=[event(0)]), pixels(0))
        assert happens(lambda: first.events() == [0])
        port = int(first.url.split(":")[2].partition("/")[0])
    for index in range(1, 20):
        thread.put(record(index, events=[event(index)]), pixels(index))
    with receiver(port=port) as second:
        assert happens(lambda: second.events() == list(range(1, 20)))
        thread.close(complete=True)
    assert run.account.sink_failed == {}


@pytest.mark.usefixtures("_impatient")
def test_an_endpoint_that_was_never_there_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with receiver() as gone:
        url = gone.url
    run = make_run(tiny_bundle)
    records = [record(index, events=[event(index)]) for index in range(30)]
    push(run, [WebhookSink(url), JsonlSink(tmp_path / "a.jsonl")], records)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 30
    assert "30 events were not delivered to http://127.0.0.1" in run.account.sink_failed["webhook"]
    assert "refused" in run.account.sink_failed["webhook"]


@pytest.mark.usefixtures("_impatient")
def test_memory_is_bounded_and_the_latest_events_are_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_webhook, "_QUEUED", 10)
    with receiver([503] * 10_000) as server:
        run = make_run(tiny_bundle)
        thread = SinkThread(WebhookSink(server.url), run)
        for index in range(100):
            thread.put(record(index, events=[event(index)]), pixels(index))
        assert happens(lambda: len(server.requests) > 1 and server.events()[-1] >= 90)
        server.answers.clear()
        assert happens(lambda: server.events()[-10:] == list(range(90, 100)))
        thread.close(complete=True)
    assert "90 events were not delivered" in run.account.sink_failed["webhook"]


@pytest.mark.usefixtures("_impatient")
def test_a_run_with_sinks_that_hang_and_are_dead_is_complete(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    """The whole loop over a real video, with a webhook that hangs, a broker that is absent and a folder that goes."""
    bundle = Bundle.open(tiny_bundle)
    doomed = tmp_path / "doomed" / "b.csv"
    decision = DecisionOptions(enter=0.01, leave=0.0, dwell_s=0.0)
    with receiver() as absent:
        nobody = absent.url.partition("//")[2].partition("/")[0]
    with receiver(hangs=True) as server:
        sinks = make_sinks(
            SinkOptions(
                jsonl=tmp_path / "a.jsonl",
                csv=doomed,
                overlay=tmp_path / "c.mp4",
                mqtt=f"mqtt://{nobody}/x",
                prometheus="0",
                webhook=server.url,
            )
        )
        stream = Stream(bundle, [open_source(str(video))], [bundle.table()], StreamOptions(decision=decision), sinks)
        frames = iter(stream)
        first = next(frames)
        shutil.rmtree(doomed.parent)
        assert [first.frame, *(labelled.frame for labelled in frames)] == list(range(40))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(40))
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
    assert stream.account.sink_failed.keys() == {"csv", "mqtt", "webhook"}
    assert not stream.account.sink_dropped
    console = Console(width=400)
    with console.capture() as capture:
        print_summary(stream.account, console)
    assert "csv failed: cannot write" in capture.get()
    assert "webhook failed:" in capture.get()
    assert "mqtt failed: no connection to" in capture.get()
