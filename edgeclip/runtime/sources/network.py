"""An RTSP or HTTP address in; a live source, or a file that is read over the network, out."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

import av
import av.error

from edgeclip.errors import SourceError
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import (
    SECONDS,
    escaping_hint,
    one_of,
    read_options,
    short_name,
    without_fragment,
    without_password,
)
from edgeclip.runtime.sources.base import Source, SourceOptions, picture_text
from edgeclip.runtime.sources.live import BadFrame, Connection, Ended, LiveSource, Lost, Received
from edgeclip.runtime.sources.video import Pacer, SourceConnection, VideoSource, reason_of, upright

# After "#", since what follows "?" belongs to the server.
OPTIONS = {
    "transport": one_of({"tcp": "tcp", "udp": "udp"}),
    "stall": SECONDS,
    "give_up": SECONDS,
    "timeout": SECONDS,
}
_STALL_S = 5.0
_HLS_STALL_S = 20.0  # the next segment may be that far away
_HLS_SLIP_S = 2.0
# FFmpeg's names; see https://ffmpeg.org/ffmpeg-protocols.html#rtsp and https://ffmpeg.org/ffmpeg-formats.html
# FFmpeg's "nobuffer" is not here: it throws away what was read to find out the codec, and with it the first keyframe,
# which was seen to cost 2.5 s until the next one. Our reader takes what is buffered faster than it comes anyway.
_QUICK = {"probesize": "500000", "analyzeduration": "500000"}
_RTSP = {  # the camera's SDP says what the codec is, so nothing has to be analysed
    "probesize": "32",
    "analyzeduration": "0",
    "allowed_media_types": "video",
}
_IN_ORDER = {"reorder_queue_size": "0", "max_delay": "0"}  # TCP has nothing to reorder


def open_network(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open ``rtsp://``, ``rtsps://``, ``http://`` or ``https://``, with options after ``#``.

    Returns:
        A live source; over HTTP a ``VideoSource`` if what is there has an end (a file, a finished HLS playlist).

    Raises:
        SourceError: nothing can be opened there, or it is no video.
    """
    address, query = without_fragment(text)
    given = read_options(text, query, OPTIONS)
    transport = given.get("transport", "tcp")
    options = replace(
        options,
        stall_s=given.get("stall", options.stall_s),
        give_up_s=given.get("give_up", options.give_up_s),
        open_timeout_s=given.get("timeout", options.open_timeout_s),
    )
    name = short_name(address)
    first: Any = _open(address, transport, options)
    if _is_file(first):
        video = VideoSource(
            name, address, options, container=first, open_again=lambda: _open(address, transport, options)
        )
        if not realtime:
            return video
        return LiveSource(
            name, lambda stopping: SourceConnection(video, stopping, paced=True), options=options, reconnect=False
        )
    waiting = [first]

    def connect(stopping: threading.Event) -> Connection:
        container = waiting.pop() if waiting else _open(address, transport, options)
        if _is_file(container):
            container.close()
            raise Ended  # a live HLS playlist that was finished while we read it
        return NetworkStream(
            container, _transport_text(address, container, transport), _stall_s(container, options), stopping
        )

    return LiveSource(name, connect, options=options, reconnect=options.reconnect is not False)


def _open(address: str, transport: str, options: SourceOptions) -> Any:
    rtsp = address.startswith("rtsp")
    hls = re.split("[?#]", address)[0].endswith(".m3u8")
    container = _open_once(address, transport, options, _HLS_STALL_S if hls else _STALL_S, quick=not hls)
    if not rtsp and not hls and (container.format.name == "hls" or _is_file(container)):
        # FFmpeg takes its limits before it sees what it gets, and a file deserves a thorough look.
        container.close()
        container = _open_once(address, transport, options, _HLS_STALL_S, quick=False)
    if not container.streams.video:
        container.close()
        raise SourceError(f"expected a video stream at {without_password(address)}, got one without video")
    return container


