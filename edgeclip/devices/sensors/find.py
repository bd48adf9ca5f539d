"""A machine in, all sensors that can be read on it out; and why others cannot."""

from __future__ import annotations

from pathlib import Path

from edgeclip.devices.machine.jetson import is_jetson
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.base import Found
from edgeclip.devices.sensors.jetson import jetson_sources
from edgeclip.devices.sensors.linux import linux_sources
from edgeclip.devices.sensors.nvml import nvml_sources
from edgeclip.devices.sensors.tegrastats import tegrastats_sources
from edgeclip.devices.sensors.x86 import x86_sources


def find_sources(root: Path = Path("/")) -> Found:
    """Open everything that reports power, clocks, temperatures, load, memory or throttling.

    Args:
        root: the file system to read (a test's recorded tree, say); NVML and tegrastats, which are of this machine,
            are asked only where it is ``/``.

    Returns:
        Power first, so that its readings lie close to the time that is noted for them. The caller closes the sources.
    """
    here = root == Path("/")
    found = Found()
    jetson = is_jetson(Tree(root))
    if jetson:
        found.add(jetson_sources(root))
        if here and "board power" in found.absent:
            reason = found.absent.pop("board power")
            found.add(tegrastats_sources())
            if "board power" in found.absent:
                found.absent["board power"] = f"{reason}; {found.absent['board power']}"
    else:
        found.add(x86_sources(root))
    if here:
        found.add(nvml_sources(in_total=not jetson))
    found.add(linux_sources(root))
    found.absent["temperature"] = "no thermal zone and no temperature chip"
    kinds = {channel.kind for source in found.sources for channel in source.channels}
    if not kinds & {"throttle", "throttle_count"}:
        found.absent["throttling"] = "nothing here reports it"
    found.absent = found.still_absent()
    return found
