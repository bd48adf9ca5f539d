"""Images, folders, videos and cameras become frames; what cannot be read is refused or counted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from edgeclip.errors import InputError, SourceError
from edgeclip.runtime.images import read_image
from edgeclip.runtime.sources.gstreamer import csi_pipeline, require_elements, with_appsink
from edgeclip.runtime.sources.open import SourceOptions, limited, open_source
from edgeclip.runtime.sources.raw import RawSource
from tests.conftest import shared
from tests.servers import need


def test_an_image_is_one_frame(photographs_dir: Path) -> None:
    with open_source(str(photographs_dir / "chelsea.jpg")) as source:
        frames = list(source)
    assert len(frames) == source.total == 1
    assert frames[0].rgb().shape == (300, 451, 3)


def test_a_folder_gives_its_images_by_name(photographs_dir: Path) -> None:
    with open_source(str(photographs_dir)) as source:
        assert [frame.file for frame in source] == sorted(path.name for path in photographs_dir.iterdir())


def test_a_video_gives_every_frame_with_its_time(video: Path) -> None:
    with open_source(str(video)) as source:
        frames = [(frame.index, frame.time_s, frame.rgb().shape) for frame in source]
    assert len(frames) == 40
    assert frames[7] == (7, 0.35, (240, 320, 3))
    assert source.fps == 20


def test_real_videos_have_the_frames_they_should() -> None:
    with open_source(str(shared("videos", "bottle-detection.mp4"))) as source:
        assert sum(1 for _ in source) == 1189
    assert source.failed == 0


def test_a_rotated_video_is_turned_upright(video: Path, tmp_path: Path) -> None:
    import av

    rotated = tmp_path / "rotated.mov"
    with av.open(str(video)) as original, av.open(str(rotated), "w") as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    # The display matrix lies in the track header: a quarter turn, as a phone held upright writes it.
    data = rotated.read_bytes()
    upright = b"".join(value.to_bytes(4, "big") for value in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turned = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    )
    header = data.index(b"tkhd")
    at = data.index(upright, header)
    rotated.write_bytes(data[:at] + turned + data[at + len(turned) :])
    with open_source(str(video)) as plain, open_source(str(rotated)) as source:
        expected = np.rot90(next(iter(plain)).rgb(), -1)
        np.testing.assert_array_equal(next(iter(source)).rgb(), expected)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_video_gives_what_it_has_or_is_refused(video: Path, tmp_path: Path, kept: float) -> None:
    data = video.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(SourceError, match=r"cut\.mp4"), open_source(str(path)) as source:
        list(source)


def encode(path: Path, sizes: list[tuple[int, int]], frames: int = 30) -> Path:
    """An H.264 transport stream whose picture has one size after the other, so many frames each."""
    import av

    with path.open("wb") as file:
        for width, height in sizes:
            part = io.BytesIO()
            with av.open(part, "w", format="mpegts") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
                for index in range(frames):
                    frame = av.VideoFrame.from_ndarray(np.roll(noise, index, 1), format="rgb24")
                    frame.pts = index
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            file.write(part.getvalue())
    return path


def test_a_truncated_stream_gives_what_it_has(tmp_path: Path) -> None:
    data = encode(tmp_path / "whole.ts", [(160, 120)]).read_bytes()
    cut = _write(tmp_path / "cut.ts", data[: len(data) // 2])
    with open_source(str(cut)) as source:
        indices = [frame.index for frame in source]
    assert indices == list(range(len(indices)))
    assert 3 <= len(indices) < 30


def test_a_truncated_container_gives_what_it_has_and_counts_the_rest(video: Path, tmp_path: Path) -> None:
    """With its index in front, a cut MP4 can still be opened, and tells of packets that are not there."""
    import av

    whole = tmp_path / "whole.mp4"
    with av.open(str(video)) as original, av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    data = whole.read_bytes()
    cut = _write(tmp_path / "cut.mp4", data[: int(0.85 * len(data))])
    with open_source(str(cut)) as source:
        frames = list(source)
    assert 5 <= len(frames) < 40
    assert 20 <= len(frames) + source.failed <= 40


def test_a_video_whose_size_changes_goes_on(tmp_path: Path) -> None:
    path = encode(tmp_path / "changes.ts", [(160, 120), (320, 240), (128, 96)])
    with open_source(str(path)) as source:
        sizes = [frame.rgb().shape[:2] for frame in source]
    assert sizes == [(120, 160)] * 30 + [(240, 320)] * 30 + [(96, 128)] * 30


def test_frames_of_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where the first is, and as frames that failed where the size grows; before memory is taken for them."""
    grows = encode(tmp_path / "grows.ts", [(160, 120), (320, 240)])
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "50000")
    with open_source(str(grows)) as source:
        assert {frame.rgb().shape for frame in source} == {(120, 160, 3)}
    assert source.failed > 0
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "10000")
    with pytest.raises(SourceError, match=r"at most 10,000 pixels in an image or frame, got 19,200 in grows\.ts"):
        open_source(str(grows))


