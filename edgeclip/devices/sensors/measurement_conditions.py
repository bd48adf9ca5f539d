"""Readings over the time of a measurement in; what the machine was doing meanwhile, in one line or as JSON, out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from edgeclip.devices.sensors.base import Channel, Kind, Part
from edgeclip.devices.sensors.energy import Array, Energy, with_error

_UNITS: dict[Kind, str] = {"power_w": "W", "clock_mhz": "MHz", "temperature_c": "°C", "load": "", "memory_mb": "MB"}


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One sensor over the time of a measurement.

    Attributes:
        name, kind, part: of the ``Channel``.
        source: where it is read, e.g. ``"cpufreq"`` or ``"INA power monitors"``.
        before, after: first and last reading.
        least, mean, most: over all readings.
        missed: share of the readings that failed.
        fault: why, if any did.
        feeds: what a power rail feeds, where its name says so.
    """

    name: str
    kind: Kind
    part: Part
    source: str
    before: float
    after: float
    least: float
    mean: float
    most: float
    missed: float = 0.0
    fault: str = ""
    feeds: tuple[str, ...] = ()


class MeasurementConditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine was doing during a measurement; goes with its result.

    Attributes:
        seconds, rate_hz: length of the time, and how often the sensors were read in it.
        cost: CPU time of the sampling, in parts of one core.
        power_mode: as ``power_mode`` names it.
        throttled: whether anything slowed the machine; None where nothing reports it.
        reasons: what did.
        energy: of the whole time; None where ``absent`` says why under ``"power"``.
        idle: idle power that was measured before and is taken off ``energy_per_inference_j``.
        inferences: how many there were, if told.
        energy_per_inference_j, energy_per_inference_error_j: joules and their 95 % bound.
        readings: one for every sensor.
        absent: what cannot be read, and why.
    """

    seconds: float
    rate_hz: float
    cost: float
    power_mode: str | None
    throttled: bool | None
    reasons: tuple[str, ...] = ()
    energy: Energy | None = None
    idle: Energy | None = None
    inferences: int | None = None
    energy_per_inference_j: float | None = None
    energy_per_inference_error_j: float | None = None
    readings: tuple[Reading, ...] = ()
    absent: dict[str, str] = {}

    def of(self, kind: Kind, part: Part | None = None) -> tuple[Reading, ...]:
        """The readings of a kind, and of a part if given."""
        return tuple(r for r in self.readings if r.kind == kind and part in (None, r.part))

    def __str__(self) -> str:
        """One line for people: ``CPU 2.60 GHz, 93 % busy, 54→61 °C; throttled: no; power 23.1 ± 0.6 W (VDD_IN)``."""
        parts = [words for part in ("cpu", "gpu") if (words := self._part(part))]
        if self.power_mode:
            parts.insert(0, self.power_mode)
        throttled = {None: "unknown", False: "no", True: "yes"}
        reasons = f" ({', '.join(self.reasons)})" if self.reasons else ""
        parts.append(f"throttled: {throttled[self.throttled]}{reasons}")
        if self.energy is None:
            parts.append(f"power: absent ({self.absent.get('power', 'not measured')})")
        else:
            parts.append(f"power {self.energy}")
        if self.energy_per_inference_j is not None:
            error = self.energy_per_inference_error_j or 0.0
            idle = " above idle" if self.idle else ""
            parts.append(f"{with_error(self.energy_per_inference_j, error)} J an inference{idle}")
        return "; ".join(parts)

    def _part(self, part: Part) -> str:
        clocks, loads = self.of("clock_mhz", part), self.of("load", part)
        hottest = max(self.of("temperature_c", part), key=lambda r: r.most, default=None)
        if part == "cpu" and hottest is None:
            hottest = max(self.of("temperature_c", "chip"), key=lambda r: r.most, default=None)
        words = []
        if clocks:
            words.append(f"{np.mean([clock.mean for clock in clocks]) / 1e3:.2f} GHz")
        if loads:
            words.append(f"{np.mean([load.mean for load in loads]):.0%} busy".replace("%", " %"))
        if hottest:
            words.append(f"{hottest.before:.0f}→{hottest.after:.0f} °C")
        elif words and part == "cpu":
            words.append("temperature absent")
        return f"{part.upper()} {', '.join(words)}" if words else ""


def readings_of(
    channels: Sequence[Channel], sources: Sequence[str], times: Array, values: Array, faults: Sequence[str]
) -> tuple[Reading, ...]:
    """Sum up every sensor that gave a reading.

    Args:
        channels, sources: (C,) what is read, and the name of where.
        times: (N,) seconds.
        values: (N, C); NaN where a reading failed.
        faults: (C,) why the latest failure.
    """
    since = np.diff(times, prepend=times[:1])
    return tuple(
        _reading(channel, sources[index], since, values[:, index], faults[index])
        for index, channel in enumerate(channels)
        if channel.kind in _UNITS and np.isfinite(values[:, index]).any()
    )


def _reading(channel: Channel, source: str, since: Array, values: Array, fault: str) -> Reading:
    finite = np.isfinite(values)
    good, weights = values[finite], since[finite]
    if channel.kind != "load" or not weights.sum() > 0:  # a load is of the time since the reading before
        weights = np.ones_like(good)
    missed = 1.0 - len(good) / len(values)
    before, after, least, mean, most = (
        round(float(value), 4)
        for value in (good[0], good[-1], good.min(), np.average(good, weights=weights), good.max())
    )
    return Reading(
        name=channel.name,
        kind=channel.kind,
        part=channel.part,
        source=source,
        before=before,
        after=after,
        least=least,
        mean=mean,
        most=most,
        missed=round(missed, 4),
        fault=fault if missed else "",
        feeds=channel.feeds,
    )


def throttling(channels: Sequence[Channel], values: Array) -> tuple[bool | None, tuple[str, ...]]:
    """Whether anything slowed the machine, and what; None where no channel tells.

    Args:
        channels: (C,).
        values: (N, C).
    """
    told = False
    reasons: list[str] = []
    for index, channel in enumerate(channels):
        good = values[np.isfinite(values[:, index]), index]
        if channel.kind not in ("throttle", "throttle_count") or not len(good):
            continue
        told = True
        if channel.kind == "throttle_count":
            reasons += [channel.name] if good[-1] > good[0] else []
        elif not channel.reasons:
            reasons += [channel.name] if (good > 0).any() else []
        else:
            seen = int(np.bitwise_or.reduce(good.astype(np.int64)))
            reasons += [f"{channel.name}: {name}" for bit, name in channel.reasons.items() if seen & bit]
    return (bool(reasons) if told else None), tuple(reasons)


def never_read(channels: Sequence[Channel], values: Array, faults: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Sensors that are there and gave nothing: what each is, and why."""
    for index, channel in enumerate(channels):
        if not np.isfinite(values[:, index]).any():
            kind = channel.kind.partition("_")[0]
            yield f"{channel.name} {kind}", faults[index] or "no reading"
