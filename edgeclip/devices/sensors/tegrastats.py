"""A running tegrastats in, channels of its latest line out: where a Jetson's own files cannot be read.

Formats of JetPack 4 (L4T 32) to 7 (L4T 38, 39), as in the tables "tegrastats Utility" of NVIDIA's Jetson Linux
Developer Guides: powers without a unit or in mW, with one value, two (now/average) or three (now/average/highest);
temperatures with one value or two (now/highest); loads with or without a clock, and clocks without a load, after an @
or bare. Lines of one board differ: a Thor names no GPU temperature, load or clock while its GPU is idle.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence

import msgspec

from edgeclip.devices.machine.temperatures import is_constant, is_switched_off
from edgeclip.devices.sensors.base import NEVER, Channel, Found, Kind, SensorSource
from edgeclip.devices.sensors.jetson import rail_channel, total_rails
from edgeclip.devices.sensors.linux import part_of
from edgeclip.errors import InputError

_MEMORY = re.compile(r"\b(RAM|SWAP|IRAM) (\d+)/(\d+)(k|M)B")
_CPU = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
_CORE = re.compile(r"^(\d+)%(?:@(\d+))?$")
_ENGINE = re.compile(r"(?<!\S)([A-Z][A-Z0-9]*?)(?:_FREQ)? (?:(\d+)%)?(?:(?:@|(?<= ))(?:\[([\d,]+)\]|(\d+)))?(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([\w-]+)@(-?\d+(?:\.\d+)?)C(?![^\s/])")
# A name, then now, average and highest in mW or without a unit; a single number without a unit is a clock.
_POWER = re.compile(r"(?<!\S)([A-Z]\w*) (-?\d+)(?=mW|/)(?:mW)?(?:/(-?\d+)(?:mW)?)?(?:/-?\d+(?:mW)?)?(?!\S)")
_NOT_CONNECTED = "NC"
_PATHS = "/usr/bin:/usr/local/bin:/home/nvidia:/home/ubuntu"
_STALE_S = 1.0
_FIRST_LINE_S = 3.0
_EVERY_MS = 100
Key = tuple[str, Kind]


def tegrastats_sources(command: str | None = None) -> Found:
    """The source, or why there is none.

    Args:
        command: path of the program; found by itself if not given.
    """
    path = command or shutil.which("tegrastats", path=_PATHS)
    if path is None:
        return Found(absent={"board power": "no tegrastats"})
    try:
        return Found([TegrastatsSource(path)])
    except (OSError, InputError) as error:
        return Found(absent={"board power": f"{path}: {error}"})


class TegrastatsSource(SensorSource):
    """Powers, temperatures and the GPU, as a tegrastats process prints them ten times a second.

    Raises:
        OSError: the program does not start.
        InputError: it prints nothing that can be read within three seconds.
    """

    name = "tegrastats"

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            [command, "--interval", str(_EVERY_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: deque[tuple[float, dict[Key, float]]] = deque(maxlen=1)
        self._seen: dict[Key, None] = {}  # in the order of their coming; written by the thread alone
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
        self._thread.start()
        self._first.wait(_FIRST_LINE_S)
        if not self._lines:
            self.close()
            raise InputError(f"it printed no line that can be read within {_FIRST_LINE_S:.0f} s")
        self._channels = channels_of(tuple(self._seen))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What the lines so far named; which rails make the total may change with one that comes later."""
        if len(self._seen) > len(self._channels):
            self._channels = channels_of(tuple(self._seen))
        return self._channels

    def read(self) -> Sequence[float]:
        """The latest line's values; NaN once it is older than a second."""
        when, values = self._lines[0]
        if time.perf_counter() - when > _STALE_S:
            values = {}
        return [values.get((channel.name, channel.kind), NEVER) for channel in self._channels]

    def fault(self, _index: int) -> str:
        """Whether the program ended."""
        return "tegrastats ended" if self._process.poll() is not None else "tegrastats does not print it"

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # cut short where the program ended: a number in it may lack digits
                try:
                    values = values_of(parse_tegrastats(line))
                except InputError:
                    continue  # a warning between the lines
                self._seen.update(dict.fromkeys(values))
                self._lines.append((time.perf_counter(), values))
                self._first.set()
        self._first.set()


def values_of(line: Tegrastats) -> dict[Key, float]:
    """What of a line is not read better from /proc and cpufreq: powers, temperatures that are no constant, the GPU."""
    values: dict[Key, float] = {(rail, "power_w"): power for rail, power in line.powers_w.items()}
    values |= {
        (sensor, "temperature_c"): celsius for sensor, celsius in line.temperatures_c.items() if not is_constant(sensor)
    }
    gpu = line.engines.get("GR3D")
    if gpu and gpu.load is not None:
        values["GPU", "load"] = gpu.load
    if gpu and gpu.clock_mhz is not None:
        values["GPU", "clock_mhz"] = gpu.clock_mhz
    return values


