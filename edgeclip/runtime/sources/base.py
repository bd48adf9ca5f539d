"""What the loop reads from: a frame with its time, a source of frames, and the rare knobs of opening one."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

import av

from edgeclip.errors import InputError
from edgeclip.forked import leave_alone_in_child
from edgeclip.runtime.images import Image
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.records import Failed

_log = logging.getLogger("edgeclip")

_MOST_NAMED = 1000


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    Attributes:
        index: position in the source, from 0; dropped frames have their number too.
        time_s: presentation time in a video, seconds since the start for a camera, 0 for an image.
        pixels: (H, W, 3) uint8 RGB, or the decoder's frame, which is converted only where that is asked for.
        file: name of the image file, in a folder of images.
        captured: ``time.perf_counter()`` when the frame was there: decoded, delivered by a camera, or due.
    """

    index: int
    time_s: float
    pixels: Pixels
    file: str | None = None
    captured: float = field(default_factory=time.perf_counter)

    def rgb(self) -> Image:
        """The frame as (H, W, 3) uint8 RGB."""
        if isinstance(self.pixels, av.VideoFrame):
            image: Image = self.pixels.to_ndarray(format="rgb24")
            return image
        return self.pixels


@dataclass(frozen=True)
class SourceOptions:
    """Rare knobs of opening a source; those of live sources do nothing for files.

    Attributes:
        loop: play a video file so many times; 0 for ever.
        decode_threads: threads of the decoder of a video file; 0 lets FFmpeg choose.
        open_timeout_s: how long opening a network stream, or opening it again, may take.
        stall_s: a live source that gives no frame for so long counts as lost; None for 5 s (20 s for HLS, which
            comes in segments).
        reconnect: whether a live source that was lost is opened again; None for yes, but not for a GStreamer pipeline.
        give_up_s: a live source that has been lost for so long ends the run with an error; None tries for ever.
        backoff_s: the first and the longest wait before opening again; it doubles between them, less up to a half.
    """

    loop: int = 1
    decode_threads: int = 0
    open_timeout_s: float = 10.0
    stall_s: float | None = None
    reconnect: bool | None = None
    give_up_s: float | None = None
    backoff_s: tuple[float, float] = (0.5, 30.0)


class Source(ABC):
    """Frames to iterate over once, inside a ``with`` block.

    Attributes:
        name: for people; may be set, so that the names of a run's sources are unique.
        live: whether frames come at their own pace.
        fps: nominal frames a second, or None.
        total: number of frames, where it is known.
        dropped: frames that a live source had and that were replaced before anyone took them.
        failed: frames or files that could not be decoded, or are too small.
        failures: the first thousand of them that have a name, and why.
        reconnects: times that a live source was lost and came back.
        state: what a live source is doing, for people.
        process: id of the process that opened it; no other can read it.
    """

    live = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = os.getpid()
        leave_alone_in_child(self)
        self.fps: float | None = None
        self.total: int | None = None
        self.dropped = 0
        self.failed = 0
        self.failures: list[Failed] = []
        self.reconnects = 0
        self.state = ""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def fail(self, name: str, reason: str) -> None:
        """Count a frame or file that cannot be used, and keep its name; the first one is told."""
        self.failed += 1
        if not self.failures:
            _log.warning("%s: %s is passed over: %s", self.name, name, reason)
        if len(self.failures) < _MOST_NAMED:
            self.failures.append(Failed(name, reason))

    def describe(self) -> str:
        """One line for people: what it is, size, rate, transport."""
        return self.name

    def ready(self) -> None:  # noqa: B027 - only a source that frames are waited for has to be waited for
        """Wait until the next frame can be taken without waiting, or the stream has ended.

        The loop calls it before it asks for a place in the encoder, so that a silent camera holds no place.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Release files and devices; a live source stops its thread. Any thread may call it."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process == os.getpid():
            self.close()


def limited(source: Source, limit: int | None) -> Iterator[Frame]:
    """The first ``limit`` frames of a source, or all of them.

    Raises:
        InputError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected limit of at least 1, got {limit}")
    for taken, frame in enumerate(source, start=1):
        yield frame
        if taken == limit:
            return


def picture_text(width: int, height: int, fps: float | None = None) -> str:
    """``1920×1080 at 30 fps``, for people."""
    return f"{width}×{height}" + (f" at {fps:.4g} fps" if fps else "")
