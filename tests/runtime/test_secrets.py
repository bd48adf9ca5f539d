"""A secret in an address, a pipeline or a command is in nothing that anybody is told or that is written."""

from __future__ import annotations

import base64
import itertools
import logging
import threading
import traceback
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgeclip
from edgeclip.cli import app
from edgeclip.errors import EdgeclipError
from edgeclip.runtime.decision import DecisionOptions
from edgeclip.runtime.sinks.files import CsvSink, JsonlSink
from edgeclip.runtime.sinks.make import SinkOptions
from edgeclip.runtime.sinks.mqtt import MqttAddress, MqttSink
from edgeclip.runtime.sinks.prometheus import PrometheusSink
from edgeclip.runtime.sinks.webhook import WebhookAddress, WebhookSink
from edgeclip.runtime.sources.address import short_name, without_password
from edgeclip.runtime.sources.open import SourceOptions, open_source
from edgeclip.runtime.stream import StreamOptions
from tests.mqtt_broker import Broker, listening
from tests.servers import file_server

# Halves, as a separator in a password may show one and hide the other. Neither is in any other word here.
FIRST, SECOND = "zq7k", "wx9j"
PASSWORDS = [
    f"{FIRST}{between}{SECOND}" for between in ("", "/", "?", "#", "@", ":", "@/", "/@", "&", "=", "%", " ", "!")
]


def is_told(text: str) -> bool:
    """Whether any part of a secret is in a text."""
    return FIRST in text or SECOND in text


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ADDRESSES = [
    *(f"{scheme}://admin:{password}@cam:554/live/1" for scheme in ("rtsp", "HTTP") for password in PASSWORDS),
    *(f"rtsp://{password}@cam/live" for password in PASSWORDS),
    *(f"http://cam/snap.cgi?user=admin&{name}={FIRST}" for name in ("pwd", "password", "token", "key", "auth", "sig")),
    *(f"http://cam/snap.cgi?pwd={FIRST}{between}{SECOND}&channel=1" for between in "&#?/=;"),
    *(f"http://cam/x?{query}" for query in (FIRST, f"{FIRST}==", f"%70wd={FIRST}", f"p[0]={FIRST}", f"a=1&b={FIRST}")),
    *(f"http://cam/x;{name}={FIRST}" for name in ("jsessionid", "pwd")),
    f"rtsp://cam:554/user=admin_password={FIRST}_channel=1_stream=0.sdp",
    f"rtsp://cam:554/user=admin&password={FIRST}&channel=1&stream=0.sdp?",
    f"rtsp://admin:{FIRST}@cam/live#access_token={SECOND}",
    f"http://cam/get?mail=a@b&code={FIRST}",
]
TEXTS = [
    *(
        f"{start}admin:{FIRST}{between}{SECOND}@cam/1"
        for start in ("", "rtsp:", "rtsp:/", "rtsp//")
        for between in "@:/"
    ),
    f"cam/snap.cgi?user=admin&pwd={FIRST}",
    f"rtspsrc location=rtsp://admin:{FIRST}@cam/1 user-pw={SECOND} ! decodebin",
    f'rtspsrc location="rtsp://admin:{FIRST} {SECOND}@cam/1" latency=0 ! decodebin',
    f'gst:rtspsrc user-pw = "{FIRST} \\" ! {SECOND}" location=rtsp://cam/1 ! decodebin',
    f"gst:rtspsrc location=rtsp://cam/1?token={FIRST} proxy=http://me:{SECOND}@proxy proxy-pw={SECOND} ! decodebin",
    f'gst:souphttpsrc location=http://cam extra-headers="h,Authorization=(string)Basic\\ {FIRST}" ! decodebin',
    f"gst:srtsrc uri=srt://cam:9?mode=caller&passphrase={FIRST} ! decodebin",
    f"gst:awss3src access-key={FIRST} secret-access-key={SECOND} session-token={FIRST} ! decodebin",
    f"gst:rtspsrc user-pw='{FIRST} {SECOND}",
    f"pipe:curl -u me:{FIRST} https://host/{{0..9}}.tar",
    f"pipe:curl -H 'Authorization: Bearer {FIRST}' --oauth2-bearer {SECOND} host/x.tar",
    f"pipe:wget --password={FIRST} https://me:{SECOND}@host/x.tar?sig={FIRST}",
]


