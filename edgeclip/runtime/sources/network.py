"""An RTSP or HTTP address in; a live source, or a file that is read over the network, out."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

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
from edgeclip.runtime.sources.jpeg import JpegDecoder
from edgeclip.runtime.sources.live import BadFrame, Connection, Ended, LiveSource, Lost, Received
from edgeclip.runtime.sources.mjpeg import MjpegStream, loss_of, mjpeg_stream, show
from edgeclip.runtime.sources.upright import Upright
from edgeclip.runtime.sources.video import Pacer, SourceConnection, VideoSource, reason_of, video_stream

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
_BARE = {"probesize": "32", "analyzeduration": "0", "raw_packet_size": "65536"}  # FFmpeg's demuxer "data"
_IN_ORDER = {"reorder_queue_size": "0", "max_delay": "0"}  # TCP has nothing to reorder


class _Place(NamedTuple):
    """Where a stream is, and how to open it.

    Attributes:
        name: for people.
        address: without our options.
        transport: of RTSP.
        options: those in the text applied.
    """

    name: str
    address: str
    transport: str
    options: SourceOptions

    @property
    def hls(self) -> bool:
        """Whether it is named like a playlist."""
        return re.split("[?#]", self.address)[0].endswith(".m3u8")

    @property
    def scheme(self) -> str:
        """``rtsp``, ``http`` and so on."""
        return self.address.partition("://")[0]


def open_network(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open ``rtsp://``, ``rtsps://``, ``http://`` or ``https://``, with options after ``#``.

    Returns:
        A live source; over HTTP a ``VideoSource`` if what is there has an end (a file, a finished HLS playlist).

    Raises:
        SourceError: nothing can be opened there, or it is no video.
    """
    address, query = without_fragment(text)
    given = read_options(text, query, OPTIONS)
    options = replace(
        options,
        stall_s=given.get("stall", options.stall_s),
        give_up_s=given.get("give_up", options.give_up_s),
        open_timeout_s=given.get("timeout", options.open_timeout_s),
    )
    place = _Place(short_name(address), address, given.get("transport", "tcp"), options)
    camera: MjpegStream | str = ""
    sized = False
    if place.scheme.startswith("http") and not place.hls:
        camera, sized = _open_mjpeg(place)
    container: Any = None
    if isinstance(camera, str):
        container = _open(place, sized=sized, begins=camera)
        if sized or _is_file(container):
            return _file(place, container, realtime, sized=sized)
    waiting = [container or camera]
    once = _Once()

    def connect(stopping: threading.Event) -> Connection:
        if isinstance(camera, MjpegStream):
            again = waiting.pop() if waiting else _open_mjpeg(place)[0]
            if isinstance(again, MjpegStream):
                return again
            raise SourceError(f"{place.name} sent MJPEG before, and now what begins with '{again}'")
        opened: Any = waiting.pop() if waiting else _open(place)
        if _is_file(opened):
            opened.close()
            raise Ended  # a live HLS playlist that was finished while we read it
        checked = place.scheme.startswith("http") and opened.format.name != "hls" and options.reconnect is None
        return NetworkStream(place, opened, stopping, once.begins if checked else None)

    return LiveSource(place.name, connect, options=options, reconnect=options.reconnect is not False)


def _file(place: _Place, container: Any, realtime: bool, *, sized: bool) -> Source:
    video = VideoSource(
        place.name,
        place.address,
        place.options,
        container=container,
        open_again=lambda: _open(place, sized=sized),
    )
    if not realtime:
        return video
    return LiveSource(
        place.name,
        lambda stopping: SourceConnection(video, stopping, paced=True),
        options=place.options,
        reconnect=False,
    )


class _Once:
    """Tells a file from a camera where a server states no length: opened again, it begins with the same bytes."""

    def __init__(self) -> None:
        self._first: bytes | None = None

    def begins(self, first: bytes) -> None:
        """Take what a connection began with.

        Raises:
            Ended: one began so before.
        """
        if first == self._first:
            raise Ended
        self._first = first


def _open_mjpeg(place: _Place) -> tuple[MjpegStream | str, bool]:
    """The MJPEG camera at an HTTP address, or how what is there begins; and whether the server states a length."""
    container = _open_once(place, _STALL_S, _BARE, container_format="data")
    sized = container.size > 0
    stall_s = place.options.stall_s or _STALL_S
    first_within_s = max(stall_s, place.options.open_timeout_s)
    return mjpeg_stream(place.name, container, place.scheme, stall_s=stall_s, first_within_s=first_within_s), sized


def _open(place: _Place, *, sized: bool = False, begins: str = "") -> Any:
    """What is there, with a video in it.

    Args:
        sized: whether the server stated a length.
        begins: how it was seen to begin, for the error.
    """
    if place.scheme.startswith("rtsp"):
        in_order = _IN_ORDER if place.transport == "tcp" else {}
        container = _open_once(place, _STALL_S, {**_RTSP, "rtsp_transport": place.transport, **in_order})
    elif place.hls or sized:
        container = _open_once(place, _HLS_STALL_S, {}, begins=begins)
    else:
        container = _open_once(place, _STALL_S, _QUICK, begins=begins)
        if container.format.name == "hls" or _is_file(container):
            # FFmpeg takes its limits before it sees what it gets, and a file deserves a thorough look.
            container.close()
            container = _open_once(place, _HLS_STALL_S, {})
    try:
        video_stream(container, without_password(place.address))
    except SourceError:
        container.close()
        raise
    return container