def test_frames_that_are_kept_stay_as_they_are(video: Path) -> None:
    """The decoder reuses its buffers, but none that a frame still holds."""
    with open_source(str(video)) as source:
        kept = list(source)
    with open_source(str(video)) as source:
        for frame in source:
            np.testing.assert_array_equal(kept[frame.index].rgb(), frame.rgb())


def test_a_video_plays_as_often_as_asked(video: Path) -> None:
    with open_source(str(video), options=SourceOptions(loop=3)) as source:
        frames = list(source)
    assert len(frames) == source.total == 120
    assert [frame.index for frame in frames] == list(range(120))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(120) / 20, atol=1e-5)
    np.testing.assert_array_equal(frames[47].rgb(), frames[7].rgb())


def pan(path: Path, first: int, *, frames: int = 20, form: str | None = None, every: int = 1) -> Path:
    """A video at 10 frames/s of numbered frames (10 grey levels apart), with B-frames, whose clock begins at ``first``.

    Args:
        first: in frames.
        every: frames between keyframes.
    """
    import av

    with av.open(str(path), "w", format=form, options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "2", "g": str(every), "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = first + index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("hour.mkv", 36000),
        ("hour.ts", 36000),
        ("hour.flv", 36000),
        ("wraps.ts", 954_430),
        ("below.ts", -7),
        ("0.ts", 0),
    ],
)
def test_a_second_round_begins_where_the_first_one_ended(name: str, first: int, tmp_path: Path) -> None:
    """A recording's clock may begin anywhere, and a transport stream's wraps after 26.5 hours."""
    path = pan(tmp_path / name, first)
    with open_source(str(path), options=SourceOptions(loop=3)) as source:
        times = [frame.time_s for frame in source]
    assert len(times) == 60
    np.testing.assert_allclose(np.diff(times), 0.1, atol=0.002)