def _open_once(address: str, transport: str, options: SourceOptions, stall_s: float, *, quick: bool) -> Any:
    settings = dict(_QUICK) if quick else {}
    if address.startswith("rtsp"):
        settings = {**_RTSP, "rtsp_transport": transport, **(_IN_ORDER if transport == "tcp" else {})}
    try:
        return av.open(address, options=settings, timeout=(options.open_timeout_s, options.stall_s or stall_s))
    except av.error.ExitError:
        reason = f"no answer within {options.open_timeout_s:g} s"
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = reason_of(error)
    raise SourceError(
        f"expected a video stream at {without_password(address)}, got: {reason}; check the address, user and password"
        f"{escaping_hint(address)}"
    )  # outside of the handlers: FFmpeg's error has the whole address in it, which a traceback would show


def _is_file(container: Any) -> bool:
    """Whether what was opened has an end: an image, or what knows its duration and is no stream by its nature."""
    name = container.format.name
    return name.endswith("_pipe") or (name not in ("rtsp", "mpjpeg") and bool(container.duration))


def _stall_s(container: Any, options: SourceOptions) -> float:
    return options.stall_s or (_HLS_STALL_S if container.format.name == "hls" else _STALL_S)


def _transport_text(address: str, container: Any, transport: str) -> str:
    scheme = address.partition("://")[0]
    if scheme.startswith("rtsp"):
        return f"{scheme} over {transport}"
    return f"{container.format.name} over {scheme}"


class NetworkStream(Connection):
    """An FFmpeg input that gives frames as they come; JPEG is decoded only when a frame is taken.

    Args:
        container: what was opened; closed here.
        transport: for people.
        stall_s: as in ``SourceOptions``.
        stopping: set when the consumer is gone.
    """

    def __init__(self, container: Any, transport: str, stall_s: float, stopping: threading.Event) -> None:
        self._container = container
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # threads over frames would hold back one frame each
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.stall_s = stall_s
        codec = stream.codec_context
        size = f" {picture_text(codec.width, codec.height, self.fps)}" if codec.width else ""
        self.about = f"{codec.name}{size}, {transport}"
        self._jpeg = av.CodecContext.create("mjpeg", "r") if codec.name == "mjpeg" else None
        self._packets = container.demux(stream)
        self._decoded: deque[av.VideoFrame] = deque()
        # HLS comes a segment at a time, and would otherwise be over before anyone looked at its second frame.
        self._pacer = Pacer(stopping, slip_s=_HLS_SLIP_S) if container.format.name == "hls" else None

    def read(self) -> Received | None:
        """The next frame; for JPEG, its packet."""
        if not self._decoded:
            packet = self._next_packet()
            if self._jpeg is not None:
                return Received(packet, time.perf_counter())
            try:
                self._decoded.extend(packet.decode())
            except av.error.FFmpegError as error:
                raise BadFrame from error
            if not self._decoded:
                return None
        frame = self._decoded.popleft()
        due = self._pacer.wait(float(frame.time)) if self._pacer and frame.time is not None else time.perf_counter()
        return Received(frame, due)

    def finish(self, raw: Any) -> Pixels:
        """Decode a JPEG packet, turn a frame upright."""
        if isinstance(raw, av.VideoFrame):
            return upright(raw)
        assert self._jpeg is not None
        try:
            frames = self._jpeg.decode(raw)
        except av.error.FFmpegError as error:
            raise BadFrame from error
        if not frames:
            raise BadFrame
        pixels: Pixels = frames[0]
        return pixels

    def close(self) -> None:
        """Hang up."""
        self._packets.close()
        self._container.close()

    def _next_packet(self) -> Any:
        try:
            packet = next(self._packets)
        except StopIteration:
            raise Lost("the stream ended") from None
        except av.error.ExitError:
            raise Lost(f"no data for {self.stall_s:g} s") from None
        except av.error.FFmpegError as error:
            raise Lost(reason_of(error)) from None  # FFmpeg's error may have the address in it
        if packet.size == 0:
            raise Lost("the stream ended")
        return packet