def _open_once(
    place: _Place,
    stall_s: float,
    settings: dict[str, str],
    *,
    container_format: str | None = None,
    begins: str = "",
) -> Any:
    options = place.options
    limits = (options.open_timeout_s, options.stall_s or stall_s)
    try:
        return av.open(place.address, format=container_format, options=dict(settings), timeout=limits)
    except av.error.ExitError:
        reason = f"no answer within {options.open_timeout_s:g} s"
    except av.error.FFmpegError as error:
        reason = loss_of(error, limits[1])
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    came = f" from what begins with '{begins}'" if begins else ""
    raise SourceError(
        f"expected a video stream at {without_password(place.address)}, got: {reason}{came}; check the address, user "
        f"and password{escaping_hint(place.address)}"
    )  # outside of the handlers: FFmpeg's error has the whole address in it, which a traceback would show


def _is_file(container: Any) -> bool:
    """Whether what was opened has an end: an image, or what knows its duration and is no stream by its nature."""
    name = container.format.name
    return name.endswith("_pipe") or (name not in ("rtsp", "mpjpeg") and bool(container.duration))


def _stall_s(container: Any, options: SourceOptions) -> float:
    return options.stall_s or (_HLS_STALL_S if container.format.name == "hls" else _STALL_S)


def _transport_text(place: _Place, container: Any) -> str:
    if place.scheme.startswith("rtsp"):
        return f"{place.scheme} over {place.transport}"
    return f"{container.format.name} over {place.scheme}"


class NetworkStream(Connection):
    """An FFmpeg input that gives frames as they come; JPEG is decoded only when a frame is taken.

    Args:
        place: what was opened.
        container: closed here.
        stopping: set when the consumer is gone.
        begins: takes the first packet's bytes; may raise ``Ended``.
    """

    def __init__(
        self,
        place: _Place,
        container: Any,
        stopping: threading.Event,
        begins: Callable[[bytes], None] | None,
    ) -> None:
        self._container = container
        self._begins = begins
        self._stream = stream = video_stream(container, place.name)
        stream.thread_type = "SLICE"  # threads over frames would hold back one frame each
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.stall_s = _stall_s(container, place.options)
        codec = stream.codec_context
        size = f" {picture_text(codec.width, codec.height, self.fps)}" if codec.width else ""
        self.about = f"{codec.name}{size}, {_transport_text(place, container)}"
        self._jpeg = JpegDecoder() if codec.name == "mjpeg" else None
        self._upright = Upright(place.name, stream)
        self._packets = container.demux(stream)
        self._decoded: deque[av.VideoFrame] = deque()
        self._lost: Lost | None = None
        # HLS comes a segment at a time, and would otherwise be over before anyone looked at its second frame.
        self._pacer = Pacer(stopping, slip_s=_HLS_SLIP_S) if container.format.name == "hls" else None

    def read(self) -> Received | None:
        """The next frame; for JPEG, its packet."""
        if not self._decoded:
            packet = self._next_packet()
            if packet is not None and packet.size == 0:
                return None
            if packet is not None and self._begins is not None:
                begins, self._begins = self._begins, None
                begins(bytes(packet))
            if packet is not None and self._jpeg is not None:
                return Received(packet, time.perf_counter())
            self._decode(packet)
            if not self._decoded:
                return None
        frame = self._decoded.popleft()
        due = self._pacer.wait(float(frame.time)) if self._pacer and frame.time is not None else time.perf_counter()
        return Received(frame, due)

    def finish(self, raw: Any) -> Pixels:
        """Decode a JPEG packet, turn a frame upright."""
        if isinstance(raw, av.VideoFrame):
            return self._upright(raw)
        assert self._jpeg is not None
        return show(self._jpeg, raw, self._upright)

    def close(self) -> None:
        """Hang up."""
        self._packets.close()
        self._container.close()

    def _next_packet(self) -> Any | None:
        """None once when the stream is over: frames are still in the decoder."""
        if self._lost is not None:
            raise self._lost
        try:
            packet = next(self._packets)
        except StopIteration:
            self._lost = Lost("the stream ended")
        except av.error.FFmpegError as error:  # it may have the address in it, and is not handed on
            self._lost = Lost(loss_of(error, self.stall_s))
        else:
            if packet.size or packet.dts is not None:
                return packet
            self._lost = Lost("the stream ended")  # PyAV's last packet
        return None

    def _decode(self, packet: Any | None) -> None:
        try:
            self._decoded.extend(packet.decode() if packet is not None else self._stream.decode(None))
        except av.error.FFmpegError as error:
            if packet is not None:
                raise BadFrame from error
        finally:
            self._upright.note(self._stream.codec_context)
