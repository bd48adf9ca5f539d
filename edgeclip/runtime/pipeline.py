"""The frames of all sources in; batches under way in the engine out, those of one source in order.

A thread for each source (``SourceThread``) gates, crops and resizes its frames; one more (``Batcher``) fills batches
and starts them. ``Places`` bounds what is on its way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgeclip.errors import InputError, SourceError
from edgeclip.runtime.encoder import ImageEncoder, PendingEmbeddings
from edgeclip.runtime.engines.base import ByteArray
from edgeclip.runtime.gate import SceneGate
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.regions import Region, crop, mask
from edgeclip.runtime.sources.base import Frame, Source

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)
_GIVE_UP_S = 3.0  # on sources that do not end when the run is stopped
_GIVE_UP_HURRIED_S = 1.0  # when somebody interrupted it
Kind = Literal["encode", "gated"]


@dataclass(frozen=True)
class Job:
    """One frame on its way.

    Attributes:
        source: position of its source among the run's.
        frame: the frame; without its pixels where no sink wants them.
        small: (R, H, W, 3) uint8 RGB, a row a region, of the encoder's size; None if the frame has not changed.
        prepare_ms: time for gate, crop and resize, milliseconds.
    """

    source: int
    frame: Frame
    small: ByteArray | None
    prepare_ms: float

    @property
    def kind(self) -> Kind:
        """Which kind of place the job holds."""
        return "gated" if self.small is None else "encode"


@dataclass(frozen=True)
class End:
    """A source has no more frames; ``failure`` if it ended badly."""

    source: int
    failure: Exception | None = None


class Places:
    """How many frames may be on their way between a source and the sinks; this is what bounds memory and delay.

    Args:
        encode: frames that are to be encoded.
        gated: frames that are not; they are many and light, and must not keep others from filling a batch.
    """

    def __init__(self, *, encode: int, gated: int) -> None:
        self._free: dict[Kind, int] = {"encode": encode, "gated": gated}
        self._changed = threading.Condition()
        self._stopped = False

    def take(self, kind: Kind) -> bool:
        """Wait for a place; False if there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._free[kind] > 0)
            if self._stopped:
                return False
            self._free[kind] -= 1
            return True

    def give(self, kind: Kind) -> None:
        """Give a place back."""
        with self._changed:
            self._free[kind] += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class SourceThread:
    """Takes the frames of one source as there are places for them, and puts jobs and an ``End`` into a queue.

    Args:
        position: of the source among the run's.
        source: opened; iterated here, closed by the caller.
        preprocessor: used by this thread only.
        regions: what to cut out of each frame; at least one.
        gate: what tells unchanged frames, or None to encode all.
        keep_pixels: whether a sink wants the frame itself.
        limit: take at most so many frames.

    Attributes:
        taken: frames that became jobs, or are about to.
    """

    def __init__(
        self,
        position: int,
        source: Source,
        preprocessor: Preprocessor,
        regions: Sequence[Region],
        gate: SceneGate | None,
        *,
        keep_pixels: bool,
        limit: int | None,
    ) -> None:
        self.source = source
        self._position = position
        self._preprocessor = preprocessor
        self._regions = regions
        self._gate = gate
        self._keep_pixels = keep_pixels
        self._limit = limit
        self._thread: threading.Thread | None = None
        self.taken = 0

    def start(self, places: Places, out: queue.SimpleQueue[Job | End | None]) -> None:
        """Begin; every frame that is taken becomes a job in ``out``."""
        self._thread = threading.Thread(
            target=self._run, args=(places, out), name=f"edgeclip-source-{self.source.name}", daemon=True
        )
        self._thread.start()

    def ended(self, timeout_s: float) -> bool:
        """Whether the thread has ended, waiting for it for so long."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, places: Places, out: queue.SimpleQueue[Job | End | None]) -> None:
        failure: Exception | None = None
        try:
            for job in self._jobs(places):
                out.put(job)
        except Exception as error:  # noqa: BLE001 - handed on, and raised by whoever waits for the run
            failure = error
        finally:
            out.put(End(self._position, failure))

    def _jobs(self, places: Places) -> Iterator[Job]:
        frames = iter(self.source)
        unusable: InputError | None = None
        while self._limit is None or self.taken < self._limit:
            self.source.ready()
            if not places.take("encode"):  # before the frame, so that a camera's is as fresh as can be
                return
            frame = next(frames, None)
            if frame is None:
                places.give("encode")
                if unusable is not None and not self.taken:
                    raise SourceError(f"nothing of {self.source.name} can be labelled: {unusable}") from unusable
                return
            start = time.perf_counter()
            try:
                small = self._prepare(frame)
            except InputError as error:  # smaller than a region may be; the next one may be larger
                places.give("encode")
                self.source.fail(frame.file or f"frame {frame.index}", str(error))
                unusable = error
                if self._gate is not None:
                    self._gate.forget()
                continue
            self.taken += 1
            took_ms = (time.perf_counter() - start) * 1e3
            if small is None:
                places.give("encode")
                if not places.take("gated"):
                    self.taken -= 1  # the run was stopped before anything was said of it
                    return
            kept = frame if self._keep_pixels else replace(frame, pixels=_NO_PIXELS)
            yield Job(self._position, kept, small, took_ms)

    def _prepare(self, frame: Frame) -> ByteArray | None:
        if self._gate is not None and not self._gate.changed(frame.pixels, frame.time_s):
            return None
        rows = [mask(self._preprocessor.resize(crop(frame.pixels, region)), region) for region in self._regions]
        return np.stack(rows)


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
    """Fills batches and starts them; a thread of its own between those of the sources and whoever takes the results.

    Args:
        encoder: what to run.
        sources: how many source threads there are.
        rows: what is encoded together at most.
        wait_s: how long a batch that is not full waits for more frames once the engine is free.
        parallel: batches that may be in the engine at once.

    Attributes:
        inbox: what source threads put jobs and ends into; None makes a stopped run look again.
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
        self._give_up_s = _GIVE_UP_S
        self._thread = threading.Thread(target=self._run, name="edgeclip-batch", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def taken(self, batch: Batch) -> None:
        """Say that a batch's result was taken, so that the engine is free for another."""
        if batch.pending is not None:
            self._slots.release()

    def stop(self, *, hurried: bool = False) -> None:
        """Wait no longer for sources that do not end."""
        if hurried:
            self._give_up_s = _GIVE_UP_HURRIED_S
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
                timeout = self._give_up_s if self._stopping.is_set() else None
            try:
                item = self.inbox.get(timeout=timeout)
            except queue.Empty:
                return None
            if item is not None:
                return item
