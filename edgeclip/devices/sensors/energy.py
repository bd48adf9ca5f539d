"""Power or energy readings over time in, the energy of a window and its error out.

Power is integrated by the trapezoidal rule, with the power at the window's edges interpolated; a counter of energy is
read at the edges. Two errors are told apart. *Sampling*: how far the integral may be off because power is known at some
moments only. The integral at full rate is compared with those that leave out every other reading (interleaved half
rates): their local differences give the variance of the sum, their mean difference the rule's own error (Richardson:
a third of it). *Sensor*: what its maker allows, which no number of readings makes smaller. Both are 95 % bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.devices.sensors.base import Channel
from edgeclip.errors import InputError

Array = npt.NDArray[np.float64]

_LEAST_READINGS = 4
_GAP_S = 0.5
# 97.5 % quantiles of Student's t by degrees of freedom; between them its logarithm is near linear in 1/ν.
_T_FREEDOM = (1, 1.15, 1.35, 1.6, 2, 2.5, 3, 4, 5, 8, 20, 1e9)
_T_VALUE = (12.7062, 9.3875, 7.0482, 5.5172, 4.3027, 3.5747, 3.1824, 2.7764, 2.5706, 2.3060, 2.0860, 1.9600)


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of one window.

    Attributes:
        joules, error_j: the energy and its 95 % bound.
        sampling_j: the part of the error that more readings would make smaller.
        sensor_j: the part that the sensor's maker allows; None where no document states it, and then it is not in
            ``error_j``.
        seconds: length of the window.
        covers: names of the sensors, e.g. ``("VDD_IN",)``; what they do not see is not in it.
        method: ``counter``, ``trapezoid`` or ``counter and trapezoid``.
        readings: distinct readings of the slowest of the sensors.
        doubt: what speaks against it; empty where nothing does.
    """

    joules: float
    error_j: float
    sampling_j: float
    sensor_j: float | None
    seconds: float
    covers: tuple[str, ...]
    method: str
    readings: int
    doubt: str = ""

    @property
    def watts(self) -> float:
        """Mean power, W."""
        return self.joules / self.seconds

    def __str__(self) -> str:
        error = self.error_j / self.seconds
        unknown = "" if self.sensor_j is not None else ", sensor's own error not documented"
        doubt = f"; doubtful: {self.doubt}" if self.doubt else ""
        return f"{with_error(self.watts, error)} W ({' + '.join(self.covers)}{unknown}{doubt})"

    def less_idle(self, idle: Energy) -> Energy:
        """This energy without what the machine takes when idle, as measured over another window.

        Raises:
            InputError: the two are of different sensors.
        """
        if idle.covers != self.covers:
            raise InputError(
                f"expected idle power of {' + '.join(self.covers)}, got that of {' + '.join(idle.covers)}: "
                "measure it with the same sensors"
            )
        share = self.seconds / idle.seconds
        sensors = None
        if self.sensor_j is not None and idle.sensor_j is not None:
            sensors = math.hypot(self.sensor_j, idle.sensor_j * share)
        sampling = math.hypot(self.sampling_j, idle.sampling_j * share)
        return msgspec.structs.replace(
            self,
            joules=self.joules - idle.joules * share,
            sampling_j=sampling,
            sensor_j=sensors,
            error_j=math.hypot(sampling, sensors or 0.0),
        )


def sum_of(energies: Sequence[Energy]) -> Energy:
    """The energy of several windows by the same sensors.

    Sampling errors are independent and add in squares; a sensor's own error is the same each time and adds up.

    Raises:
        InputError: none, or of different sensors.
    """
    if len({each.covers for each in energies}) != 1:
        raise InputError(f"expected energies of the same sensors, got {len(energies)} of different ones or none")
    sensors = [each.sensor_j for each in energies]
    sensor = None if None in sensors else sum(limit for limit in sensors if limit is not None)
    sampling = math.sqrt(sum(each.sampling_j**2 for each in energies))
    return msgspec.structs.replace(
        energies[0],
        joules=sum(each.joules for each in energies),
        error_j=math.hypot(sampling, sensor or 0.0),
        sampling_j=sampling,
        sensor_j=sensor,
        seconds=sum(each.seconds for each in energies),
        readings=min(each.readings for each in energies),
        doubt=next((each.doubt for each in energies if each.doubt), ""),
    )


