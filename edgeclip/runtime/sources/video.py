"""A video file in; every frame of it, in order and upright, out; or, in real time, frames as a camera gives them."""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import av.error

from edgeclip.errors import InputError, SourceError
from edgeclip.limits import check_limit, limit
from edgeclip.printable import path_text
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.base import Frame, Source, SourceOptions, picture_text
from edgeclip.runtime.sources.jpeg import JpegDecoder, jpeg_orientation
from edgeclip.runtime.sources.live import Connection, Ended, LiveSource, Received
from edgeclip.runtime.sources.upright import Upright

_log = logging.getLogger("edgeclip")


def open_video(path: Path, realtime: bool, options: SourceOptions) -> Source:
    """Open a video file, losslessly or, in real time, as a camera.

    Raises:
        SourceError: it is no video.
    """
    video = VideoSource(path_text(path.name), f"file:{path}", options)  # FFmpeg takes "a:b.mp4" for an address
    if not realtime:
        return video
    return LiveSource(
        video.name, lambda stopping: SourceConnection(video, stopping, paced=True), options=options, reconnect=False
    )


class VideoSource(Source):
    """A video file, decoded by FFmpeg on several threads; packets that do not decode are counted and passed over.

    Frames keep the format that they were coded with, and the size, where their pixels are square and they lie upright;
    it may change in mid-stream. Each holds its own reference to the decoder's buffer, so any number of them can be
    kept.

    Args:
        name: for people.
        path: file or URL.
        container: what was opened there already, if so; closed by this source.
        open_again: opens it once more, to play it again.
        options: ``loop`` and ``decode_threads`` are used.

    Raises:
        SourceError: there is no video.
    """

    def __init__(
        self,
        name: str,
        path: str,
        options: SourceOptions,
        *,
        container: Any | None = None,
        open_again: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(name)
        if options.loop < 0:
            raise InputError(f"expected loop of at least 0, got {options.loop}: 0 plays for ever")
        self._open = open_again or (lambda: open_container(path))
        self._options = options
        self._lock = threading.Lock()  # close() may come from another thread, and must not pull the file from under us
        self._closed = False
        self._container = container or self._open()
        stream = self._use()
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.total = (_length(self._container, stream) * options.loop) or None
        self._text = f"{stream.codec_context.name} {picture_text(stream.width, stream.height, self.fps)}"

    def describe(self) -> str:
        """Codec, size and rate."""
        return f"{self._text}, file"

    def __iter__(self) -> Iterator[Frame]:
        index, offset_s, played = 0, 0.0, 0
        while True:
            first = index
            began_s, end_s = math.inf, -math.inf  # a clock may begin below 0
            step_s = 1.0 / (self.fps or 25.0)
            for stamp, pixels in self._decode():
                time_s = stamp if stamp is not None else end_s if math.isfinite(end_s) else 0.0
                began_s, end_s = min(began_s, time_s), max(end_s, time_s + step_s)
                yield Frame(index, round(offset_s + time_s, 6), pixels)
                index += 1
            played += 1
            if index == first and not self._closed:
                raise SourceError(f"{self.name} holds no frame that can be decoded: play it with ffplay to see why")
            if self._closed or played == self._options.loop or not self._rewind():
                return
            offset_s += end_s - began_s  # a recording's clock need not begin at 0

    def close(self) -> None:
        """Close the file; whoever iterates finds the end."""
        self._closed = True
        with self._lock:
            self._container.close()

    def _use(self) -> Any:
        """The video stream of what is open, made ready to decode."""
        try:
            stream = video_stream(self._container, self.name)
        except SourceError:
            self._container.close()
            raise
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = self._options.decode_threads
        self._stream = stream
        self._jpeg = JpegDecoder(stream.codec_context) if stream.codec_context.name == "mjpeg" else None
        self._upright = Upright(self.name, stream)
        return stream

    def _rewind(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._container.close()
            self._container = self._open()
            self._use()
            return True

    def _decode(self) -> Iterator[tuple[float | None, Pixels]]:
        """Each frame's own time, seconds, and its pixels."""
        packets = self._container.demux(self._stream)
        received, ended = 0, False
        while not ended:
            with self._lock:
                if self._closed:
                    return
                packet, ended = self._next_packet(packets)
                frames, orientation = self._decode_packet(packet)
                self._upright.note(self._stream.codec_context)
                promised = _promised(self._stream) if ended else 0
            received += not ended
            for decoded in frames:
                yield None if decoded.time is None else float(decoded.time), self._upright(decoded, orientation)
        if promised > received:
            self.failed += promised - received
            _log.warning("%s is cut: %d of its frames are missing", self.name, promised - received)

    def _next_packet(self, packets: Iterator[Any]) -> tuple[Any | None, bool]:
        """The next packet, or None to flush the decoder, and whether it is the last."""
        try:
            packet = next(packets)
        except StopIteration:
            return None, True
        except av.error.FFmpegError as error:  # the file is cut or the network is gone; frames are still in the decoder
            if not (error.errno == errno.EIO and self._container.size < 0):  # so ends what a server states no length of
                self.failed += 1
                _log.warning("%s ends early (%s)", self.name, reason_of(error))
            return None, True
        return packet, packet.size == 0 and packet.dts is None  # PyAV's last packet is empty, and flushes the decoder

    def _decode_packet(self, packet: Any | None) -> tuple[list[av.VideoFrame], int]:
        """The frames that come of a packet, and the orientation in their EXIF."""
        if packet is not None and packet.size == 0 and packet.dts is not None:
            return [], 1  # AVI writes them for a frame that is as the one before
        try:
            if packet is not None and packet.size and self._jpeg is not None:
                return self._jpeg.decode(packet), jpeg_orientation(bytes(packet))
            return list(packet.decode() if packet is not None else self._stream.decode(None)), 1
        except av.error.EOFError:
            return [], 1
        except av.error.FFmpegError:
            self.failed += 1
            return [], 1


def open_container(path: str) -> Any:
    """Open a media file with FFmpeg.

    Raises:
        SourceError: it is not one.
    """
    try:
        return av.open(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        name = path_text(path.removeprefix("file:"))
        raise SourceError(f"expected an image or a video, got {name} ({reason_of(error)})") from error


def video_stream(container: Any, name: str) -> Any:
    """The first video stream in an opened container that can be decoded.

    Args:
        name: of the source, for the error.

    Raises:
        SourceError: there is none, or its pictures are too large.
    """
    streams = container.streams.video
    if not streams:
        raise SourceError(f"expected a video, got {name}, which has no video stream")
    for stream in streams:
        codec = stream.codec_context
        if codec is not None:
            check_limit("image_pixels", codec.width * codec.height, name, error=SourceError)
            codec.options = {"max_pixels": str(limit("image_pixels"))}  # also of a size that comes later
            return stream
    raise SourceError(f"{name} holds video of a kind that FFmpeg has no decoder for here: convert it to H.264")


def _promised(stream: Any) -> int:
    """How many packets the index tells of, less those that an edit list leaves out; 0 where PyAV does not show it.

    The number in a header is no promise: an edit list does not change it, and an AVI's may be twice the truth.
    """
    return len(getattr(stream, "index_entries", ()))


def _length(container: Any, stream: Any) -> int:
    """How many frames will come; 0 where that is not known."""
    if not container.format.name.startswith("mov"):  # others fill their index as they go
        return int(stream.frames)
    left_out = sum(entry.is_discard for entry in getattr(stream, "index_entries", ()))
    frames = int(stream.frames)
    return min(frames, _promised(stream) or frames) - int(left_out)


def reason_of(error: Exception) -> str:
    """What FFmpeg says, without the address, which may hold a password."""
    return str(getattr(error, "strerror", None) or error)


class Pacer:
    """Waits until a frame is due, by its presentation time.

    Args:
        stopping: ends a wait.
        slip_s: a frame that is late, or early, by more starts the clock anew; None never does.
    """

    def __init__(self, stopping: threading.Event, *, slip_s: float | None = None) -> None:
        self._stopping = stopping
        self._slip_s = slip_s
        self._zero: float | None = None

    def wait(self, time_s: float) -> float:
        """Wait for the frame of that time; returns ``time.perf_counter()`` of when it was due."""
        now = time.perf_counter()
        if self._zero is None:
            self._zero = now - time_s
        ahead_s = self._zero + time_s - now
        if self._slip_s is not None and abs(ahead_s) > self._slip_s:
            self._zero, ahead_s = now - time_s, 0.0
        due = self._zero + time_s
        if ahead_s > 0:
            self._stopping.wait(ahead_s)
        return due


class SourceConnection(Connection):
    """A source that is read losslessly, as a connection.

    Args:
        source: closed with this connection.
        stopping: set when the consumer is gone.
        paced: deliver each frame when it is due rather than as soon as it can be read.
    """

    stall_s = float("inf")

    def __init__(self, source: Source, stopping: threading.Event, *, paced: bool) -> None:
        self._source = source
        self._frames: Iterator[Frame] = iter(source)
        self._pacer = Pacer(stopping) if paced else None
        self._failed = 0
        self.about = f"{source.describe()}, in real time"
        self.fps, self.total = source.fps, source.total

    def read(self) -> Received | None:
        """The next frame, when it is due."""
        frame = next(self._frames, None)
        if frame is None:
            raise Ended
        captured = self._pacer.wait(frame.time_s) if self._pacer else frame.captured
        return Received(frame.pixels, captured, frame.time_s)

    def take_failed(self) -> int:
        """Packets that could not be decoded since this was last asked."""
        new, self._failed = self._source.failed - self._failed, self._source.failed
        return new

    def interrupt(self) -> None:
        """End a read that waits for a pipe."""
        self._source.close()

    def close(self) -> None:
        """Close the file."""
        self._source.close()
