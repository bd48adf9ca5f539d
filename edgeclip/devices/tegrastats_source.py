"""A running tegrastats in, channels of its latest line out: where a Jetson's own files cannot be read."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence

from edgeclip.devices.rails import in_total, part_of_rail
from edgeclip.devices.sensors import NEVER, Channel, Found, Kind, Part, Source
from edgeclip.devices.sensors_linux import part_of
from edgeclip.devices.tegrastats import Tegrastats, parse_tegrastats
from edgeclip.errors import InputError

_PATHS = "/usr/bin:/usr/local/bin:/home/nvidia:/home/ubuntu"
_STALE_S = 1.0
_FIRST_LINE_S = 3.0
_EVERY_MS = 100

Key = tuple[str, Kind, Part]


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


class TegrastatsSource(Source):
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
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
        self._thread.start()
        self._first.wait(_FIRST_LINE_S)
        if not self._lines:
            self.close()
            raise InputError(f"it printed no line that can be read within {_FIRST_LINE_S:.0f} s")
        self._keys: tuple[Key, ...] = tuple(self._lines[0][1])
        total = in_total(name for name, kind, _ in self._keys if kind == "power_w")
        self.channels = tuple(
            Channel(name, kind, part, in_total=kind == "power_w" and name in total) for name, kind, part in self._keys
        )

    def read(self) -> Sequence[float]:
        """The latest line's values; NaN once it is older than a second."""
        when, values = self._lines[0]
        if time.perf_counter() - when > _STALE_S:
            return [NEVER] * len(self._keys)
        return [values.get(key, NEVER) for key in self._keys]

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
                try:
                    values = _values(parse_tegrastats(line))
                except InputError:
                    continue  # a warning between the lines
                self._lines.append((time.perf_counter(), values))
                self._first.set()
        self._first.set()


def _values(line: Tegrastats) -> dict[Key, float]:
    """What of a line is not read better from /proc and cpufreq."""
    values: dict[Key, float] = {}
    for rail, power in line.powers_w.items():
        values[rail, "power_w", part_of_rail(rail)] = power
    for sensor, temperature in line.temperatures_c.items():
        if "PMIC" not in sensor:  # a constant
            values[sensor, "temperature_c", part_of(sensor)] = temperature
    gpu = line.engines.get("GR3D")
    if gpu and gpu.load is not None:
        values["GPU", "load", "gpu"] = gpu.load
    if gpu and gpu.clock_mhz is not None:
        values["GPU", "clock_mhz", "gpu"] = gpu.clock_mhz
    return values
