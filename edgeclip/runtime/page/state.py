"""Labelled frames in from the sink's thread; what viewers of the live page have not yet seen out, in the server's loop.

Nothing here grows with the number or the slowness of viewers: a viewer is a place in what is kept, and one that falls
behind finds the latest record, not a queue of old ones.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import anyio
import msgspec

from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.records import Event, LabelledFrame, View
from edgeclip.runtime.sinks.base import Run
from edgeclip.runtime.sources.base import Frame

HISTORY_S = 60.0  # what the plots of the page show
_HISTORY_GAP_S = 0.25
_KEPT_EVENTS = 500
_KEPT_TOP = 10
_FAILURES = 20


class TimedRecord(msgspec.Struct, frozen=True):
    """A record with when it came; ``at_s`` are seconds since the page was opened."""

    at_s: float
    source: str
    record: LabelledFrame


class TimedEvent(msgspec.Struct, frozen=True):
    """An event with its number in the run, from 1, and when it came; ``at_s`` as of a record."""

    number: int
    at_s: float
    event: Event


class LoopSample(msgspec.Struct, frozen=True):
    """The loop over one second: labelled, dropped and gated frames a second, and how long frames took to their label.

    ``p50_ms`` and ``p99_ms`` are None for a second without a labelled frame.
    """

    at_s: float
    fps: float
    dropped: float
    gated: float
    p50_ms: float | None
    p99_ms: float | None


class Totals(msgspec.Struct, frozen=True):
    """The account of the run so far."""

    elapsed_s: float
    fps: float
    sources: dict[str, SourceCount]
    total: SourceCount
    events: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    sink_dropped: dict[str, int]
    sink_failed: dict[str, str]


class RunEnd(msgspec.Struct, frozen=True):
    """How the run ended; ``interrupted`` by Ctrl-C or SIGTERM, ``complete`` unless something failed."""

    complete: bool
    interrupted: bool


class Bell:
    """Wakes the waiting coroutines of one event loop, from any thread; rings in quick succession are one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self._waiting = 0
        self._under_way = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake coroutines of this loop from now on; called in it."""
        self._loop = loop

    def ring(self) -> None:
        """Let those who wait look again; costs nothing while nobody does."""
        if self._loop is None or self._under_way or not self._waiting:
            return
        self._under_way = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the server has stopped, and with it everyone who could have waited
            self._loop = None

    def _wake(self) -> None:
        self._under_way = False
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, changed: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until ``changed()``, at most that long; whether it is."""
        self._waiting += 1  # before looking: what changes after this look rings
        try:
            with anyio.move_on_after(timeout_s):
                while not changed():
                    await self._event.wait()
        finally:
            self._waiting -= 1
        return changed()


@dataclass
class Latest:
    """The latest of one source: its record and frame, how many there were, and why it ended ('' if it ended well)."""

    count: int = 0
    record: TimedRecord | None = None
    frame: Frame | None = None
    ended: str | None = None
    history: deque[TimedRecord] = field(default_factory=deque)
    _encoded: tuple[int, bytes] = (0, b"")

    def json(self) -> bytes:
        """The latest record as JSON, made once for all viewers."""
        count, record = self.count, self.record
        if self._encoded[0] != count:
            self._encoded = (count, msgspec.json.encode(record))
        return self._encoded[1]


