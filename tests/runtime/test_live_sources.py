"""Live sources: the latest frame wins, every drop is counted, what is lost comes back."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclip.errors import SourceError
from edgeclip.runtime.sources.live import LatestFrame, LiveSource
from edgeclip.runtime.sources.open import Frame, Source, SourceOptions, open_source
from edgeclip.runtime.sources.opencv import Capture
from tests.servers import MjpegServer, file_server, free_port, need, rtsp_server

pytestmark = pytest.mark.usefixtures("all_cores")  # threads run beside each other here

QUICK = SourceOptions(stall_s=1.0, open_timeout_s=3.0, backoff_s=(0.2, 0.5))


def take_until(source: Source, frames: Iterator[Frame], enough: Callable[[list[Frame]], bool]) -> list[Frame]:
    """Frames until there are enough, in 25 s at most."""
    taken: list[Frame] = []
    end = time.perf_counter() + 25
    while not enough(taken):
        assert time.perf_counter() < end, f"{len(taken)} frames, {source.state}, {source.reconnects} reconnects"
        taken.append(next(frames))
    return taken


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.perf_counter() + 25
    while not condition():
        assert time.perf_counter() < end
        time.sleep(0.2)


def assert_every_frame_is_accounted_for(source: Source, taken: list[Frame], frames: Iterator[Frame]) -> None:
    """Close the source; then what was delivered is what was taken and dropped."""
    source.close()
    taken = [*taken, *frames]
    indices = [frame.index for frame in taken]
    assert indices == sorted(set(indices))
    assert len(taken) + source.dropped == indices[-1] + 1
    captured = [frame.captured for frame in taken]
    assert captured == sorted(captured)


def test_the_latest_frame_wins_and_every_drop_is_counted() -> None:
    slot: LatestFrame[int] = LatestFrame()
    for item in (1, 2, 3):
        slot.put(item)
    assert slot.take() == 3
    slot.put(4)
    slot.put(5)
    slot.end()
    slot.put(6)
    assert slot.take() == 5
    assert slot.take() is None
    assert slot.dropped == 3


def test_a_video_played_in_real_time_drops_what_a_slow_consumer_misses(video: Path) -> None:
    with open_source(str(video), realtime=True) as source:
        assert source.live
        assert (source.total, source.fps) == (40, 20)
        taken = []
        while True:
            source.ready()
            frame = next(iter(source), None)
            if frame is None:
                break
            taken.append(frame)
            time.sleep(0.12)
    assert len(taken) + source.dropped == 40
    assert source.dropped > 0
    assert taken[-1].index == 39
    assert [frame.time_s for frame in taken] == [round(frame.index / 20, 6) for frame in taken]
    for frame in taken:  # captured is when the frame was due, exactly
        assert frame.captured - taken[0].captured == pytest.approx((frame.index - taken[0].index) / 20, abs=1e-6)
    assert taken[-1].captured <= time.perf_counter()


def test_a_video_played_in_real_time_again_and_again_counts_on(video: Path) -> None:
    with open_source(str(video), realtime=True, options=SourceOptions(loop=0)) as source:
        frames = iter(source)
        taken = take_until(source, frames, lambda taken: bool(taken) and taken[-1].index > 45)
        assert_every_frame_is_accounted_for(source, taken, frames)
    assert source.total is None
    assert taken[-1].time_s == round(taken[-1].index / 20, 6)


def test_a_closed_source_releases_its_consumer_and_ends_its_thread(video: Path) -> None:
    source = open_source(str(video), realtime=True, options=SourceOptions(loop=0))
    frames = iter(source)
    next(frames)
    closing = threading.Timer(0.3, source.close)
    closing.start()
    list(frames)  # ends, though the video does not
    closing.join()
    assert not any(thread.name == "edgeclip-pan.mp4" for thread in threading.enumerate())
    assert source.state == "ended"


def test_opencv_captures_are_rgb_and_their_end_is_told(video: Path) -> None:
    """OpenCV's capture of a file stands for a USB camera, which this machine may not have."""
    capture = cv2.VideoCapture(str(video))
    ok, first = capture.read()
    assert ok
    source = LiveSource("camera", lambda stopping: Capture(capture, "test", first), options=QUICK, reconnect=False)
    with source, open_source(str(video)) as plain:
        expected = next(iter(plain)).rgb()
        frames = iter(source)
        frame = next(frames)
        taken = [frame]
        with pytest.raises(SourceError, match="stopped giving frames: no frame"):
            taken.extend(frames)
    if frame.index == 0:
        assert np.abs(frame.rgb().astype(int) - expected).mean() < 3
    assert len(taken) + source.dropped == 40
    assert source.describe() == "320×240 at 20 fps, test"


