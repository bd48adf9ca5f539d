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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from edgeclip.devices.machine.jetson import power_mode
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.base import NEVER, Channel, Found, SensorSource
from edgeclip.devices.sensors.energy import Array, Energy, energy_of
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.jetson import doubt_of
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions, never_read, readings_of, throttling
from edgeclip.errors import InputError

INTERVAL_S = 0.1
_KEPT = 36_000  # an hour at ten a second: about 10 MB
_JITTER = 0.2


@dataclass(frozen=True)
class _Rows:
    """What was read each time, as of one moment.

    Attributes:
        channels, sources: (C,) what was read, and the name of where.
        faults: (C and more,) why the latest failure; behind them those of what is read seldom.
        times: (N,) seconds.
        values: (N, C), NaN for none.
    """

    channels: tuple[Channel, ...]
    sources: tuple[str, ...]
    faults: tuple[str, ...]
    times: Array
    values: Array


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
        self._known: list[tuple[Channel, ...]] = []  # of each of these, as the rows have them
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
        self._known = [source.channels for source in self._often]
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
        return (*self._fast_channels(), *(channel for source in self._seldom for channel in source.channels))

    @property
    def absent(self) -> dict[str, str]:
        """What this machine does not report, and why."""
        return self._found.still_absent() if self._found else {}

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
        """(N,) times, ``time.perf_counter()`` seconds, and (N, C) readings of what is read each time, NaN for none.

        A channel that a source came to know while reading has NaN before.
        """
        rows = self._read_out()
        return rows.times, rows.values

    def energy(self, start: float | None = None, end: float | None = None) -> Energy | str:
        """Energy of a window, by default of all the time so far.

        Args:
            start, end: as ``mark`` gave them.

        Returns:
            The energy, or why there is none.
        """
        rows = self._read_out()
        times, values = rows.times, rows.values
        chosen = [index for index, channel in enumerate(rows.channels) if channel.in_total]
        channels = [rows.channels[index] for index in chosen]
        if not channels:
            named = [name for name in self.absent if name.endswith("power") or name == "GPU"]
            return "; ".join(self.absent[name] for name in named) or "no sensor of power"
        first, last = self._window(times, start, end)
        energy = energy_of(channels, times, values[:, chosen], first, last)
        doubt = doubt_of(_mean_powers(rows.channels, values[(times >= first) & (times <= last)]))
        return energy if isinstance(energy, str) else msgspec.structs.replace(energy, doubt=doubt)

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
        rows = self._read_out()
        times, fast = rows.times, rows.channels
        first, last = self._window(times, start, end)
        whole_s = float(times[-1] - times[0])
        inside = (times >= first) & (times <= last)
        slow = tuple(channel for source in self._seldom for channel in source.channels)
        values, seldom = rows.values[inside], np.array(self._seldom_values, dtype=np.float64)
        energy = self.energy(first, last)
        absent = self.absent
        faults_fast, faults_slow = rows.faults[: len(fast)], rows.faults[len(fast) :]
        absent.update(never_read(fast, values, faults_fast))
        if isinstance(energy, str):
            absent["power"] = energy
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
            readings=readings_of(fast, rows.sources, times[inside], values, faults_fast)
            + (
                readings_of(
                    slow,
                    [source.name for source in self._seldom for _ in source.channels],
                    np.arange(float(len(seldom))),
                    seldom,
                    faults_slow,
                )
                if slow
                else ()
            ),
            absent=absent,
        )

    def _read_out(self) -> _Rows:
        with self._lock:
            if not self._rows:
                raise InputError("expected readings, got none: enter the telemetry's `with` first")
            table = np.array(self._rows, dtype=np.float64)
            names = tuple(source.name for source, known in zip(self._often, self._known, strict=True) for _ in known)
            return _Rows(self._fast_channels(), names, tuple(self._faults), table[:, 0], table[:, 1:])

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s * self._random.uniform(1 - _JITTER, 1 + _JITTER)):
            self._take()
            self._cost_s = time.thread_time()

    def _take(self) -> float:
        with self._lock:
            self._widen()
            now = time.perf_counter()
            row = array("d", (now,))
            known = [(source, len(channels)) for source, channels in zip(self._often, self._known, strict=True)]
            for source, count in known:
                row.extend(source.read()[:count])  # it may have learned of more since
            self._rows.append(row)
            self._note_faults(row[1:], 0, known)
        return now

    def _widen(self) -> None:
        """Make room for channels that a source has come to know: the rows so far have no reading of them."""
        end = 0
        for index, source in enumerate(self._often):
            before, self._known[index] = self._known[index], source.channels
            end += len(before)
            if more := len(self._known[index]) - len(before):
                for row in self._rows:  # (1 + C,): the time comes first
                    row[end + 1 : end + 1] = array("d", [NEVER] * more)
                self._faults[end:end] = ["not named at first"] * more
                end += more

    def _read_seldom(self) -> None:
        values = [value for source in self._seldom for value in source.read()]
        self._seldom_values.append(values)
        known = [(source, len(source.channels)) for source in self._seldom]
        self._note_faults(values, len(self._fast_channels()), known)

    def _note_faults(self, values: Sequence[float], offset: int, read: Iterable[tuple[SensorSource, int]]) -> None:
        """Keep why readings failed; ``read``: the sources that gave the values, and how many each."""
        if all(value == value for value in values):  # no NaN: the usual case, and the cheap one
            return
        position = 0
        for source, count in read:
            for index in range(count):
                if values[position] != values[position]:
                    self._faults[offset + position] = source.fault(index)
                position += 1

    def _fast_channels(self) -> tuple[Channel, ...]:
        return tuple(channel for channels in self._known for channel in channels)

    @staticmethod
    def _window(times: Array, start: float | None, end: float | None) -> tuple[float, float]:
        return (float(times[0]) if start is None else start, float(times[-1]) if end is None else end)


def _mean_powers(channels: Sequence[Channel], values: Array) -> dict[str, float]:
    """Watts by name of what gave a reading; ``values``: (N, C)."""
    powers = {}
    for index, channel in enumerate(channels):
        good = values[np.isfinite(values[:, index]), index]
        if channel.kind == "power_w" and len(good):
            powers[channel.name] = float(good.mean())
    return powers


def _per_inference(
    energy: Energy | str, inferences: int | None, idle: Energy | None
) -> tuple[float | None, float | None]:
    if isinstance(energy, str) or inferences is None:
        return None, None
    net = energy.less_idle(idle) if idle else energy
    return net.joules / inferences, net.error_j / inferences
