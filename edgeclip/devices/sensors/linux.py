"""/proc, cpufreq, thermal zones and cooling devices of any Linux in; load, memory, clocks and temperatures out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from edgeclip.devices.machine.temperatures import is_constant, is_switched_off
from edgeclip.devices.sensors.base import (
    NEVER,
    Channel,
    FileSource,
    Found,
    Part,
    Reader,
    SensorSource,
    ValueFile,
    numbered,
    opened,
    text_of,
)

_CLOCKS = 8  # as many cores' clocks are read: more cost more and say nothing else
_ZONES = 12
# A zone that is no sensor of what computes: a fan's target, the radio.
_NO_ZONE = re.compile(r"fan|iwlwifi|acpitz|pch_", re.IGNORECASE)
_SLOWS = re.compile(r"cpufreq|devfreq|throttle|balanced|^Processor$")  # cooling by a lower clock, not by a fan


def linux_sources(root: Path) -> Found:
    """Load and memory (needs no extra), and what the kernel reports of clocks and temperatures."""
    found = Found()
    try:
        found.sources.append(ProcSource(root))
    except OSError as error:
        found.absent["load and memory"] = f"{error.filename}: {error.strerror}"
    found.add(_clocks(root))
    found.add(_thermal_zones(root))
    found.add(_cooling(root))
    return found


class ProcSource(SensorSource):
    """CPU load, this process's share of the cores, and memory, from /proc.

    Loads are of the time since the reading before; 1 is all cores busy.

    Raises:
        OSError: /proc is not there.
    """

    name = "/proc"
    _channels = (
        Channel("CPU", "load", "cpu"),
        Channel("this process", "load", "process"),
        Channel("memory in use", "memory_mb", "system"),
        Channel("this process", "memory_mb", "process"),
    )

    def __init__(self, root: Path) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC
        self._files: list[int] = []
        try:
            for name in ("stat", "meminfo", "self/statm"):
                self._files.append(os.open(root / "proc" / name, flags))
        except OSError:
            self.close()
            raise
        self._stat, self._meminfo, self._statm = self._files
        self._page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
        self._cores = os.cpu_count() or 1
        self._fault = ""
        self._jiffies = (0.0, 0.0)
        self._process = (time.perf_counter(), time.process_time())
        self._load()

    def read(self) -> Sequence[float]:
        """Load, load of this process, 10⁶ bytes in use, 10⁶ bytes resident."""
        self._fault = ""
        return (self._load(), self._process_load(), self._memory(), self._resident())

    def fault(self, _index: int) -> str:
        """What went wrong in the last reading."""
        return self._fault

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)

    def _load(self) -> float:
        try:
            fields = [float(field) for field in os.pread(self._stat, 256, 0).split(b"\n", 1)[0].split()[1:9]]
        except (OSError, ValueError) as error:
            self._fault = str(error)
            return NEVER
        if len(fields) < 5:
            self._fault = "no line of all CPUs in /proc/stat"
            return NEVER
        total, idle = sum(fields), fields[3] + fields[4]  # idle, and idle while a disk is waited for
        (total_before, idle_before), self._jiffies = self._jiffies, (total, idle)
        if not total > total_before:
            self._fault = "no time since the reading before"
            return NEVER
        return 1.0 - (idle - idle_before) / (total - total_before)

    def _process_load(self) -> float:
        (wall_before, used_before), self._process = self._process, (time.perf_counter(), time.process_time())
        wall, used = self._process
        return (used - used_before) / ((wall - wall_before) * self._cores) if wall > wall_before else NEVER

    def _memory(self) -> float:
        try:
            text = os.pread(self._meminfo, 512, 0)
            total, available = (_kib_after(text, name) for name in (b"MemTotal:", b"MemAvailable:"))
        except (OSError, ValueError, IndexError) as error:
            self._fault = str(error)
            return NEVER
        return (total - available) * 1024 / 1e6

    def _resident(self) -> float:
        try:
            return int(os.pread(self._statm, 128, 0).split()[1]) * self._page_mb
        except (OSError, ValueError, IndexError) as error:
            self._fault = str(error)
            return NEVER


def part_of(sensor: str) -> Part:
    """What a temperature sensor belongs to, by its name."""
    name = sensor.lower()
    if "gpu" in name:
        return "gpu"
    if re.search(r"cpu|x86_pkg|package|tctl|tdie|^core ", name):
        return "cpu"
    return "chip" if re.search(r"^tj|soc|^cv\d|tdiode|^ao|^aux|thermal", name) else "board"


def _kib_after(text: bytes, name: bytes) -> float:
    return float(text[text.index(name) + len(name) :].split(None, 1)[0])


def _clocks(root: Path) -> Found:
    policies = numbered(root / "sys/devices/system/cpu/cpufreq", "policy*")
    step = max(1, -(-len(policies) // _CLOCKS))
    readers: list[tuple[Channel, Reader]] = []
    for policy in policies[::step]:
        if reader := opened(policy / "scaling_cur_freq", 1e-3):  # kHz
            readers.append((Channel(policy.name.replace("policy", "cpu"), "clock_mhz", "cpu"), reader))
    if readers:
        return Found([FileSource("cpufreq", readers)])
    info = root / "proc/cpuinfo"
    if "cpu MHz" in text_of(info):
        return Found([_CpuinfoClock(info)])
    return Found(absent={"CPU clock": f"no cpufreq in {root / 'sys/devices/system/cpu'}, no cpu MHz in {info}"})


class _CpuinfoClock(SensorSource):
    """The mean of ``cpu MHz``; on a large machine a reading takes milliseconds, so before and after only."""

    name = "/proc/cpuinfo"
    _channels = (Channel("CPU", "clock_mhz", "cpu"),)
    each_time = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Sequence[float]:
        """Mean over the cores, MHz."""
        clocks = [float(clock) for clock in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text_of(self._path), re.MULTILINE)]
        return (sum(clocks) / len(clocks) if clocks else NEVER,)

    def fault(self, _index: int) -> str:
        """What is wrong if there is no clock."""
        return "no cpu MHz"


def _thermal_zones(root: Path) -> Found:
    readers: list[tuple[Channel, Reader]] = []
    for zone in numbered(root / "sys/class/thermal", "thermal_zone*"):
        name = text_of(zone / "type") or zone.name
        if is_constant(name) or _NO_ZONE.search(name) or len(readers) == _ZONES:
            continue
        if file := opened(zone / "temp", 1e-3):
            readers.append((Channel(name, "temperature_c", part_of(name)), _ZoneFile(file)))
    return Found([FileSource("thermal zones", readers)] if readers else [])


class _ZoneFile:
    """A thermal zone's °C, or NaN while its part is switched off."""

    def __init__(self, file: ValueFile) -> None:
        self._file = file
        self.fault = ""

    def read(self) -> float:
        """°C now, or NaN."""
        celsius = self._file.read()
        off = is_switched_off(celsius)
        self.fault = "switched off" if off else self._file.fault
        return NEVER if off else celsius

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cooling(root: Path) -> Found:
    """Cooling devices that slow the machine: a state above 0 is throttling."""
    readers: list[tuple[Channel, Reader]] = []
    for device in numbered(root / "sys/class/thermal", "cooling_device*"):
        name = text_of(device / "type")
        if _SLOWS.search(name) and (reader := opened(device / "cur_state")):
            readers.append((Channel(f"cooling by {name}", "throttle", "chip"), reader))
    return Found([FileSource("cooling devices", readers)] if readers else [])
