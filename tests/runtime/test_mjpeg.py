"""MJPEG as small cameras send it: every whole picture is a frame, every half one is counted, no end is waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edgeclip.errors import SourceError
from edgeclip.runtime.sources.mjpeg import Splitter
from edgeclip.runtime.sources.open import SourceOptions, open_source
from tests.mjpeg_files import avi_of
from tests.servers import answering, file_server

QUICK = SourceOptions(stall_s=1.0, open_timeout_s=1.5, backoff_s=(0.05, 0.1))
MIXED = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"


def picture(number: int) -> bytes:
    """A JPEG that is brighter the higher its number, with some detail in it, so that half of it is not all of it."""
    noise = np.random.default_rng(number).integers(0, 30, (96, 128, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", noise + np.uint8(20 * number))[1])


PICTURES = [picture(number) for number in range(6)]


def part(data: bytes, *, boundary: bytes = b"--frame", kind: bytes = b"image/jpeg", length: bool = True) -> bytes:
    size = b"Content-Length: %d\r\n" % len(data) if length else b""
    return boundary + b"\r\nContent-Type: " + kind + b"\r\n" + size + b"\r\n" + data + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(kind: bytes, *more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *more, b"", b""])


CAMERAS = {
    "as it should be": (MIXED, [part(each) for each in PICTURES]),
    "no first boundary": (MIXED, [each + b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n" for each in PICTURES]),
    "headers before the first boundary": (MIXED, [b"Content-Type: image/jpeg\r\n\r\n", *(map(part, PICTURES))]),
    "image/jpg": (MIXED, [part(each, kind=b"image/jpg") for each in PICTURES]),
    "no headers": (MIXED, [b"--frame\r\n\r\n" + each + b"\r\n" for each in PICTURES]),
    "no blank line": (MIXED, [b"--frame\r\n" + each for each in PICTURES]),
    "no length": (MIXED, [part(each, length=False) for each in PICTURES]),
    "line feeds only": (MIXED, [b"--frame\nContent-Type: image/jpeg\n\n" + each + b"\n" for each in PICTURES]),
    "a boundary in quotes": (
        head(b'multipart/x-mixed-replace; boundary="frame"'),
        [part(each) for each in PICTURES],
    ),
    "a boundary with its dashes": (
        head(b"multipart/x-mixed-replace;boundary=--frame"),
        [part(each, boundary=b"----frame") for each in PICTURES],
    ),
    "another boundary than it says": (
        head(b"multipart/x-mixed-replace;boundary=foo"),
        [part(each, boundary=b"--bar") for each in PICTURES],
    ),
    "no content type": (b"HTTP/1.0 200 OK\r\n\r\n", [part(each) for each in PICTURES]),
    "no parts": (head(b"image/jpeg"), PICTURES),
    "no parts, of an unknown kind": (head(b"application/octet-stream"), PICTURES),
    "empty parts between": (MIXED, [part(b"") + part(each) for each in PICTURES]),
    "padding after each": (MIXED, [part(each + bytes(300)) for each in PICTURES]),
    "no end markers": (MIXED, [part(each[:-2]) for each in PICTURES]),
    "a wrong length": (MIXED, [part(each).replace(b"Length: ", b"Length: 9") for each in PICTURES]),
    "in chunks": (
        head(b"multipart/x-mixed-replace;boundary=frame", b"Transfer-Encoding: chunked"),
        [chunk(part(each)) for each in PICTURES],
    ),
    "a length of the whole that never comes": (
        head(b"multipart/x-mixed-replace;boundary=frame", b"Content-Length: 99999999"),
        [part(each) for each in PICTURES],
    ),
}


@pytest.mark.parametrize("camera", CAMERAS)
def test_whatever_divides_the_pictures_they_are_frames(camera: str) -> None:
    """The last one is begun and not ended: a camera need not hang up, and is not waited for."""
    first, parts = CAMERAS[camera]
    with answering(*parts, parts[0], head=first, interval_s=0.05, hang_up=False) as server:
        with open_source(server.url, options=QUICK) as source:
            assert source.live
            assert source.describe() == "mjpeg 128×96, mpjpeg over http"
            means = [frame.rgb().mean() for _, frame in zip(range(4), source, strict=False)]
        assert server.connections == 1
        assert source.failed == 0
    assert means == sorted(means)


HALVES = {
    "cut in the middle": PICTURES[1][: len(PICTURES[1]) // 2],
    "cut in the middle, with an end marker": PICTURES[1][: len(PICTURES[1]) // 2] + b"\xff\xd9",
    "cut in the headers": PICTURES[1][:200],
    "a header that is longer than the rest": b"\xff\xd8\xff\xe0 no picture \xff\xd9",
    "all but the last 300 bytes": PICTURES[1][:-300],
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("length", [True, False], ids=["with a length", "without"])
def test_half_pictures_of_a_camera_count_as_failed(half: str, length: bool) -> None:
    sent = [PICTURES[0], HALVES[half], PICTURES[2], HALVES[half], PICTURES[4]]
    parts = [part(data, length=length) for data in sent]
    with (
        answering(*parts, b"--frame\r\n", head=MIXED, interval_s=0.1, hang_up=False) as server,
        open_source(server.url, options=QUICK) as source,
    ):
        taken = [round(frame.rgb().mean() / 20) for _, frame in zip(range(3), source, strict=False)]
    assert taken == [1, 3, 5]  # 20 grey levels a number, and half of the noise
    assert source.failed + source.dropped == 2
    if not HALVES[half].endswith(b"\xff\xd9"):  # such a one is known when it is decoded, which only taken ones are
        assert source.failed == 2


def test_a_picture_that_lacks_its_last_bits_is_taken() -> None:
    """Some cameras' all do."""
    short = [each[:-4] + b"\xff\xd9" for each in PICTURES]
    with (
        answering(*map(part, short), head=MIXED, interval_s=0.05, hang_up=False) as server,
        open_source(server.url, options=QUICK) as source,
    ):
        assert next(iter(source)).rgb().shape == (96, 128, 3)