def cut_at(path: Path, into: Path, first: int) -> Path:
    """The packets from that frame's keyframe on, and an edit list that shows none before the frame itself."""
    import av

    with av.open(str(path)) as original, av.open(str(into), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                shift = round(first / 10 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                container.mux(packet)
    return into


def test_frames_that_an_edit_list_leaves_out_are_not_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A trimmed clip keeps the packets before its first frame, and its header may count them."""
    trimmed = cut_at(pan(tmp_path / "whole.mp4", 0, every=20), tmp_path / "trimmed.mp4", 7)
    with open_source(str(trimmed)) as source:
        shown = [round(frame.rgb().mean() / 10) for frame in source]
        assert source.total == 13
    assert shown == list(range(7, 20))
    assert source.failed == 0
    assert caplog.text == ""
    data = trimmed.read_bytes()
    cut = _write(tmp_path / "cut.mp4", data[: len(data) - 60])
    with open_source(str(cut)) as source:
        assert len(list(source)) < 13
    assert source.failed > 0


def test_a_video_whose_header_counts_too_many_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an AVI with B-frames, FFmpeg itself writes twice the number."""
    path = pan(tmp_path / "twice.avi", 0)
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 40
    assert data[at : at + 4] == (20).to_bytes(4, "little")
    data[at : at + 4] = (40).to_bytes(4, "little")
    path.write_bytes(data)
    with open_source(str(path)) as source:
        assert len(list(source)) == 20
    assert source.failed == 0
    assert caplog.text == ""


def test_a_video_without_a_decoder_is_refused(tmp_path: Path) -> None:
    data = pan(tmp_path / "known.mp4", 0).read_bytes()
    at = data.index(b"avc1", data.index(b"stsd"))
    unknown = _write(tmp_path / "unknown.mp4", data[:at] + b"zzzz" + data[at + 4 :])
    with pytest.raises(SourceError, match=r"unknown\.mp4 holds video of a kind that FFmpeg has no decoder for"):
        open_source(str(unknown))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_damaged_video_gives_frames_or_a_source_error(name: str, tmp_path: Path) -> None:
    """Whatever byte is wrong; the headers are hit most, as they are what is believed."""
    data = pan(tmp_path / name, 0, frames=6).read_bytes()
    random = np.random.default_rng(0)
    ended = {"read": 0, "refused": 0}
    for _ in range(40):
        damaged = bytearray(data)
        for at in random.choice([random.integers(0, len(data), 3), random.integers(0, 900, 3) % len(data)]):
            damaged[at] = random.integers(0, 256)
        for at in random.integers(1, 1000, 3):
            damaged[-min(at, len(data))] = random.integers(0, 256)
        path = _write(tmp_path / f"damaged-{name}", bytes(damaged))
        try:
            with open_source(str(path)) as source:
                for frame in source:
                    frame.rgb()
            ended["read"] += 1
        except SourceError:
            ended["refused"] += 1
    assert ended["read"] > 0


def test_a_video_that_is_closed_by_another_thread_ends(video: Path) -> None:
    source = open_source(str(video), options=SourceOptions(loop=0))
    frames = iter(source)
    next(frames)
    closing = threading.Timer(0.2, source.close)
    closing.start()
    for _ in frames:
        pass
    closing.join()


def test_opening_a_file_does_not_load_opencv(video: Path) -> None:
    code = (
        "import sys; from edgeclip.runtime.sources.open import open_source\n"
        f"with open_source({str(video)!r}) as source: assert len(list(source)) == 40\n"
        "assert 'cv2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pattern_gives_its_images_by_path(photographs_dir: Path) -> None:
    pattern = str(photographs_dir / "*.jpg")
    with open_source(pattern) as source:
        assert [frame.file for frame in source] == sorted(str(path) for path in photographs_dir.glob("*.jpg"))
    assert source.describe() == "4 images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0?widht=640", "got 'widht': known are width=, height=, fps=, format="),
        ("0?width=640&width=641", "got 'width' twice"),
        ("/dev/video0?width=0", "expected width= to be a whole number from 1 to 16384"),
        ("/dev/video0?fps=nan", "expected fps= to be a number from 0.1 to 1000"),
        ("/dev/video0?format=divx", "expected format= to be one of mjpeg, yuyv"),
        ("/dev/video0?640x480", "expected options as name=value"),
        ("/dev/video97", "/dev/video97 cannot be opened"),
        ("csi://left", "as in csi://0"),
        ("csi://0?mode=3", "got 'mode': known are width=, height=, fps=, flip="),
        ("rtsp://127.0.0.1/a?channel=1#transport=smoke", "expected transport= to be one of tcp, udp"),
        ("rtsp://me:secret@127.0.0.1/a#stal=1", "expected known options in 'rtsp://127.0.0.1/a#stal=1', got 'stal'"),
        ("-", "got '-' without width and height"),
        ("-?width=640&height=480&format=yuv444p", "expected format= to be one of rgb24"),
        ("gst:", "expected a GStreamer pipeline after gst:"),
        ("ftp://host/a.mp4", "'ftp://host/a.mp4', which is none of them"),
        ("no/such/*.jpg", "expected images that match 'no/such/\\*.jpg'"),
        ("  ", "got an empty name"),
    ],
)
def test_texts_that_name_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(text)


