"""A stretch of time in; power, clocks, temperatures, load, memory and throttling of this machine during it out.

::

    with Telemetry() as telemetry:
        run()
    print(telemetry.conditions(inferences=1000))
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import deque
from pathlib import Path
from types import TracebackType

import numpy as np

from edgeclip.devices.machine.jetson import power_mode
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.base import Channel, Found, SensorSource
from edgeclip.devices.sensors.energy import Array, Energy, energy_of
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions, never_read, readings_of, throttling
from edgeclip.errors import InputError

INTERVAL_S = 0.1
_KEPT = 36_000  # an hour at ten a second: about 10 MB
_JITTER = 0.2


class Telemetry:
    """Reads this machine's sensors on a thread, from entering the ``with`` to leaving it, and at both moments.

    The time between readings varies at random by a fifth, so that no load that repeats stays in step with them: then
    their scatter tells the sampling error.

    Args:
        interval_s: mean time between readings.
        root: the file system to read (a test's recorded tree, say).
        sources: what to read; by default all that is found. They are closed at the end.

    Raises:
        InputError: the interval is not between 0.01 s and a minute.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S, root: Path = Path("/"), sources: Found | None = None) -> None:
        if not 0.01 <= interval_s <= 60:
            raise InputError(f"expected an interval between 0.01 and 60 s, got {interval_s}")
        self._interval_s = interval_s
        self._root = root
        self._found = sources
        self._rows: deque[array[float]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._random = random.Random(0)
        self._often: list[SensorSource] = []
        self._seldom: list[SensorSource] = []
        self._seldom_values: list[list[float]] = []
        self._faults: list[str] = []
        self._mode: str | None = None
        self._cost_s = 0.0
        self._running = False

    def __enter__(self) -> Telemetry:
        self._found = self._found or find_sources(self._root)
        self._often = [source for source in self._found.sources if source.each_time]
        self._seldom = [source for source in self._found.sources if not source.each_time]
        self._mode = power_mode(Tree(self._root))
        self._faults = [""] * len(self.channels)
        self._read_seldom()
        self._take()
        self._running = True
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()
        self._read_seldom()
        self._running = False
        for source in [*self._often, *self._seldom]:
            source.close()

    @property
    def channels(self) -> tuple[Channel, ...]:
        """All that is read: first what is read each time, then what is read before and after."""
        return tuple(channel for source in [*self._often, *self._seldom] for channel in source.channels)

    @property
    def absent(self) -> dict[str, str]:
        """What this machine does not report, and why."""
        return dict(self._found.absent) if self._found else {}

    @property
    def cpu_s(self) -> float:
        """CPU time that the thread has taken so far, seconds."""
        return self._cost_s

    def mark(self) -> float:
        """Read the sensors now: the start or end of a window, for ``energy`` and ``conditions``.

        Returns:
            The time of the reading, ``time.perf_counter()``.
        """
        return self._take()

    def samples(self) -> tuple[Array, Array]:
        """(N,) times, ``time.perf_counter()`` seconds, and (N, C) readings of what is read each time, NaN for none."""
        with self._lock:
            rows = np.array(self._rows, dtype=np.float64)
        if not len(rows):
            raise InputError("expected readings, got none: enter the telemetry's `with` first")
        return rows[:, 0], rows[:, 1:]

    def energy(self, start: float | None = None, end: float | None = None) -> Energy | str:
        """Energy of a window, by default of all the time so far.

        Args:
            start, end: as ``mark`` gave them.

        Returns:
            The energy, or why there is none.
        """
        times, values = self.samples()
        chosen = [index for index, channel in enumerate(self._fast_channels()) if channel.in_total]
        channels = [self._fast_channels()[index] for index in chosen]
        if not channels:
            named = [name for name in self.absent if name.endswith("power") or name == "GPU"]
            return "; ".join(self.absent[name] for name in named) or "no sensor of power"
        first, last = self._window(times, start, end)
        return energy_of(channels, times, values[:, chosen], first, last)

    def conditions(
        self,
        *,
        inferences: int | None = None,
        idle: Energy | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> MeasurementConditions:
        """Sum up a window, by default all the time so far.

        Args:
            inferences: how many there were in it, for the energy of one.
            idle: what ``energy`` gave for a time without load, to take off; nothing is taken off by itself.
            start, end: as ``mark`` gave them.

        Raises:
            InputError: the number of inferences is not positive, or ``idle`` was measured by other sensors.
        """
        if inferences is not None and inferences < 1:
            raise InputError(f"expected at least one inference, got {inferences}")
        if self._running:
            self._read_seldom()
            self._take()
        times, values = self.samples()
        first, last = self._window(times, start, end)
        whole_s = float(times[-1] - times[0])
        inside = (times >= first) & (times <= last)
        fast, slow = self._fast_channels(), self.channels[len(self._fast_channels()) :]
        values, seldom = values[inside], np.array(self._seldom_values, dtype=np.float64)
        energy = self.energy(first, last)
        absent = self.absent
        faults_fast, faults_slow = self._faults[: len(fast)], self._faults[len(fast) :]
        absent.update(never_read(fast, values, faults_fast))
        if isinstance(energy, str):
            absent["power"] = energy
        names = [source.name for source in [*self._often, *self._seldom] for _ in source.channels]
        throttled, reasons = throttling(fast, values)
        per, per_error = _per_inference(energy, inferences, idle)
        return MeasurementConditions(
            seconds=round(last - first, 4),
            rate_hz=round((len(values) - 1) / (last - first), 2) if last > first else 0.0,
            cost=round(self._cost_s / whole_s, 5) if whole_s > 0 else 0.0,
            power_mode=self._mode,
            throttled=throttled,
            reasons=reasons,
            energy=None if isinstance(energy, str) else energy,
            idle=idle if per is not None else None,
            inferences=inferences,
            energy_per_inference_j=per,
            energy_per_inference_error_j=per_error,
            readings=readings_of(fast, names, times[inside], values, faults_fast)
            + (
                readings_of(slow, names[len(fast) :], np.arange(float(len(seldom))), seldom, faults_slow)
                if slow
                else ()
            ),
            absent=absent,
        )

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s * self._random.uniform(1 - _JITTER, 1 + _JITTER)):
            self._take()
            self._cost_s = time.thread_time()

    def _take(self) -> float:
        with self._lock:
            now = time.perf_counter()
            row = array("d", (now,))
            for source in self._often:
                row.extend(source.read())
            self._rows.append(row)
            self._note_faults(row[1:], self._often, 0)
        return now

    def _read_seldom(self) -> None:
        values = [value for source in self._seldom for value in source.read()]
        self._seldom_values.append(values)
        self._note_faults(values, self._seldom, len(self._fast_channels()))

    def _note_faults(self, values: array[float] | list[float], sources: list[SensorSource], offset: int) -> None:
        if all(value == value for value in values):  # no NaN: the usual case, and the cheap one
            return
        position = 0
        for source in sources:
            for index in range(len(source.channels)):
                if values[position] != values[position]:
                    self._faults[offset + position] = source.fault(index)
                position += 1

    def _fast_channels(self) -> tuple[Channel, ...]:
        return tuple(channel for source in self._often for channel in source.channels)

    @staticmethod
    def _window(times: Array, start: float | None, end: float | None) -> tuple[float, float]:
        return (float(times[0]) if start is None else start, float(times[-1]) if end is None else end)


def _per_inference(
    energy: Energy | str, inferences: int | None, idle: Energy | None
) -> tuple[float | None, float | None]:
    if isinstance(energy, str) or inferences is None:
        return None, None
    net = energy.less_idle(idle) if idle else energy
    return net.joules / inferences, net.error_j / inferences