def energy_of(channels: Sequence[Channel], times: Array, values: Array, start: float, end: float) -> Energy | str:
    """Add up the sensors that make the total.

    Args:
        channels: (C,) power and energy channels, each part of the total.
        times: (N,) seconds, rising.
        values: (N, C) readings; NaN where there was none.
        start, end: the window, seconds on the same clock.

    Returns:
        The energy, or why there is none.
    """
    if not channels:
        return "no sensor of power"
    if not end > start:
        return "the window is empty"
    parts = [_part(channel, times, values[:, index], start, end) for index, channel in enumerate(channels)]
    if reasons := [part for part in parts if isinstance(part, str)]:
        return "; ".join(reasons)
    measured: list[Any] = parts
    joules = float(sum(part[0] for part in measured))
    sampling = math.sqrt(sum(part[1] ** 2 for part in measured))
    limits = [
        channel.accuracy.limit_j(part[0], end - start) if channel.accuracy else None
        for channel, part in zip(channels, measured, strict=True)
    ]
    # Sensors of one kind err alike, so their limits add.
    sensor = None if None in limits else sum(limit for limit in limits if limit is not None)
    kinds = {"counter" if channel.kind == "energy_j" else "trapezoid" for channel in channels}
    return Energy(
        joules=joules,
        error_j=math.hypot(sampling, sensor or 0.0),
        sampling_j=sampling,
        sensor_j=sensor,
        seconds=end - start,
        covers=tuple(channel.name for channel in channels),
        method=" and ".join(sorted(kinds)),
        readings=min(part[2] for part in measured),
    )


def _part(channel: Channel, times: Array, values: Array, start: float, end: float) -> tuple[float, float, int] | str:
    """Energy, sampling error and distinct readings of one sensor, or why not."""
    good = np.isfinite(values)
    times, values = times[good], values[good]
    if reason := _hole(times, start, end):
        return f"{channel.name}: {reason}"
    if channel.kind == "energy_j":
        counted = counter(times, unwrapped(values, channel.wraps_j), start, end, period_s=channel.period_s)
        return f"{channel.name}: the counter did not move" if counted is None else counted
    lag = channel.accuracy.lag_s if channel.accuracy else 0.0
    joules = trapezoid(times, values, start, end)
    first, last = np.interp((start, end), times, values)
    # A sensor that shows the mean of the last seconds takes in what was before the start, and misses the end.
    mean = joules / (end - start)
    lag_j = lag / 2 * float(abs(first - mean) + abs(last - mean))
    sampling, readings = sampling_error(times, values, start, end)
    return joules, math.hypot(sampling, lag_j), readings


def _hole(times: Array, start: float, end: float) -> str:
    """What is missing, if a part of the window has no readings near it."""
    inside = times[(times >= start) & (times <= end)]
    if len(inside) < _LEAST_READINGS:
        return f"{len(inside)} readings in {end - start:.2f} s, at least {_LEAST_READINGS} are needed"
    # Readings just outside the window serve as well as those just inside.
    near = times[(times >= start - _GAP_S) & (times <= end + _GAP_S)]
    edges = np.concatenate(([min(start, near[0])], near, [max(end, near[-1])]))
    allowed = max(_GAP_S, 3 * float(np.median(np.diff(inside))))
    widest = int(np.argmax(np.diff(edges)))
    gap = edges[widest + 1] - edges[widest]
    return f"no readings for {gap:.1f} s from {edges[widest] - start:.1f} s on" if gap > allowed else ""


def t95(freedom: float) -> float:
    """Student's t whose two-sided 95 % interval it bounds, within 0.3 %, for 1 degree of freedom and more."""
    return math.exp(np.interp(1 / freedom, 1 / np.array(_T_FREEDOM[::-1]), np.log(_T_VALUE[::-1])))