def test_images_cannot_play_in_real_time(photographs_dir: Path) -> None:
    with pytest.raises(SourceError, match="a video file to play in real time"):
        open_source(str(photographs_dir), realtime=True)


def test_a_jetson_camera_has_this_pipeline() -> None:
    assert csi_pipeline(1, width=1280, height=720, fps=59.94, flip=2) == (
        "nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,framerate=2997/50,format=NV12 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


END = (
    " ! videoconvert ! videoscale ! video/x-raw,format=BGR,pixel-aspect-ratio=1/1"
    " ! appsink drop=true max-buffers=1 sync=false"
)


@pytest.mark.parametrize(
    ("pipeline", "completed"),
    [
        ("videotestsrc", f"videotestsrc{END}"),
        ("a ! b !", f"a ! b{END}"),
        ("a ! appsink name=mine", "a ! appsink name=mine"),
        ("a !appsink", "a !appsink"),
        ("a name=appsink", f"a name=appsink{END}"),
    ],
)
def test_a_pipeline_is_completed_where_it_has_no_end(pipeline: str, completed: str) -> None:
    assert with_appsink(pipeline) == completed


def test_a_pipeline_with_an_unknown_element_is_refused() -> None:
    need("gst-inspect-1.0")
    require_elements("( videotestsrc num-buffers=1 ! video/x-raw,format=BGR ! identity name=a ) ! fakesink")
    with pytest.raises(SourceError, match=r"got nosuchsrc, nosuchsink in:"):
        require_elements("nosuchsrc location='a ! b' ! queue ! nosuchsink")


@pytest.mark.parametrize("text", ["gst:videotestsrc", "videotestsrc ! identity", "csi://0"])
def test_an_opencv_without_gstreamer_says_what_to_install(text: str) -> None:
    import cv2

    if "GStreamer:                   YES" in cv2.getBuildInformation():
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(SourceError, match="apt install python3-opencv"):
        open_source(text)


def test_a_pipeline_runs_in_an_opencv_with_gstreamer() -> None:
    """The system's Python may have such an OpenCV; what else is needed comes from this environment."""
    code = f"""
import sys
if sys.version_info[:2] != {sys.version_info[:2]}: sys.exit(77)
try:
    import cv2
except ImportError:
    sys.exit(77)
if not any("GStreamer:" in line and "YES" in line for line in cv2.getBuildInformation().splitlines()): sys.exit(77)
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
sys.path.append({str(Path(np.__file__).parents[1])!r})
from edgeclip.errors import SourceError
from edgeclip.runtime.sources.open import open_source
pipeline = "videotestsrc is-live=true num-buffers=20 pattern=red ! video/x-raw,width=64,height=48,framerate=20/1"
with open_source(pipeline) as source:
    print(source.describe(), source.fps, source.name)
    frames = iter(source)
    frame = next(frames)
    taken = 1
    print(frame.rgb().shape, frame.rgb()[0, 0].tolist())
    try:
        for frame in frames: taken += 1
    except SourceError as error:
        print(error)
    print(taken + source.dropped == frame.index + 1, frame.index > 10)
with open_source("videotestsrc ! video/x-raw,width=64,height=48,pixel-aspect-ratio=2/1") as source:
    print(source.describe())
try:
    open_source("gst:filesrc location=/none ! decodebin")
except SourceError as error:
    print(error)
"""
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 77:
        pytest.skip("needs a system OpenCV with GStreamer, for the same Python version")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "64×48 at 20 fps, GStreamer 20.0 videotestsrc"
    assert lines[1] == "(48, 64, 3) [255, 0, 0]"
    assert lines[2] == "videotestsrc stopped giving frames: no frame"
    assert lines[3] == "True True"
    assert lines[4].startswith("128×48 at")  # OpenCV would not tell that the pixels are twice as wide as high
    assert "none from: filesrc location=/none ! decodebin ! videoconvert" in lines[5]


RAW = """
import sys
from edgeclip.runtime.sources.open import open_source
with open_source(sys.argv[1], realtime=len(sys.argv) > 2) as source:
    frames = [(frame.index, frame.time_s, frame.rgb()) for frame in source]
    for index, time_s, rgb in frames:
        print(index, time_s, rgb.shape, rgb[0, 0].tolist(), rgb[-1, -1].tolist())
    print(len(frames) + source.dropped, source.failed, source.describe())
"""


def run_raw(text: str, data: bytes, *more: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RAW, text, *more], input=data, capture_output=True, check=True, timeout=60
    )
    return done.stdout.decode().splitlines()


