"""Labelled frames handed to a thread of each sink's own, so that a slow or dead sink never stalls the loop.

To add a sink: subclass ``Sink`` in a file of its own and fill ``write``; ``open`` and ``close`` as needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeclipError
from edgeclip.runtime.account import Account
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.regions import Region
from edgeclip.runtime.sources.base import Frame, Source
from edgeclip.runtime.tables import TableSet

_log = logging.getLogger("edgeclip")

_QUEUED_RECORDS = 1024
_QUEUED_FRAMES = 4  # with their pixels: a 1080p frame is 3 MB
_LONGEST_SLUG = 80
_STUCK_S = 30.0  # a sink that is waited for and takes nothing for so long hangs
_END_STUCK_S = 1.0  # one that was waited for in vain already
_LOOK_S = 0.1
_END_S = 10.0
_END_WAITED_FOR_S = 60.0  # such a sink may have work queued that must not be lost


@dataclass(frozen=True)
class Run:
    """What a sink may know of the run it belongs to, and may ask of it.

    Attributes:
        bundle: the opened bundle.
        sources: the sources, in order; names are unique.
        tables: the prompt tables in use; they can be replaced at any time.
        account: counts so far; only to be read.
        stop: ends the run as the end of the streams would.
        regions: what is labelled in each frame, in the order of a record's views.
    """

    bundle: Bundle
    sources: tuple[Source, ...]
    tables: TableSet
    account: Account
    stop: Callable[[], None]
    regions: tuple[Region, ...] = ()

    @property
    def live(self) -> bool:
        """Whether any source comes at its own pace."""
        return any(source.live for source in self.sources)


class Sink(ABC):
    """Takes labelled frames, one at a time, in the order in which they were labelled, all on one thread.

    Attributes:
        name: for people; unique in a run.
        wants_pixels: whether ``write`` gets the frame beside the record; frames are large, so few sinks should.
        lossless: whether files wait for this sink when it is slow, rather than going on without it; for sinks that
            write to this machine. Live sources never wait.
        only_shows: whether a run whose other sinks have all failed does not go on for this one's sake.
        hurried_s: how long one step may take once the run was interrupted, seconds: whoever asked it to end waits.
    """

    name: str
    wants_pixels: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    only_shows: ClassVar[bool] = False
    hurried_s: ClassVar[float] = 6.0

    def open(self, run: Run) -> None:  # noqa: B027 - most sinks open nothing
        """Called once before the first frame, on the thread that starts the run.

        Raises:
            EdgeclipError: the sink cannot be used at all; the run does not start.
        """

    @abstractmethod
    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        """Take one record; ``frame`` only if ``wants_pixels``. An exception ends the sink, not the run."""

    def end(self, source: str, events: list[Event], reason: str) -> None:  # noqa: B027 - most sinks care for frames only
        """A source ended: ``events`` are what left with it, ``reason`` is why if it ended badly, and else empty."""

    def close(self, *, complete: bool) -> None:  # noqa: B027 - most sinks hold nothing
        """Called once after the last frame; ``complete`` is False if the run or this sink failed."""


class SinkThread:
    """One sink behind a bounded queue and a thread.

    Args:
        sink: opened here.
        run: what the sink belongs to.

    A full queue drops the record, counted in ``account.sink_dropped``; a lossless sink is waited for where no source
    is live, as long as it takes anything at all. A sink that raises, or that is waited for in vain, is dead: it is
    closed, its first reason goes to ``account.sink_failed``, and what comes later is passed over.

    Raises:
        EdgeclipError: the sink cannot be opened.
    """

    def __init__(self, sink: Sink, run: Run) -> None:
        self.sink = sink
        self._account = run.account
        self._waits = sink.lossless and not run.live
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(
            _QUEUED_FRAMES if sink.wants_pixels else _QUEUED_RECORDS
        )
        self._dead = threading.Event()
        self._ending = threading.Event()
        self._complete = True
        self._stuck = False
        self._steps = 0  # that it has done, so that one that is slow is told from one that hangs
        sink.open(run)
        self._thread = threading.Thread(target=self._work, name=f"edgeclip-sink-{sink.name}", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        """Whether it failed, and takes nothing more."""
        return self._dead.is_set()

    def put(self, labelled: LabelledFrame, frame: Frame) -> None:
        """Hand over a record; see the class for what happens when the sink cannot take it."""
        self._put(partial(self.sink.write, labelled, frame if self.sink.wants_pixels else None))

    def end(self, source: str, events: list[Event], reason: str) -> None:
        """Say that a source ended, as ``Sink.end``."""
        self._put(partial(self.sink.end, source, events, reason))

    def close(self, *, complete: bool, timeout_s: float | None = None) -> None:
        """Let the sink take what is queued and close it; one that does not come to an end is left behind.

        Args:
            complete: whether the run came to its end.
            timeout_s: how long to wait; by default longer for a sink that is waited for.
        """
        close_sinks([self], complete=complete, timeout_s=timeout_s)

    def _put(self, task: Callable[[], None]) -> None:
        if self._dead.is_set():
            return
        patience = _Patience(self, _STUCK_S)
        while True:
            try:
                self._queue.put(task, block=self._waits, timeout=_LOOK_S)
                return
            except queue.Full:
                if not self._waits:
                    self._account.sink_dropped[self.sink.name] += 1
                    return
                if patience.is_over():
                    self._stuck = True
                    self._fail(f"took nothing for {patience.waited_s:g} s")
                    return

    def _limit_s(self) -> float:
        """How long its end may take."""
        if self._stuck:
            return _END_STUCK_S
        return _END_WAITED_FOR_S if self._waits else _END_S

    def _ask_to_end(self, *, complete: bool) -> None:
        self._complete = complete
        self._ending.set()
        with contextlib.suppress(queue.Full):  # then it is not waiting for a task, and will see that it shall end
            self._queue.put_nowait(None)

    def _wait_for_end(self, *, deadline: float, patience: _Patience) -> None:
        while self._thread.is_alive():
            left_s = deadline - time.perf_counter()
            if left_s <= 0 or patience.is_over():
                self._fail(f"did not end within {patience.waited_s:g} s")
                return
            self._thread.join(min(left_s, _LOOK_S))

    def _work(self) -> None:
        closed = False
        while (task := self._next()) is not None:
            if not self._dead.is_set():
                self._do(task)
            if self._dead.is_set() and not closed:
                closed = True
                self._do(partial(self.sink.close, complete=False))
        if not closed:
            self._do(partial(self.sink.close, complete=self._complete and not self._dead.is_set()))

    def _next(self) -> Callable[[], None] | None:
        return None if self._ending.is_set() and self._queue.empty() else self._queue.get()

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
            self._steps += 1
        except Exception as error:  # noqa: BLE001 - a sink's fault must not become the loop's
            self._fail(_reason(error))

    def _fail(self, reason: str) -> None:
        self._dead.set()
        if self._account.sink_failed.setdefault(self.sink.name, reason) is reason:
            _log.warning("%s stopped: %s", self.sink.name, reason)


class _Patience:
    """How long a sink that takes nothing is waited for: less once the run was interrupted."""

    def __init__(self, sink: SinkThread, most_s: float) -> None:
        self._sink = sink
        self._most_s = most_s
        self._interrupted = sink._account.interrupted
        self._start_again()

    @property
    def waited_s(self) -> float:
        """How long it would be waited for."""
        return min(self._most_s, self._sink.sink.hurried_s) if self._interrupted else self._most_s

    def is_over(self) -> bool:
        if self._sink._steps != self._steps or self._sink._account.interrupted != self._interrupted:
            self._interrupted = self._sink._account.interrupted
            self._start_again()
        return time.perf_counter() - self._since > self.waited_s

    def _start_again(self) -> None:
        self._since = time.perf_counter()
        self._steps = self._sink._steps


def close_sinks(sinks: Sequence[SinkThread], *, complete: bool, timeout_s: float | None = None) -> None:
    """Close sinks beside each other, so that several that hang take no longer than one; see ``SinkThread.close``.

    None of this raises: what a sink says against it goes to ``account.sink_failed``.
    """
    start = time.perf_counter()
    limits = [timeout_s or sink._limit_s() for sink in sinks]
    for sink in sinks:
        sink._ask_to_end(complete=complete)
    patience = [_Patience(sink, limit) for sink, limit in zip(sinks, limits, strict=True)]
    for sink, limit, own in zip(sinks, limits, patience, strict=True):
        sink._wait_for_end(deadline=start + limit, patience=own)


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Names fit for files, topics and identifiers, by the name that each stands for, whatever their order.

    They are of letters, digits, ``.``, ``_`` and ``-`` only, of 80 at most, never empty, never twice, also where
    capitals do not count: those that would be alike end in a hash of their name.

    >>> slugs(["yard", "front door"])
    {'yard': 'yard', 'front door': 'front_door'}
    >>> slugs(["front_door", "front door"])
    {'front_door': 'front_door', 'front door': 'front_door-7279998f9446'}
    """
    plain = {name: slug(name) for name in names}
    alike = Counter(short.casefold() for short in plain.values())
    kept = {name for name, short in plain.items() if alike[short.casefold()] == 1 or name == short.casefold()}
    used = {plain[name].casefold() for name in kept}
    made: dict[str, str] = {}
    for name, short in plain.items():
        own = short if name in kept else hashed(short, name)
        if name not in kept:
            while own.casefold() in used:  # somebody has called another one just so
                own = hashed(own, name)
            used.add(own.casefold())
        made[name] = own
    return made


def slug(name: str) -> str:
    """A name with everything replaced that is not fit for files, topics and identifiers; others may become the same."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.")[:_LONGEST_SLUG] or "unnamed"


def hashed(short: str, *names: str) -> str:
    """A slug that only these names have: the short form with a hash of them all."""
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{short[:_LONGEST_SLUG]}-{digest[:12]}"


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, EdgeclipError) else f"{type(error).__name__}: {error}"
