"""Raw frames on standard input in; the frames out."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterator

import av
import numpy as np

from edgeclip.errors import SourceError
from edgeclip.limits import check_limit
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import RATE, SIDE, one_of, read_options
from edgeclip.runtime.sources.base import Frame, Source, SourceOptions, picture_text
from edgeclip.runtime.sources.live import LiveSource
from edgeclip.runtime.sources.video import SourceConnection

# FFmpeg's pixel formats; bytes of a frame are width x height times the fraction.
_BYTES = {"rgb24": (3, 1), "bgr24": (3, 1), "gray": (1, 1), "yuv420p": (3, 2), "nv12": (3, 2), "yuyv422": (2, 1)}
OPTIONS = {"width": SIDE, "height": SIDE, "format": one_of({name: name for name in _BYTES}), "fps": RATE}


class RawSource(Source):
    """Frames of one size and format from a pipe, one after the other; whoever writes them waits for the reader.

    Args:
        descriptor: of the pipe; left open.
        width, height: pixels.
        pixel_format: one of FFmpeg's names in ``OPTIONS``.
        fps: for the frames' times; None takes the time since the first.

    A frame that is cut short by the end of the pipe counts as failed.

    Raises:
        SourceError: a size that the format cannot have.
    """

    def __init__(self, descriptor: int, width: int, height: int, pixel_format: str, fps: float | None) -> None:
        super().__init__("stdin")
        self._wake_out, self._wake_in = os.pipe()
        numerator, denominator = _BYTES[pixel_format]
        if (pixel_format != "yuyv422" and denominator == 2 and (width % 2 or height % 2)) or (
            pixel_format == "yuyv422" and width % 2
        ):
            raise SourceError(f"expected even width and height for {pixel_format}, got {width}×{height}")
        self.fps = fps
        self._descriptor = descriptor
        self._size = (width, height)
        self._format = pixel_format
        self._bytes = width * height * numerator // denominator
        self._closed = threading.Event()
        self._next: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None
        self._read_at = 0.0
        self._over = False

    def describe(self) -> str:
        """Format, size and rate."""
        return f"{self._format} {picture_text(*self._size, self.fps)}, standard input"

    def ready(self) -> None:
        """Read the next frame, if none is there yet."""
        if self._next is None and not self._over:
            self._next = self._read()
            self._read_at = time.perf_counter()
            self._over = self._next is None

    def __iter__(self) -> Iterator[Frame]:
        index, started = 0, 0.0
        while True:
            self.ready()
            data, self._next = self._next, None
            if data is None:
                break
            started = started or self._read_at
            time_s = index / self.fps if self.fps else self._read_at - started
            yield Frame(index, round(time_s, 6), self._pixels(data), captured=self._read_at)
            index += 1
        if index == 0 and not self._closed.is_set():
            raise SourceError(
                f"expected frames of {self._bytes:,} bytes ({self.describe()}), got the end of it before the first: "
                "check width=, height= and format="
            )

    def close(self) -> None:
        """End a read that waits."""
        if not self._closed.is_set():
            self._closed.set()
            os.write(self._wake_in, b"x")

    def __del__(self) -> None:
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _read(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]] | None:
        data = np.empty(self._bytes, np.uint8)
        view = data.data
        filled = 0
        while filled < self._bytes:
            readable, _, _ = select.select([self._descriptor, self._wake_out], [], [])
            if self._wake_out in readable:
                return None
            count = os.readv(self._descriptor, [view[filled:]])
            if count == 0:
                self.failed += filled > 0
                return None
            filled += count
        return data

    def _pixels(self, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Pixels:
        width, height = self._size
        if self._format == "rgb24":
            return data.reshape(height, width, 3)
        shape = {"bgr24": (height, width, 3), "gray": (height, width), "yuyv422": (height, width, 2)}
        rows = data.reshape(shape.get(self._format, (height * 3 // 2, width)))
        return av.VideoFrame.from_ndarray(rows, format=self._format)


def open_raw(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open standard input: ``-?width=640&height=480&format=rgb24``; ``realtime`` keeps only the latest frame.

    ``stdin?width=…`` is the same, for command lines, which would take the first for an option.

    Raises:
        SourceError: width or height are missing, or an option is wrong.
    """
    given = read_options(text, text.partition("?")[2], OPTIONS)
    if missing := [name for name in ("width", "height") if name not in given]:
        raise SourceError(
            f"expected the size of the frames on standard input, as in 'stdin?width=640&height=480&format=rgb24', got "
            f"{text!r} without {' and '.join(missing)}"
        )
    check_limit("image_pixels", given["width"] * given["height"], "standard input", error=SourceError)
    source = RawSource(
        sys.stdin.fileno(), given["width"], given["height"], given.get("format", "rgb24"), given.get("fps")
    )
    if not realtime:
        return source
    return LiveSource(
        source.name, lambda stopping: SourceConnection(source, stopping, paced=False), options=options, reconnect=False
    )