def test_raw_frames_come_from_standard_input() -> None:
    frames = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)
    lines = run_raw("stdin?width=6&height=4&fps=10", frames.tobytes() + b"cut short")
    for index, line in enumerate(lines[:3]):
        first, last = frames[index, 0, 0].tolist(), frames[index, -1, -1].tolist()
        assert line == f"{index} {index / 10} (4, 6, 3) {first} {last}"
    assert lines[3:] == ["3 1 rgb24 6×4 at 10 fps, standard input"]


@pytest.mark.parametrize(
    ("pixel_format", "data"),
    [
        ("bgr24", bytes([50, 100, 200]) * 64),
        ("gray", bytes([120]) * 64),
        ("yuv420p", bytes([120]) * 64 + bytes([128]) * 32),
        ("nv12", bytes([120]) * 64 + bytes([128]) * 32),
        ("yuyv422", bytes([120, 128]) * 64),
    ],
)
def test_raw_frames_of_other_formats_become_rgb(pixel_format: str, data: bytes) -> None:
    first, last = run_raw(f"-?width=8&height=8&format={pixel_format}&fps=5", data)
    assert last == f"1 0 {pixel_format} 8×8 at 5 fps, standard input"
    rgb = [int(value) for value in first[first.index("[") + 1 : first.index("]")].split(",")]
    expected = {"bgr24": [200, 100, 50], "gray": [120] * 3}.get(pixel_format, [round((120 - 16) * 255 / 219)] * 3)
    np.testing.assert_allclose(rgb, expected, atol=2)


def test_raw_frames_in_real_time_are_taken_or_dropped() -> None:
    data = np.random.default_rng(0).integers(0, 255, 50 * 4 * 6 * 3, np.uint8).tobytes()
    assert run_raw("-?width=6&height=4&fps=10", data, "realtime")[-1].startswith("50 0 rgb24 6×4")


def test_an_empty_standard_input_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_raw("-?width=6&height=4", b"short")
    assert b"expected frames of 72 bytes" in failed.value.stderr


def test_raw_frames_have_a_size_that_their_format_can_have() -> None:
    with pytest.raises(SourceError, match="expected even width and height for nv12, got 641×480"):
        RawSource(0, 641, 480, "nv12", None)


def test_a_silent_pipe_can_be_closed() -> None:
    out, into = os.pipe()
    try:
        source = RawSource(out, 6, 4, "rgb24", None)
        threading.Timer(0.2, source.close).start()
        assert list(source) == []
    finally:
        os.close(out)
        os.close(into)