def test_half_pictures_in_a_file_count_as_failed(tmp_path: Path) -> None:
    pictures = [
        PICTURES[0],
        HALVES["cut in the middle"],
        PICTURES[2],
        HALVES["all but the last 300 bytes"],
        PICTURES[3],
    ]
    path = tmp_path / "half.avi"
    path.write_bytes(avi_of(pictures, height=96, width=128, pixel_format="yuvj420p"))
    with open_source(str(path)) as source:
        assert [round(frame.time_s, 1) for frame in source] == [0.0, 0.2, 0.4]
        assert source.failed == 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(b"")] * 5, "without a JPEG in it: it begins with '--frame"),
        ([part(b"\x89PNG\r\n\x1a\n" + bytes(99), kind=b"image/png")] * 5, "Content-Type: image/png"),
        ([part(b"<h1>\x1b[2J</h1>", kind=b"text/html")] * 5, r"<h1>\\x1b\[2J</h1>"),
        ([b"<html>log in first</html>"], "begins with '<html>log in first</html>'"),
        ([b""], "expected a video stream at"),
    ],
    ids=["empty parts", "PNG", "text", "a page", "nothing"],
)
def test_what_is_no_mjpeg_is_refused_with_what_it_is(parts: list[bytes], message: str) -> None:
    with (
        answering(*parts, head=MIXED, interval_s=0.02) as server,
        pytest.raises(SourceError, match=message),
    ):
        open_source(server.url, options=QUICK)


def test_parts_without_a_picture_are_not_waited_for_for_ever() -> None:
    with (
        answering(*([part(b"")] * 100), head=MIXED, interval_s=0.1, hang_up=False) as server,
        pytest.raises(SourceError, match="without a JPEG in it"),
    ):
        open_source(server.url, options=QUICK)


def test_a_camera_that_never_sends_a_whole_picture_is_given_up() -> None:
    half = part(HALVES["cut in the middle"])
    with answering(half, half, head=MIXED, interval_s=0.05) as server, open_source(server.url, options=QUICK) as source:
        with pytest.raises(SourceError, match="no whole frame came in 3 connections"):
            list(source)
        assert source.failed >= 3
        assert server.connections == 3


