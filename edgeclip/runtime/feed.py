"""The frames of one source in; gated, cropped and resized ones out, made on a thread of the source's own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgeclip.runtime.engine import ByteArray
from edgeclip.runtime.gate import SceneGate
from edgeclip.runtime.preprocess import Preprocessor
from edgeclip.runtime.regions import Region, crop, mask
from edgeclip.runtime.source import Frame, Source

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)

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


class Feeder:
    """Takes the frames of one source as there are places for them, and puts jobs and an :class:`End` into a queue.

    Args:
        position: of the source among the run's.
        source: opened; iterated here, closed by the caller.
        preprocessor: used by this feeder's thread only.
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
            target=self._run, args=(places, out), name=f"edgeclip-feed-{self.source.name}", daemon=True
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
        while self._limit is None or self.taken < self._limit:
            self.source.ready()
            if not places.take("encode"):  # before the frame, so that a camera's is as fresh as can be
                return
            frame = next(frames, None)
            if frame is None:
                places.give("encode")
                return
            self.taken += 1
            start = time.perf_counter()
            small = self._prepare(frame)
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
