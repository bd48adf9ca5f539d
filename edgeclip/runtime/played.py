"""A video file or a pipe in; its frames as a camera would have delivered them out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from edgeclip.runtime.frames import Frame, Source
from edgeclip.runtime.live import Connection, Ended, Shot


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


class Played(Connection):
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

    def read(self) -> Shot | None:
        """The next frame, when it is due."""
        frame = next(self._frames, None)
        if frame is None:
            raise Ended
        captured = self._pacer.wait(frame.time_s) if self._pacer else frame.captured
        return Shot(frame.pixels, captured, frame.time_s)

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