def test_an_rtsp_camera_that_is_cut_comes_back() -> None:
    with rtsp_server() as server, open_source(server.url, options=QUICK) as source:
        assert source.describe() == "h264 320×240 at 30 fps, rtsp over tcp"
        frames = iter(source)
        taken = take_until(source, frames, lambda taken: len(taken) == 10)
        assert taken[0].rgb().shape == (240, 320, 3)
        server.kill()
        wait_for(lambda: source.state.startswith("lost, trying again in"))
        server.start()
        taken += take_until(source, frames, lambda _: source.reconnects == 1)
        taken += take_until(source, frames, lambda taken: len(taken) == 10)
        time.sleep(0.3)  # a slow consumer: frames are dropped
        assert_every_frame_is_accounted_for(source, taken, frames)
    assert source.reconnects == 1


def test_an_rtsp_camera_may_send_udp() -> None:
    with rtsp_server() as server, open_source(f"{server.url}#transport=udp", options=QUICK) as source:
        assert source.describe() == "h264 320×240 at 30 fps, rtsp over udp"
        frames = iter(source)
        take_until(source, frames, lambda taken: len(taken) == 5)


def test_an_rtsp_camera_may_speak_tls(tmp_path: Path) -> None:
    need("openssl")
    pem = tmp_path / "camera.pem"
    asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=camera", "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(["openssl", "req", *asked], check=True, capture_output=True)
    with rtsp_server(pem) as server, open_source(server.url, options=QUICK) as source:
        assert source.describe() == "h264 320×240 at 30 fps, rtsps over tcp"
        assert next(iter(source)).rgb().shape == (240, 320, 3)


def test_an_rtsp_camera_that_hangs_is_left_and_found_again() -> None:
    with rtsp_server() as server, open_source(f"{server.url}#stall=1&timeout=2", options=QUICK) as source:
        frames = iter(source)
        taken = take_until(source, frames, lambda taken: len(taken) == 5)
        server.freeze(True)
        wait_for(lambda: source.state.startswith("lost, trying again in"))
        server.freeze(False)
        taken += take_until(source, frames, lambda _: source.reconnects >= 1)
        assert_every_frame_is_accounted_for(source, taken, frames)


def test_closing_a_camera_that_hangs_does_not_wait_for_it() -> None:
    with rtsp_server() as server, open_source(server.url, options=SourceOptions(stall_s=3.0)) as source:
        frames = iter(source)
        take_until(source, frames, lambda taken: len(taken) == 3)
        (reader,) = (thread for thread in threading.enumerate() if thread.name.startswith("edgeclip-127"))
        server.freeze(True)
        wait_for(lambda: not source._slot._there())  # type: ignore[attr-defined]
        source.close()
        assert list(frames) == []
        reader.join(10)  # ends by itself, by its own time limit
        assert not reader.is_alive()


def test_a_camera_that_does_not_come_back_is_given_up() -> None:
    with rtsp_server() as server, open_source(f"{server.url}#give_up=1", options=QUICK) as source:
        frames = iter(source)
        take_until(source, frames, lambda taken: len(taken) == 3)
        server.kill()
        with pytest.raises(SourceError, match=r"given up after 1 s"):
            list(frames)
        assert source.state == "failed"


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_wrong_address_is_refused_at_once_and_keeps_its_password(scheme: str) -> None:
    with pytest.raises(SourceError, match=f"at {scheme}://127.0.0.1:") as refused:
        open_source(f"{scheme}://me:secret@127.0.0.1:{free_port()}/yard", options=QUICK)
    assert "secret" not in str(refused.value)


@pytest.fixture
def jpegs() -> list[bytes]:
    """Eight plain pictures as JPEG, each brighter than the one before."""
    return [cv2.imencode(".jpg", np.full((48, 64, 3), 30 * n, np.uint8))[1].tobytes() for n in range(8)]