def test_a_camera_whose_parts_become_empty_is_opened_again() -> None:
    parts = [part(PICTURES[0]), *([part(b"")] * 40)]
    with (
        answering(*parts, head=MIXED, interval_s=0.05) as server,
        open_source(f"{server.url}#stall=0.3", options=QUICK) as source,
    ):
        frames = iter(source)
        assert [next(frames).index for _ in range(3)] == [0, 1, 2]
        assert source.reconnects == 2


@pytest.fixture
def film(tmp_path: Path) -> bytes:
    """Twenty frames as a transport stream."""
    with av.open(str(tmp_path / "film.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            image = np.full((48, 64, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return (tmp_path / "film.ts").read_bytes()


def test_a_file_over_http_is_played_once_whatever_its_server_can_do(film: bytes) -> None:
    """With a length it is read as a file; without one it is known by its beginning when it comes again."""
    sized = head(b"video/mp2t", b"Content-Length: %d" % len(film))
    with answering(film, head=sized) as server, open_source(server.url) as source:
        assert not source.live
        assert [frame.index for frame in source] == list(range(20))
        assert source.failed == 0
    unsized = [
        (head(b"video/mp2t"), [film]),
        (head(b"video/mp2t", b"Transfer-Encoding: chunked"), [chunk(film), b"0\r\n\r\n"]),
    ]
    for first, parts in unsized:
        with answering(*parts, head=first) as server, open_source(server.url, options=QUICK) as source:
            stopping = threading.Timer(10, source.close)
            stopping.start()
            taken = list(source)
            stopping.cancel()
            assert len(taken) + source.dropped == 20
            assert source.state == "ended"
            assert source.reconnects == 0


@pytest.mark.parametrize("more", [(), (b"Transfer-Encoding: chunked",)], ids=["hangs up", "in chunks"])
def test_a_photograph_without_a_length_is_one_frame(more: tuple[bytes, ...]) -> None:
    """As a camera's snapshot; it is not asked for again and again."""
    parts = [chunk(PICTURES[3]), b"0\r\n\r\n"] if more else [PICTURES[3]]
    with answering(*parts, head=head(b"image/jpeg", *more)) as server, open_source(server.url, options=QUICK) as source:
        assert not source.live
        assert len(list(source)) == 1
        assert source.failed == 0


def test_a_recording_of_a_cameras_parts_is_played_once(tmp_path: Path) -> None:
    (tmp_path / "recorded.mjpg").write_bytes(b"".join(map(part, PICTURES))[:-4])  # and its end is cut off
    with file_server(tmp_path) as url, open_source(f"{url}/recorded.mjpg", options=QUICK) as source:
        taken = list(source)
    assert len(taken) + source.dropped == len(PICTURES)
    assert source.state == "ended"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 7, 1400, 10**6])
def test_pictures_are_found_however_the_bytes_come(size: int) -> None:
    """A picture is out with its last byte, not with the first of the next one."""
    thumbnail = b"\xff\xe1" + (len(PICTURES[5]) + 2).to_bytes(2, "big") + PICTURES[5]
    with_thumbnail = PICTURES[0][:2] + thumbnail + PICTURES[0][2:]
    expected = [with_thumbnail, PICTURES[1], PICTURES[2]]
    splitter = Splitter()
    found = [each for piece in pieces(b"".join(map(part, expected))[:-2], size) for each in splitter.feed(piece)]
    assert found == expected
    assert list(splitter.rest()) == []


def test_a_picture_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_MAX_MJPEG_BYTES", "100000")
    endless = Splitter()
    pieces = iter([PICTURES[0][:-2], *[bytes(5000)] * 100])
    with pytest.raises(SourceError, match="EDGECLIP_MAX_MJPEG_BYTES"):
        assert [each for piece in pieces for each in endless.feed(piece)] == []
    assert len(list(pieces)) > 80
    text = Splitter()
    for _ in range(100):
        assert list(text.feed(b"no picture " * 1000)) == []


def test_nothing_is_told_of_a_stream_that_is_as_it_should_be(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        answering(*map(part, PICTURES), head=MIXED, interval_s=0.01, hang_up=False) as server,
        open_source(server.url, options=QUICK) as source,
    ):
        next(iter(source))
    assert caplog.text == ""