def channels_of(keys: Collection[Key]) -> tuple[Channel, ...]:
    """The channels of what some lines name, in their order."""
    total = total_rails(name for name, kind in keys if kind == "power_w")
    return tuple(
        rail_channel(name, total)
        if kind == "power_w"
        else Channel(name, kind, part_of(name) if kind == "temperature_c" else "gpu")
        for name, kind in keys
    )


class UnitReading(msgspec.Struct, frozen=True, kw_only=True):
    """Load and clock of one unit; None where the line does not say it.

    Attributes:
        load: share of its time in [0, 1].
        clock_mhz: the highest, where there are several.
    """

    load: float | None = None
    clock_mhz: float | None = None


class Tegrastats(msgspec.Struct, frozen=True, kw_only=True):
    """What one line says; anything that it leaves out is None or not in its dictionary.

    Attributes:
        ram_mib, ram_total_mib, swap_mib: memory in use, all memory, swap in use (tegrastats' MB are 2²⁰ bytes).
        cpus: one entry a core; None for a core that is off.
        engines: ``"GR3D"`` (the GPU), ``"EMC"`` (memory), ``"NVENC"``, …
        temperatures_c: by sensor; the value now. A sensor that is switched off (-256) has none.
        powers_w: by rail; the value now.
        average_powers_w: by rail, since tegrastats started, where it is given.
    """

    ram_mib: float | None
    ram_total_mib: float | None
    swap_mib: float | None
    cpus: tuple[UnitReading | None, ...]
    engines: dict[str, UnitReading]
    temperatures_c: dict[str, float]
    powers_w: dict[str, float]
    average_powers_w: dict[str, float]

    @property
    def cpu_load(self) -> float | None:
        """Mean load of all cores; one that is off has none."""
        loads = [core.load or 0.0 if core else 0.0 for core in self.cpus]
        return sum(loads) / len(loads) if loads else None

    @property
    def cpu_clock_mhz(self) -> float | None:
        """Mean clock of the cores that are on."""
        clocks = [core.clock_mhz for core in self.cpus if core and core.clock_mhz is not None]
        return sum(clocks) / len(clocks) if clocks else None


def parse_tegrastats(line: str) -> Tegrastats:
    """Read one line; what is not known in it is passed over.

    Raises:
        InputError: it has neither memory nor CPUs, and so is not a line of tegrastats.
    """
    memory = {name: (float(used), float(all_)) for name, used, all_, _ in _MEMORY.findall(line)}
    cores = _CPU.search(line)
    if not memory and not cores:
        raise InputError(f"expected a line of tegrastats (RAM …/…MB … CPU […]), got {line[:60]!r}")
    ram = memory.get("RAM")
    powers: dict[str, float] = {}
    averages: dict[str, float] = {}
    for rail, now, average in _POWER.findall(line):
        if rail == _NOT_CONNECTED:
            continue
        powers[rail] = int(now) / 1000
        if average:
            averages[rail] = int(average) / 1000
    return Tegrastats(
        ram_mib=ram[0] if ram else None,
        ram_total_mib=ram[1] if ram else None,
        swap_mib=memory["SWAP"][0] if "SWAP" in memory else None,
        cpus=tuple(_core(text, cores[2]) for text in cores[1].split(",")) if cores else (),
        engines=_engines(line),
        temperatures_c={
            name: float(now) for name, now in _TEMPERATURE.findall(line) if not is_switched_off(float(now))
        },
        powers_w=powers,
        average_powers_w=averages,
    )


def _core(text: str, common_clock: str | None) -> UnitReading | None:
    found = _CORE.match(text.strip())
    if not found:
        return None  # "off"
    clock = found[2] or common_clock
    return UnitReading(load=_share(found[1]), clock_mhz=float(clock) if clock else None)


def _share(percent: str) -> float | None:
    """None for what is no share of a unit's time."""
    return int(percent) / 100 if percent and int(percent) <= 100 else None


def _engines(line: str) -> dict[str, UnitReading]:
    engines: dict[str, UnitReading] = {}
    for name, load, clocks, clock in _ENGINE.findall(line):
        if load or clocks or clock:
            speeds = [float(value) for value in (clocks or clock).split(",") if value]
            engines[name] = UnitReading(load=_share(load), clock_mhz=max(speeds) if speeds else None)
    return engines