def test_an_mjpeg_camera_that_hangs_up_and_comes_back(jpegs: list[bytes]) -> None:
    port = free_port()
    with MjpegServer(jpegs, port) as server, open_source(server.url, options=QUICK) as source:
        assert source.describe().startswith("mjpeg 64×48")
        assert source.describe().endswith("mpjpeg over http")
        frames = iter(source)
        taken = take_until(source, frames, lambda taken: len(taken) == 10)
        for frame in taken:
            assert abs(float(frame.rgb().mean()) - 30 * (frame.index % 8)) < 2
        server.__exit__()
        wait_for(lambda: source.state.startswith("lost, trying again in"))
        with MjpegServer(jpegs, port):
            taken += take_until(source, frames, lambda _: source.reconnects == 1)
            taken += take_until(source, frames, lambda taken: len(taken) == 5)
            assert_every_frame_is_accounted_for(source, taken, frames)


def test_an_mjpeg_camera_that_hangs_is_noticed(jpegs: list[bytes]) -> None:
    with MjpegServer(jpegs, free_port()) as server, open_source(server.url, options=QUICK) as source:
        frames = iter(source)
        take_until(source, frames, lambda taken: len(taken) == 3)
        server.frozen = True
        wait_for(lambda: "lost" in source.state or source.state == "connecting")
        server.frozen = False
        take_until(source, frames, lambda _: source.reconnects >= 1)


def test_all_that_an_mjpeg_camera_sent_is_taken_dropped_or_failed(jpegs: list[bytes]) -> None:
    broken = [jpegs[0], jpegs[1], b"\xff\xd8\xff\xe0 no picture \xff\xd9"]
    once = replace(QUICK, reconnect=False)
    with MjpegServer(broken, free_port(), limit=60) as server, open_source(server.url, options=once) as source:
        taken: list[int] = []

        def take_slowly() -> None:
            for frame in source:
                taken.append(frame.index)
                time.sleep(0.03)

        with pytest.raises(SourceError, match="stopped giving frames"):
            take_slowly()
    assert set(np.array(taken) % 3) == {0, 1}
    assert source.failed > 0
    assert source.dropped > 0
    assert len(taken) + source.dropped + source.failed == server.sent == 60


def hls(folder: Path, *options: str, seconds: int) -> list[str]:
    """The command that writes a test picture's playlist, in segments of one second."""
    picture = f"testsrc=size=160x120:rate=20:duration={seconds}"
    return [
        *("ffmpeg", "-loglevel", "error", *options, "-f", "lavfi", "-i", picture, "-c:v", "libx264", "-g", "20"),
        *("-preset", "ultrafast", "-f", "hls", "-hls_time", "1", "-hls_list_size", "4", str(folder / "live.m3u8")),
    ]


def test_a_live_hls_stream_plays_at_its_own_pace_to_its_end(tmp_path: Path) -> None:
    need("ffmpeg")
    writer = subprocess.Popen(hls(tmp_path, "-re", seconds=7))
    try:
        wait_for(lambda: (tmp_path / "live2.ts").exists())
        with file_server(tmp_path) as url, open_source(f"{url}/live.m3u8", options=SourceOptions()) as source:
            assert source.live
            assert source.describe() == "h264 160×120 at 20 fps, hls over http"
            taken = list(source)
    finally:
        writer.kill()
        writer.wait()
    assert len(taken) + source.dropped >= 80
    assert len(taken) >= 40  # without pacing, a segment would be over before its second frame was taken
    assert source.state == "ended"


def test_a_finished_hls_playlist_and_a_file_over_http_are_read_without_loss(tmp_path: Path, jpegs: list[bytes]) -> None:
    need("ffmpeg")
    subprocess.run(
        [*hls(tmp_path, seconds=3)[:-1], "-hls_playlist_type", "vod", str(tmp_path / "all.m3u8")], check=True
    )
    picture = "testsrc=size=160x120:rate=20:duration=3"
    subprocess.run(
        [
            "ffmpeg",
            "-loglevel",
            "error",
            "-f",
            "lavfi",
            "-i",
            picture,
            "-movflags",
            "faststart",
            str(tmp_path / "a.mp4"),
        ],
        check=True,
    )
    (tmp_path / "one.jpg").write_bytes(jpegs[3])
    with file_server(tmp_path) as url:
        for name in ("all.m3u8", "a.mp4"):
            with open_source(f"{url}/{name}") as source:
                assert not source.live
                assert [frame.index for frame in source] == list(range(60))
                assert source.failed == 0
        with open_source(f"{url}/one.jpg") as source:
            assert [frame.rgb().shape for frame in source] == [(48, 64, 3)]
