"""Jobs of all sources in; batches under way in the engine out, in the order in which the frames came."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

import numpy as np

from edgeclip.runtime.encoder import ImageEncoder, PendingEmbeddings
from edgeclip.runtime.feed import End, Job

_GIVE_UP_S = 3.0  # on sources that do not end when the run is stopped


@dataclass(frozen=True)
class Batch:
    """Jobs that were given to the engine together.

    Attributes:
        jobs: in the order in which they came; unchanged frames among them are not in the engine.
        pending: embeddings of the others' rows, or None if there are none.
    """

    jobs: tuple[Job, ...]
    pending: PendingEmbeddings | None


class Batcher:
    """Fills batches and starts them; a thread of its own between the feeders and whoever takes the results.

    Args:
        encoder: what to run.
        sources: how many feeders there are.
        rows: what is encoded together at most.
        wait_s: how long a batch that is not full waits for more frames once the engine is free.
        parallel: batches that may be in the engine at once.

    Attributes:
        inbox: what feeders put jobs and ends into; None makes a stopped run look again.
        outbox: batches and the ends of sources, in order; an exception ends it, as None does.
    """

    def __init__(self, encoder: ImageEncoder, *, sources: int, rows: int, wait_s: float, parallel: int) -> None:
        self.inbox: queue.SimpleQueue[Job | End | None] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Batch | End | Exception | None] = queue.SimpleQueue()
        self._encoder = encoder
        self._open = sources
        self._rows = rows
        self._wait_s = wait_s
        self._slots = threading.Semaphore(parallel)
        self._stopping = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edgeclip-batch", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def taken(self, batch: Batch) -> None:
        """Say that a batch's result was taken, so that the engine is free for another."""
        if batch.pending is not None:
            self._slots.release()

    def stop(self) -> None:
        """Wait no longer for sources that do not end."""
        self._stopping.set()
        self.inbox.put(None)

    def close(self) -> None:
        """Start nothing more, whether or not anybody takes the results."""
        self._closed = True
        self._slots.release()
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._open and not self._closed and (item := self._next(None)) is not None:
                self._handle(item)
        except Exception as error:  # noqa: BLE001 - raised by whoever takes the results
            self.outbox.put(error)
        finally:
            self.outbox.put(None)

    def _handle(self, first: Job | End) -> None:
        if isinstance(first, End):
            self._end(first)
            return
        if first.small is None:
            self.outbox.put(Batch((first,), None))
            return
        self._slots.acquire()  # while the engine is busy, frames of other sources gather in the inbox
        if self._closed:
            return
        jobs, ends = [first], list[End]()
        rows = len(first.small)
        until = time.perf_counter() + self._wait_s
        while rows < self._rows and self._open > len(ends):
            item = self._next(until)
            if item is None:
                break
            if isinstance(item, End):
                ends.append(item)
                continue
            jobs.append(item)
            rows += 0 if item.small is None else len(item.small)
        smalls = [job.small for job in jobs if job.small is not None]
        together = smalls[0] if len(smalls) == 1 else np.concatenate(smalls)
        self.outbox.put(Batch(tuple(jobs), self._encoder.start(together)))
        for end in ends:
            self._end(end)

    def _end(self, end: End) -> None:
        self._open -= 1
        self.outbox.put(end)

    def _next(self, until: float | None) -> Job | End | None:
        """The next item; None if there is none in time."""
        while True:
            if until is not None:
                timeout: float | None = max(0.0, until - time.perf_counter())
            else:
                timeout = _GIVE_UP_S if self._stopping.is_set() else None
            try:
                item = self.inbox.get(timeout=timeout)
            except queue.Empty:
                return None
            if item is not None:
                return item
