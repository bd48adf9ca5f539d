"""The bytes of a camera's MJPEG stream in, its pictures out, however the camera divides them.

Small cameras leave out the first boundary or all of them, the headers of the parts, or their lengths, or call the
pictures ``image/jpg``. A JPEG says itself where it ends, so nothing of that is needed.
"""

from __future__ import annotations

import errno
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import av
import av.error

from edgeclip.errors import SourceError
from edgeclip.limits import check_limit
from edgeclip.printable import printable
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.base import picture_text
from edgeclip.runtime.sources.jpeg import END, START, JpegDecoder, jpeg_orientation
from edgeclip.runtime.sources.live import BadFrame, Connection, Ended, Lost, Received
from edgeclip.runtime.sources.upright import Upright
from edgeclip.runtime.sources.video import reason_of

_START = START + b"\xff"  # the first marker follows at once
_SCAN = 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in coded data: neither a stuffed byte nor a restart
_BOUNDARY = re.compile(rb"(?:^|\n)(--[^\r\n]{1,200})\r?\n")
_HEAD = 4096  # of text before the first picture
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e]*\Z")


class Splitter:
    """Divides bytes into pictures: each from its start to its end, or, if it is cut, to where the next part begins."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # how far the picture at the front was looked at; 0 before its start was found
        self._coded = False  # whether that lies in coded data, where only a marker ends it
        self._looked = 0  # up to where the boundary was looked for
        self._boundary = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pictures that these bytes complete.

        Raises:
            SourceError: one is larger than it may be.
        """
        self._data += data
        while (picture := self._next()) is not None:
            yield picture
        check_limit("mjpeg_bytes", len(self._data), "an MJPEG stream", error=SourceError)

    def rest(self) -> Iterator[bytes]:
        """What was begun when the bytes ended."""
        if self._at:
            yield bytes(self._data)
        self._take(len(self._data))

    def _next(self) -> bytes | None:
        if not self._at and not self._start():
            return None
        end = self._end()
        return None if end is None else self._take(end)

    def _take(self, end: int) -> bytes:
        taken = bytes(self._data[:end])
        del self._data[:end]
        self._at, self._coded, self._looked = 0, False, 0
        return taken

    def _start(self) -> bool:
        """Put the next picture's start to the front; what lies before it may tell the boundary."""
        start = self._data.find(_START)
        if found := _BOUNDARY.search(self._data[:start] if start >= 0 else self._data):
            self._boundary = b"\n" + found[1].rstrip()
        if start < 0:
            del self._data[:-_HEAD]
            return False
        del self._data[:start]
        self._at = len(START)
        return True

    def _end(self) -> int | None:
        """Where the picture at the front ends, or is cut; None where more bytes are needed to know."""
        data = self._data
        following = data.find(self._boundary, max(len(START), self._looked)) if self._boundary else -1
        self._looked = len(data) - len(self._boundary)
        known = following if following >= 0 else len(data)
        while self._at + 2 <= known:
            if self._coded:
                found = _MARKER.search(data, self._at, known)
                self._at, self._coded = (found.start(), False) if found else (known - 1, True)
                if self._coded:
                    break
            kind = data[self._at + 1]
            if data[self._at] != 0xFF:  # the headers are damaged, or cut
                return self._least(following, data.find(_START, len(START)))
            if kind == END[1]:
                return self._at + 2
            if kind == START[1]:  # another picture begins: this one was cut
                return self._at
            if kind == 0xFF or kind in _ALONE:
                self._at += 1 if kind == 0xFF else 2
            elif self._at + 4 > known:
                break
            else:
                self._at += 2 + int.from_bytes(data[self._at + 2 : self._at + 4], "big")
                self._coded = kind == _SCAN
        return self._least(following)

    @staticmethod
    def _least(*found: int) -> int | None:
        return min((at for at in found if at > 0), default=None)