@pytest.mark.parametrize("text", [*ADDRESSES, *TEXTS])
def test_no_part_of_a_secret_is_left(text: str) -> None:
    assert not is_told(without_password(text))


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_part_of_a_secret_is_in_a_name(address: str) -> None:
    assert not is_told(short_name(address))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:pass@cam:554/live?channel=1&subtype=0#transport=udp", "rtsp://cam:554/live?channel=1&subtype=0#transport=udp"),
        ("http://cam/v.cgi?user=me&pwd=hidden&channel=1", "http://cam/v.cgi?user=***&pwd=***&channel=1"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://authserver:8554/key", "http://authserver:8554/key"),
        ("rtspsrc location=rtsp://me:p@cam/1 latency=0 ! x", "rtspsrc location=rtsp://cam/1 latency=0 ! x"),
        ("videotestsrc pattern=ball ! x/x-raw,width=64 ! x", "videotestsrc pattern=ball ! x/x-raw,width=64 ! x"),
        ("pipe:cat a.tar | gunzip -c", "pipe:cat a.tar | gunzip -c"),
        ("/data/user=3/cam:1@2x.mp4", "/data/user=3/cam:1@2x.mp4"),
        ("0?width=640&fps=30", "0?width=640&fps=30"),
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


def opened(text: str) -> str:
    """All that a program would show of a source that cannot be opened, with its traceback."""
    try:
        open_source(text, options=SourceOptions(open_timeout_s=1.0)).close()
    except EdgeclipError as error:
        return f"{error}\n{''.join(traceback.format_exception(error))}"
    raise AssertionError(text)


@pytest.mark.parametrize(
    "text", [*(text.replace("cam", "127.0.0.1:9", 1).replace(":9:554", ":9") for text in ADDRESSES), *TEXTS[:-3]]
)
def test_an_address_that_cannot_be_opened_is_named_without_its_secret(text: str) -> None:
    assert not is_told(opened(text))


@pytest.mark.parametrize("password", [f"{FIRST}{between}{SECOND}" for between in "/?#@:"])
def test_how_to_escape_a_password_is_said(password: str) -> None:
    assert "%2F" in opened(f"rtsp://admin:{password}@127.0.0.1:9/x")
    assert "%2F" not in opened("rtsp://admin:plain@127.0.0.1:9/x")


def test_a_password_that_is_escaped_as_said_reaches_the_server(video: Path) -> None:
    password = "a/b?c#d@e:f%25g h+"
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            if not self.headers["Authorization"]:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = video.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        address = f"http://admin:{urllib.parse.quote(password, '')}@127.0.0.1:{port}/pan.mp4"
        with open_source(address) as source:
            assert source.name == f"127.0.0.1:{port}/pan.mp4"
    assert asked[-1] == "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()


def test_an_option_that_is_not_known_is_named_where_it_can_be_no_password() -> None:
    assert "'transprt'" in opened("rtsp://127.0.0.1:9/x#transprt=tcp")
    assert not is_told(opened(f"rtsp://127.0.0.1:9/x?pwd=a#{FIRST}=tcp"))


def test_options_and_addresses_of_sinks_have_no_secret_in_their_text() -> None:
    mqtt, webhook = f"mqtt://me:{FIRST}@h/x", f"https://me:{SECOND}@h/{FIRST}?token={SECOND}"
    shown = [SinkOptions(mqtt=mqtt, webhook=webhook), MqttAddress.parse(mqtt), WebhookAddress.parse(webhook)]
    for each in shown:
        assert not is_told(f"{each} {each!r}")


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def camera(video: Path) -> Iterator[str]:
    """Where a video is to be had, with a user, a password and a token."""
    with file_server(video.parent) as address:
        host = address.removeprefix("http://")
        yield f"http://admin:{FIRST}@{SECOND}@{host}/{video.name}?channel=1&pwd={FIRST}&token={SECOND}"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[bytes]]]:
    """A webhook that refuses everything, so that it is told of, and what it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(400)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        yield f"http://me:{FIRST}@127.0.0.1:{port}/{SECOND}?token={FIRST}", bodies


def files_below(folder: Path) -> str:
    """All that is in a folder's files, and their names."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert found
    return "\n".join(f"{path.relative_to(folder)}\n{path.read_bytes().decode('latin-1')}" for path in found)