def test_a_damaged_video_counts_what_does_not_decode(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with open_source(str(path)) as source:
        frames = sum(1 for _ in source)
    assert 1 <= frames <= 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.mp4", "no such file"),
        (lambda folder: _write(folder / "text.mp4", b"hello"), "expected an image or a video"),
        (lambda folder: _write(folder / "empty.mp4", b""), "expected an image or a video"),
        (lambda folder: _write(folder / "text.png", b"hello"), "expected an image"),
        (lambda folder: _write(folder / "empty.jpg", b""), "expected an image"),
        (lambda folder: folder, "expected images in"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(str(make(tmp_path)))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(SourceError, match="no video stream"):
        open_source(str(path))


def test_a_camera_that_is_not_there_is_refused() -> None:
    with pytest.raises(SourceError, match="camera 97 cannot be opened"):
        open_source("97")


@pytest.mark.parametrize("name", ["0", "12", "0?width=640"])
def test_a_file_that_is_called_like_a_camera_is_opened(
    name: str, photographs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jpg").write_bytes((photographs_dir / "coffee.jpg").read_bytes())
    with open_source(name) as source:
        assert [frame.file for frame in source] == ["a.jpg"]


def test_a_number_is_a_camera_also_where_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "97").mkdir()
    with pytest.raises(SourceError, match="camera 97 cannot be opened"):
        open_source(97)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("RTSP://127.0.0.1:1/a", "at rtsp://127.0.0.1:1/a"),
        (" rtsp://127.0.0.1:1/a", "at rtsp://127.0.0.1:1/a"),
        ("\tHttp://127.0.0.1:1/A\n", "at http://127.0.0.1:1/A"),
        ("CSI://x", "csi:// and the camera's index"),
        ("GST:", "a GStreamer pipeline after gst:"),
    ],
)
def test_capitals_and_blanks_of_an_address_do_not_count(text: str, kind: str) -> None:
    with pytest.raises(SourceError, match=kind):
        open_source(text)


def test_a_file_of_an_addresss_name_goes_before_it(
    photographs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / " GST:a.jpg").write_bytes((photographs_dir / "coffee.jpg").read_bytes())
    with open_source(" GST:a.jpg") as source:
        assert source.total == 1


def test_a_truncated_jpeg_is_refused_alone_and_counted_in_a_folder(photographs_dir: Path, tmp_path: Path) -> None:
    data = (photographs_dir / "coffee.jpg").read_bytes()
    cut = _write(tmp_path / "cut.jpg", data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.jpg"):
        open_source(str(cut))
    _write(tmp_path / "whole.jpg", data)
    with open_source(str(tmp_path)) as source:
        assert [frame.file for frame in source] == ["whole.jpg"]
    assert source.failed == 1
    (tmp_path / "whole.jpg").unlink()
    with pytest.raises(SourceError, match="none of the 1 images"), open_source(str(tmp_path)) as source:
        list(source)


ODD_IMAGES = {
    "grey.png": PillowImage.new("L", (20, 10), 128),
    "grey16.png": PillowImage.fromarray(np.full((10, 20), 0x8080, np.uint16)),
    "alpha.png": PillowImage.new("RGBA", (20, 10), (128, 128, 128, 0)),
    "palette.png": PillowImage.new("RGB", (20, 10), (128, 128, 128)).quantize(4),
    "cmyk.jpg": PillowImage.new("CMYK", (20, 10), (0, 0, 0, 127)),
    "one.png": PillowImage.new("RGB", (1, 1), (128, 128, 128)),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images_become_eight_bit_rgb(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ODD_IMAGES[name].save(path)
    image = read_image(path)
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    np.testing.assert_allclose(image, 128, atol=2)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = PillowImage.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)


def test_the_limit_is_kept_and_checked(video: Path) -> None:
    with open_source(str(video)) as source:
        assert len(list(limited(source, 5))) == 5
    with open_source(str(video)) as source, pytest.raises(InputError, match="expected limit of at least 1"):
        list(limited(source, 0))