class MjpegStream(Connection):
    """A camera's MJPEG over HTTP; a picture is decoded only when a frame is taken.

    Args:
        name: for people.
        container: what was opened for its bare bytes; closed here.
        received: the bytes' packets.
        splitter: what was read of them already went in.
        pictures: and came out.
        transport: for people.
        stall_s: as in ``SourceOptions``.
    """

    def __init__(
        self,
        name: str,
        container: Any,
        received: Iterator[bytes],
        splitter: Splitter,
        pictures: Iterable[bytes],
        transport: str,
        stall_s: float,
    ) -> None:
        self._container, self._received, self._splitter = container, received, splitter
        self._pictures = deque(pictures)
        self._jpeg, self._check = JpegDecoder(), JpegDecoder()  # for the consumer, and for the reading thread
        self._upright = Upright(name)
        self.stall_s = stall_s
        try:
            seen = decode(self._check, self._pictures[0])
            size = f" {picture_text(seen.width, seen.height)}"
        except BadFrame:
            size = ""
        self.about = f"mjpeg{size}, mpjpeg over {transport}"

    def read(self) -> Received | None:
        """The next picture, not decoded."""
        if not self._pictures:
            try:
                self._pictures.extend(self._splitter.feed(next(self._received)))
            except (StopIteration, Lost, Ended) as end:
                self._pictures.extend(self._splitter.rest())
                if not self._pictures:
                    raise Ended if isinstance(end, Ended) else Lost(str(end) or "the stream ended") from None
        if not self._pictures:
            return None
        picture = self._pictures.popleft()
        if not picture.endswith(END):  # cut, most likely, and counted whether or not anyone would have taken it
            decode(self._check, picture)
        return Received(picture, time.perf_counter())

    def finish(self, raw: Any) -> Pixels:
        """Decode a picture."""
        return show(self._jpeg, raw, self._upright)

    def close(self) -> None:
        """Hang up."""
        self._container.close()


def decode(decoder: JpegDecoder, picture: Any) -> av.VideoFrame:
    """The frame in a picture's bytes, or in a packet.

    Raises:
        BadFrame: it is none, or a part of one.
    """
    try:
        frames = decoder.decode(picture if isinstance(picture, av.Packet) else av.Packet(picture))
    except av.error.FFmpegError as error:
        raise BadFrame from error
    if not frames:
        raise BadFrame
    return frames[0]


def show(decoder: JpegDecoder, picture: Any, upright: Upright) -> Pixels:
    """As ``decode``, and as it is meant to be seen."""
    frame = decode(decoder, picture)
    upright.note(decoder.codec)
    return upright(frame, jpeg_orientation(bytes(picture)))


def mjpeg_stream(
    name: str, container: Any, transport: str, *, stall_s: float, first_within_s: float
) -> MjpegStream | str:
    """The camera behind an address that was opened for its bare bytes; for anything else, how it begins.

    Args:
        name, transport: for people.
        container: closed here, unless a camera is returned.
        stall_s: as in ``SourceOptions``.
        first_within_s: how long its first picture may take.

    Raises:
        SourceError: what comes is in parts as a camera's, but no JPEG is among them.
    """
    received, splitter = _bytes(container, stall_s), Splitter()
    head, pictures = b"", list[bytes]()
    until = time.perf_counter() + first_within_s
    camera = None
    try:
        while camera is None:
            try:
                data = next(received)
            except (StopIteration, Lost, Ended):
                data = b""
            pictures += splitter.feed(data) if data else splitter.rest()
            head += data if len(head) < _HEAD else b""
            shown = printable(head[:80].decode("latin-1"), lines=False)
            parts = head.lstrip().startswith(b"--")
            if not parts and (container.size > 0 or not _may_be_jpegs(head) or not (data or pictures)):
                return shown
            if pictures:
                camera = MjpegStream(name, container, received, splitter, pictures, transport, stall_s)
            elif not data or time.perf_counter() > until:
                raise SourceError(
                    f"expected pictures from {name}, got a stream in parts without a JPEG in it: it begins with "
                    f"'{shown}'; ask the camera for MJPEG"
                )
    finally:
        if camera is None:
            container.close()
    return camera


def _may_be_jpegs(head: bytes) -> bool:
    """Whether bytes are a JPEG's, with nothing but text before it, or text that such a JPEG may follow."""
    start = head.find(_START)
    text = head[:start] if start >= 0 else head.rstrip(START)
    return len(text) < _HEAD and _TEXT.match(text) is not None


def _bytes(container: Any, stall_s: float) -> Iterator[bytes]:
    sized = container.size > 0
    try:
        for packet in container.demux():
            if packet.size:
                yield bytes(packet)
    except av.error.FFmpegError as error:
        raise Lost(loss_of(error, stall_s)) from None  # FFmpeg's error may have the address in it
    if sized:  # all of a recording
        raise Ended


def loss_of(error: av.error.FFmpegError, stall_s: float) -> str:
    """Why a stream from the network ended, for people."""
    if isinstance(error, av.error.ExitError):
        return f"no data for {stall_s:g} s"
    # FFmpeg's word for an HTTP answer of no stated length that is over
    return "the stream ended" if error.errno == errno.EIO else reason_of(error)