class PageState:
    """What the page shows of one run.

    Attributes:
        run: whose frames these are.
        bell: rings when anything changed.
        sources: the latest of each source, in the order of the run.
        events, samples: the latest of them.
        version: grows with every change.
        event_count: how many events there were.
        ended: how the run ended; None while it goes on.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.bell = Bell()
        self.sources = {source.name: Latest() for source in run.sources}
        self.events: deque[TimedEvent] = deque(maxlen=_KEPT_EVENTS)
        self.samples: deque[LoopSample] = deque(maxlen=round(HISTORY_S) + 1)
        self.version = 0
        self.event_count = 0
        self.ended: RunEnd | None = None
        self._writing = threading.Lock()
        self._account = run.account
        self._opened = time.perf_counter()  # not the account's start, which is set anew when frames begin to flow
        self._before = (self._opened, 0, 0, 0)

    # From the sink's thread

    def add(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        """Take the latest record and frame of a source."""
        latest = self._latest(labelled.source)
        at_s = self.now_s()
        record = TimedRecord(at_s, labelled.source or next(iter(self.sources)), _trimmed(labelled))
        with self._writing:
            latest.frame, latest.record = frame, record
            latest.count += 1
            if not latest.history or at_s - latest.history[-1].at_s >= _HISTORY_GAP_S:
                latest.history.append(record)
                while at_s - latest.history[0].at_s > HISTORY_S:
                    latest.history.popleft()
        self._changed(labelled.events)

    def end_source(self, source: str, events: list[Event], reason: str) -> None:
        """Take that a source ended, with the events that came with its end."""
        self._latest(source).ended = reason
        self._changed(events)

    def finish(self, *, complete: bool) -> None:
        """Take that the run is over."""
        self.ended = RunEnd(complete, self._account.interrupted)
        self._changed([])

    def _latest(self, source: str) -> Latest:
        return self.sources[source or next(iter(self.sources))]

    def _changed(self, events: list[Event]) -> None:
        at_s = self.now_s()
        with self._writing:
            for event in events:
                self.event_count += 1
                self.events.append(TimedEvent(self.event_count, at_s, event))
            self.version += 1
        self.bell.ring()

    # From the server's loop

    def now_s(self) -> float:
        """Seconds since the page was opened."""
        return round(time.perf_counter() - self._opened, 3)

    def newer_than(self, version: int) -> bool:
        """Whether anything changed since that version."""
        return self.version != version

    def events_after(self, number: int) -> list[TimedEvent]:
        """The events after that one, as far as they are kept, oldest first."""
        with self._writing:
            return [event for event in self.events if event.number > number]

    def history(self) -> list[TimedRecord]:
        """Records of the last minute, thinned, oldest first within each source."""
        with self._writing:
            return [record for latest in self.sources.values() for record in latest.history]

    def sample(self) -> None:
        """Look at what the loop did since the last call; to be called once a second."""
        account, now = self._account, time.perf_counter()
        labelled, dropped, gated = account.labelled, account.dropped, account.gated
        then, labelled_then, dropped_then, gated_then = self._before
        self._before = (now, labelled, dropped, gated)
        seconds = max(now - then, 1e-3)
        new = labelled - labelled_then
        times = list(account.latency_ms)[-new:] if new else []
        self.samples.append(
            LoopSample(
                at_s=self.now_s(),
                fps=round(new / seconds, 2),
                dropped=round((dropped - dropped_then) / seconds, 2),
                gated=round((gated - gated_then) / seconds, 2),
                p50_ms=round(Account.percentile(times, 50), 2) if times else None,
                p99_ms=round(Account.percentile(times, 99), 2) if times else None,
            )
        )
        self._changed([])

    def totals(self) -> Totals:
        """The account as it is now."""
        account = self._account
        elapsed_s = account.elapsed_s or time.perf_counter() - account.started
        sources = {
            name: replace(count, failures=count.failures[:_FAILURES]) for name, count in dict(account.sources).items()
        }
        return Totals(
            elapsed_s=round(elapsed_s, 3),
            fps=round(account.labelled / max(elapsed_s, 1e-3), 2),
            sources=sources,
            total=_sum(list(sources.values())),
            events=account.events,
            p50_ms=round(Account.percentile(account.latency_ms, 50), 2),
            p90_ms=round(Account.percentile(account.latency_ms, 90), 2),
            p99_ms=round(Account.percentile(account.latency_ms, 99), 2),
            sink_dropped=dict(account.sink_dropped),
            sink_failed=dict(account.sink_failed),
        )


def _sum(counts: list[SourceCount]) -> SourceCount:
    total = SourceCount()
    for count in counts:
        for name in SourceCount.__dataclass_fields__:
            setattr(total, name, getattr(total, name) + getattr(count, name))
    return total


def _trimmed(labelled: LabelledFrame) -> LabelledFrame:
    """A record with few labels a view, and without its events, which go to viewers on their own."""
    if len(labelled.top) <= _KEPT_TOP and not labelled.events and not labelled.views:
        return labelled
    views = [
        View(view.table, view.region, view.label, view.score, view.top[:_KEPT_TOP], view.present)
        for view in labelled.views
    ]
    return msgspec.structs.replace(labelled, top=labelled.top[:_KEPT_TOP], events=[], views=views)