def trapezoid(times: Array, watts: Array, start: float, end: float) -> float:
    """Integral of power over a window, joules; beyond the first or last reading power is taken as constant."""
    inside = (times > start) & (times < end)
    first, last = np.interp((start, end), times, watts)
    t = np.concatenate(([start], times[inside], [end]))
    p = np.concatenate(([first], watts[inside], [last]))
    return float(np.sum(np.diff(t) * (p[1:] + p[:-1]) / 2))


def sampling_error(times: Array, watts: Array, start: float, end: float) -> tuple[float, int]:
    """95 % bound of the integral's error from sampling, joules, and the number of distinct readings.

    For reading i, the integral that leaves it out differs by wᵢ·rᵢ, where rᵢ is its distance from the line between
    its neighbours and wᵢ half the time between them. If readings scatter independently by σ, rᵢ has variance
    σ²·(1 + a² + b²) with a, b the line's weights, so Σ wᵢ²rᵢ²/(1 + a² + b²) estimates the integral's variance.
    """
    inside = (times >= start) & (times <= end)
    t, p = _distinct(times[inside], watts[inside])
    if len(t) < _LEAST_READINGS:
        return float(np.ptp(watts[inside])) * (end - start) / 2, len(t)
    span = t[2:] - t[:-2]
    b = (t[1:-1] - t[:-2]) / span
    a = 1 - b
    r = p[1:-1] - (a * p[:-2] + b * p[2:])
    variance = float(np.sum((span / 2) ** 2 * r**2 / (1 + a**2 + b**2)))
    # Neighbouring rᵢ share readings: n of them are worth about n/2.
    freedom = max(1.0, len(r) / 2)
    noise = t95(freedom) * math.sqrt(variance)
    lowest, highest = max(start, t[0]), min(end, t[-1])
    full = trapezoid(t, p, lowest, highest)
    halves = [trapezoid(t[chosen], p[chosen], lowest, highest) for chosen in (_every_other(len(t), k) for k in (0, 1))]
    return math.hypot(noise, abs(sum(halves) / 2 - full) / 3), len(t)


def _every_other(count: int, first: int) -> Array:
    """Indices of every other reading, and of both ends."""
    return np.unique(np.concatenate(([0], np.arange(first, count, 2), [count - 1]))).astype(np.intp)


def _distinct(times: Array, watts: Array) -> tuple[Array, Array]:
    """Readings without the repetitions of a sensor that is slower than the sampler: each in the middle of its run."""
    starts = np.flatnonzero(np.concatenate(([True], np.diff(watts) != 0)))
    ends = np.concatenate((starts[1:] - 1, [len(watts) - 1]))
    return (times[starts] + times[ends]) / 2, watts[starts]


def unwrapped(joules: Array, wraps_j: float) -> Array:
    """A counter that starts again from zero, as one that goes on; at most one start between two readings."""
    if wraps_j <= 0:
        return joules
    falls = np.diff(joules, prepend=joules[:1]) < 0
    return joules + wraps_j * np.cumsum(falls)


def counter(
    times: Array, joules: Array, start: float, end: float, *, period_s: float | None = None
) -> tuple[float, float, int] | None:
    """Energy between two moments by a counter, its error and the number of distinct readings.

    The counter is interpolated at edges that are not readings. Each edge is off by at most the mean power over the time
    to the nearest reading and over the counter's own period, within which it may have been brought up to date.

    Args:
        period_s: that period; taken as the longest time that the counter stood still if not given.

    Returns:
        None if it never moved.
    """
    first, last = np.interp((start, end), times, joules)
    inside = (times >= start) & (times <= end)
    t, _ = _distinct(times[inside], joules[inside])
    if len(t) < 2:
        return None
    period = float(np.max(np.diff(t))) if period_s is None else period_s
    away = sum(float(np.min(np.abs(times - edge))) for edge in (start, end))
    energy = float(last - first)
    return energy, abs(energy) / (end - start) * (period + away), len(t)


def with_error(value: float, error: float) -> str:
    """``"0.312 ± 0.011"``: the error with two digits, the value with as many places."""
    if not error > 0:
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"
