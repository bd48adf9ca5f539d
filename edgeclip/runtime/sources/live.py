"""A connection to a camera in; its latest frames out, through losses and stalls.

A thread of the source's own reads as fast as frames come and keeps only the latest, so that a slow consumer sees the
present and not a growing past. What can be left undone for frames that nobody will see (colour conversion, decoding of
JPEG) is done when a frame is taken.

To add a kind of camera: subclass ``Connection`` in a file of its own and fill ``read`` and ``close``.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from edgeclip.errors import SourceError
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.base import Frame, Source, SourceOptions

_log = logging.getLogger("edgeclip")

_STALL_S = 5.0
_CLOSE_WAIT_S = 1.0
_FRUITLESS = 3  # connections without a frame, where there never was one
Item = TypeVar("Item")


class Lost(Exception):
    """The connection gives no frames any more; it may be opened again."""


class Ended(Exception):
    """The stream is over and will not come back."""


class BadFrame(Exception):
    """One frame could not be decoded; the next may be."""


class Received(NamedTuple):
    """What a connection delivers.

    Attributes:
        raw: what ``Connection.finish`` makes pixels of.
        captured: ``time.perf_counter()`` when it was delivered, or due.
        time_s: presentation time, seconds; None for the time since the source was started.
    """

    raw: Any
    captured: float
    time_s: float | None = None


class Connection(ABC):
    """An open camera or stream; all but ``finish`` and ``interrupt`` is called by the reading thread.

    Attributes:
        about: codec, size, rate, transport, for people.
        fps: nominal rate, or None.
        total: number of frames, where the stream is finite.
        stall_s: give up on it when there is no frame for so long, seconds.
    """

    about = ""
    fps: float | None = None
    total: int | None = None
    stall_s = _STALL_S

    @abstractmethod
    def read(self) -> Received | None:
        """Wait for the next frame, ``stall_s`` at most; None where something came that is no whole frame.

        Raises:
            Lost, Ended, BadFrame: see there.
        """

    def finish(self, raw: Any) -> Pixels:
        """What was read, as pixels; called by the consumer, for the frames that it takes.

        Raises:
            BadFrame: it cannot be decoded.
        """
        pixels: Pixels = raw
        return pixels

    def take_failed(self) -> int:
        """How many frames failed since this was last asked, beyond those told by ``BadFrame``."""
        return 0

    def interrupt(self) -> None:  # noqa: B027 - most reads end by themselves soon enough
        """End a ``read`` that waits, if that can be done; called by another thread."""

    @abstractmethod
    def close(self) -> None:
        """Release it."""


Connect: TypeAlias = Callable[[threading.Event], Connection]


class _Pending(NamedTuple):
    number: int
    received: Received
    time_s: float
    connection: Connection


class LiveSource(Source):
    """Frames of a camera or stream, the latest first and only.

    Args:
        name: for people.
        connect: opens the stream; gets an event that is set when the source is closed, to wait with. It is called
            here, so that a wrong address is refused at once, and again after each loss.
        options: patience and waits.
        reconnect: whether a lost stream is opened again.

    ``index`` counts every frame that was delivered, over all connections; ``dropped`` those that were replaced by a
    later one before anyone took them.

    Raises:
        SourceError: it cannot be opened; while iterating: it was lost and is not, or could not be, opened again.
    """

    live = True

    def __init__(self, name: str, connect: Connect, *, options: SourceOptions, reconnect: bool = True) -> None:
        super().__init__(name)
        self._connect = connect
        self._options = options
        self._reconnect = reconnect
        self._stopping = threading.Event()
        self._slot: LatestFrame[_Pending] = LatestFrame()
        self._failed = threading.Lock()  # frames fail in the reading thread and in the consumer's
        self._failure: Exception | None = None
        self._only_bad: bool | None = None  # whether no frame that was taken could be decoded; None before the first
        self._connection: Connection | None = connect(self._stopping)
        self.fps, self.total = self._connection.fps, self._connection.total
        self._about = self._connection.about
        self._starting = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"edgeclip-{name}", daemon=True)
        self.state = "connected"

    def describe(self) -> str:
        """Codec, size, rate and transport of the last connection."""
        return self._about

    def ready(self) -> None:
        """Wait for a frame that was not yet taken, or the end."""
        self._start()
        self._slot.wait()

    def __iter__(self) -> Iterator[Frame]:
        self._start()
        while (pending := self._slot.take()) is not None:
            try:
                pixels = pending.connection.finish(pending.received.raw)
            except BadFrame:
                self._count_failed()
                self._only_bad = self._only_bad is not False
                continue
            self._only_bad = False
            yield Frame(pending.number, pending.time_s, pixels, captured=pending.received.captured)
        if self._failure is not None:
            raise SourceError(f"{self.name} stopped giving frames: {self._failure}") from self._failure

    def close(self) -> None:
        """Stop the reading thread and release the stream.

        A thread that waits inside a library is left behind after a second; it ends with the library's own time limit.
        """
        self._stopping.set()
        self._slot.end()
        connection = self._connection
        if connection is not None:
            connection.interrupt()
        with self._starting:
            started = self._thread.ident is not None
            if not started:
                self._release()
            again, self._closed = self._closed, True
        if started and not again and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_WAIT_S)

    def _start(self) -> None:
        if self.process != os.getpid():
            raise SourceError(
                f"expected a source of this process, got {self.name}, opened before a fork: open it after"
            )
        with self._starting:
            if self._thread.ident is None and not self._stopping.is_set():
                self._thread.start()

    def fail(self, name: str, reason: str) -> None:
        """As ``Source.fail``; called by the consumer, while the reading thread counts too."""
        with self._failed:
            super().fail(name, reason)

    def _count_failed(self, count: int = 1) -> None:
        with self._failed:
            self.failed += count

    # The reading thread.

    def _run(self) -> None:
        try:
            self._follow()
        except Ended:
            pass
        except Exception as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._failure = error
        finally:
            self._release()
            self.state = "ended" if self._failure is None else "failed"
            self._slot.end()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _follow(self) -> None:
        """Deliver frames; after a loss wait, open again and go on, until closed or out of patience."""
        started = last = time.perf_counter()  # last: when there was a frame, or the first connection
        index = 0
        attempts = 0  # since there was a frame
        fruitless = 0  # connections before the first frame that could be decoded
        while not self._stopping.is_set():
            try:
                if self._connection is None:
                    self._open_again()
                    opened = time.perf_counter()
                else:
                    opened = started
                assert self._connection is not None
                for received in self._receive(self._connection, opened):
                    self.reconnects += attempts > 0
                    attempts = 0
                    last = time.perf_counter()
                    self.state = "streaming"
                    time_s = received.time_s if received.time_s is not None else last - started
                    self._slot.put(_Pending(index, received, round(time_s, 6), self._connection))
                    self.dropped = self._slot.dropped
                    index += 1
            except (Lost, SourceError) as loss:
                self._release()
                if self._stopping.is_set():
                    return
                if not self._reconnect:
                    raise
                fruitless += isinstance(loss, Lost) and (index == 0 or self._only_bad is True)
                if fruitless == _FRUITLESS:
                    raise SourceError(f"no whole frame came in {_FRUITLESS} connections ({loss})") from loss
                self._wait(loss, attempts, time.perf_counter() - last)
                attempts += 1

    def _receive(self, connection: Connection, opened: float) -> Iterator[Received]:
        last = opened
        while not self._stopping.is_set():
            try:
                received = connection.read()
            except BadFrame:
                self._count_failed()
                received = None
            finally:
                self._count_failed(connection.take_failed())
            if received is not None:
                yield received
                last = time.perf_counter()
            elif time.perf_counter() - last > connection.stall_s:
                raise Lost(f"no frame for {connection.stall_s:g} s")

    def _open_again(self) -> None:
        self.state = "connecting"
        self._connection = self._connect(self._stopping)
        self._about = self._connection.about

    def _wait(self, loss: Exception, attempts: int, lost_s: float) -> None:
        """Wait before the next attempt: twice as long as before it, less a random part so that cameras spread."""
        give_up_s = self._options.give_up_s
        if give_up_s is not None and lost_s >= give_up_s:
            raise SourceError(f"lost for {lost_s:.1f} s, given up after {give_up_s:g} s ({loss})") from loss
        first, longest = self._options.backoff_s
        wait_s = min(longest, first * 2.0 ** min(attempts, 30)) * random.uniform(0.5, 1.0)
        if give_up_s is not None:
            wait_s = min(wait_s, give_up_s - lost_s)
        if attempts == 0:
            _log.warning("%s is lost (%s); trying again", self.name, loss)
        self.state = f"lost, trying again in {wait_s:.1f} s"
        self._stopping.wait(wait_s)


class LatestFrame(Generic[Item]):
    """Holds the latest item only, and counts those that nobody took in time.

    Attributes:
        dropped: items that were replaced before anyone took them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._ended = False
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Offer an item; it goes nowhere once the stream has ended."""
        with self._changed:
            if self._ended:
                return
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()

    def end(self) -> None:
        """No more items will come; one that is still there can be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for an item or the end."""
        with self._changed:
            self._changed.wait_for(self._there)

    def take(self) -> Item | None:
        """The latest item, waiting for it if need be; None once the stream has ended."""
        with self._changed:
            self._changed.wait_for(self._there)
            item, self._item = self._item, None
            return item

    def _there(self) -> bool:
        return self._item is not None or self._ended
