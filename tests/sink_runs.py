"""What sink tests share: runs around a real bundle, records, and sinks on their real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeclip import Bundle
from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.records import Event, LabelledFrame, Scored
from edgeclip.runtime.sinks.base import Run, Sink, SinkThread, close_sinks
from edgeclip.runtime.sources.open import Frame, Source
from edgeclip.runtime.tables import TableSet


class Named(Source):
    """A source that only tells its name and whether it is live; sinks read no frames from it."""

    def __init__(self, name: str = "yard", *, live: bool = False, fps: float | None = None) -> None:
        super().__init__(name)
        self.live = live
        self.fps = fps

    def __iter__(self) -> Iterator[Frame]:
        return iter(())


def make_run(bundle: Path, *sources: Source) -> Run:
    opened = Bundle.open(bundle)
    own = sources or (Named(),)
    account = Account(sources={source.name: SourceCount() for source in own})
    return Run(opened, own, TableSet(opened, [opened.table()]), account, lambda: None)


def record(index: int, label: str = "cat", score: float = 0.75, **more: object) -> LabelledFrame:
    top = [Scored(label, score), Scored("rocket" if label == "cat" else "cat", 1 - score)]
    return LabelledFrame(index, index / 20, label, score, top, encode_ms=12.5, latency_ms=20.25, **more)


def event(index: int, kind: str = "enter", label: str = "cat", **more: object) -> Event:
    return Event(kind, label, index, index / 20, index / 20, 0.75, 0.8, **more)


def pixels(index: int, height: int = 120, width: int = 160) -> Frame:
    return Frame(index, index / 20, np.full((height, width, 3), 90, np.uint8))


def push(run: Run, sinks: Sequence[Sink], records: Sequence[LabelledFrame], *, complete: bool = True) -> None:
    """Give records to sinks on their threads, as the loop does, and close them."""
    threads = [SinkThread(sink, run) for sink in sinks]
    for labelled in records:
        for thread in threads:
            thread.put(labelled, pixels(labelled.frame))
    close_sinks(threads, complete=complete)


def happens(check: Callable[[], bool], within_s: float = 15.0) -> bool:
    """Wait until something outside becomes true, looking ten times a second; False if it does not."""
    pause = threading.Event()
    for _ in range(int(within_s * 10)):
        if check():
            return True
        pause.wait(0.1)
    return check()