def test_label_tells_no_secret_to_anybody(
    tiny_bundle: Path,
    camera: str,
    hook: tuple[str, list[bytes]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(tmp_path)
    broker.start()
    out = tmp_path / "out"
    url, bodies = hook
    try:
        with listening(broker.port) as heard, caplog.at_level(logging.DEBUG):
            done = CliRunner().invoke(
                app,
                [
                    *("label", str(tiny_bundle), camera, camera, "--limit", "20", "--enter", "0.01", "--dwell", "0"),
                    *("--jsonl", str(out / "a.jsonl"), "--csv", str(out / "a.csv"), "--overlay", str(out / "a.mp4")),
                    *("--mqtt", f"mqtt://me:{FIRST}%2F{SECOND}@127.0.0.1:{broker.port}/cams", "--webhook", url),
                ],
            )
    finally:
        broker.kill()
    assert done.exit_code == 1, done.output  # the hook refuses what it gets
    assert bodies
    assert len(heard.messages) > 4
    said = [done.output, caplog.text, files_below(out), *(body.decode() for body in bodies)]
    said += [f"{topic} {payload.decode()}" for topic, payload, _ in heard.messages]
    assert not [text for text in said if is_told(text)]
    assert "pan.mp4 2" in files_below(out)  # two of one name


def test_the_page_and_the_metrics_show_no_secret(tiny_bundle: Path, camera: str, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from edgeclip.runtime.page.sink import WebSink

    metrics, page = PrometheusSink("0"), WebSink("127.0.0.1", 0)
    sinks = [metrics, page, JsonlSink(tmp_path / "a.jsonl"), CsvSink(tmp_path / "a.csv")]
    sinks += [MqttSink(f"mqtt://me:{FIRST}@127.0.0.1:9/x"), WebhookSink(f"http://me:{FIRST}@127.0.0.1:9/{SECOND}")]
    options = StreamOptions(decision=DecisionOptions(enter=0.01, dwell_s=0.0))
    with (
        edgeclip.open(tiny_bundle) as labeller,
        labeller.stream(camera, camera, sinks=sinks, options=options) as stream,
    ):
        frames = iter(stream)
        list(itertools.islice(frames, 30))
        places = [page.url, f"{page.url}api/state", f"{page.url}api/tables", f"http://127.0.0.1:{metrics.port}/metrics"]
        shown = [urllib.request.urlopen(place, timeout=10).read().decode() for place in places]
        list(frames)
    assert any("pan.mp4" in text for text in shown)
    shown += [str(stream.account.sink_failed), repr(stream.account), files_below(tmp_path)]
    assert stream.account.sink_failed.keys() == {"mqtt", "webhook"}
    assert not [text for text in shown if is_told(text)]


def test_calibration_images_and_drift_write_no_secret(
    camera: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("jinja2")
    output = tmp_path / "calib"
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(
            app, ["calibrate", "images", camera, "--output", str(output), "--count", "4", "--every", "0.5"]
        )
    assert done.exit_code == 0, done.output
    assert "pan.mp4" in files_below(output)
    assert not is_told(done.output + caplog.text + files_below(output))
