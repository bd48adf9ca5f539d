"""RAPL, CPU temperature chips and throttle counters of an x86 machine in; their channels out, or why not."""

from __future__ import annotations

import re
from pathlib import Path

from edgeclip.devices.sensors.base import Channel, FileSource, Found, Reader, numbered, opened, text_of
from edgeclip.devices.sensors.linux import part_of

_TEMPERATURE_CHIPS = ("coretemp", "k10temp", "zenpower")
_WHOLE_CHIP = re.compile(r"package|tctl|tdie", re.IGNORECASE)
_CORES_READ = 8
_POWERCAP = "sys/class/powercap"
_RAPL_PERIOD_S = 1e-3  # Intel SDM volume 3, "Package RAPL Domain": updated about every millisecond


def x86_sources(root: Path) -> Found:
    """What an x86 machine reports beyond any Linux; a machine of another kind has none of it."""
    found = _rapl(root)
    found.add(_temperatures(root))
    found.add(_throttle_counts(root))
    return found


def _rapl(root: Path) -> Found:
    """Energy counters of packages and their memory, from Linux's powercap.

    Documentation: the kernel's power/powercap/powercap.rst: ``energy_uj`` counts microjoules and starts again from zero
    after ``max_energy_range_uj``. Zones below a package other than ``dram`` are part of it; ``psys`` is the whole
    platform and holds the packages, so it is shown and not added.
    """
    folder = root / _POWERCAP
    zones = [zone for zone in numbered(folder, "intel-rapl:*") if (zone / "energy_uj").exists()]
    if not zones:
        return Found(absent={"CPU power": "no RAPL" + _virtual(root)})
    readers: list[tuple[Channel, Reader]] = []
    for zone in zones:
        name = text_of(zone / "name") or zone.name
        wraps = text_of(zone / "max_energy_range_uj")
        # Below a package as intel-rapl:0:1, so one name can occur once a package.
        package = zone.name.split(":")[1] if zone.name.count(":") > 1 else ""
        channel = Channel(
            f"{name}-{package}" if package else name,
            "energy_j",
            "cpu",
            in_total=name.startswith("package") or name == "dram",
            wraps_j=float(wraps) * 1e-6 if wraps.isdigit() else 0.0,
            period_s=_RAPL_PERIOD_S,
        )
        if reader := opened(zone / "energy_uj", 1e-6):
            readers.append((channel, reader))
    if not any(channel.in_total for channel, _ in readers):
        for _, opened_reader in readers:
            opened_reader.close()
        return Found(absent={"CPU power": "RAPL needs root"})
    return Found([FileSource("RAPL", readers)])


def _virtual(root: Path) -> str:
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    return " (a virtual machine)" if flags else ""


def _temperatures(root: Path) -> Found:
    readers: list[tuple[Channel, Reader]] = []
    for chip in numbered(root / "sys/class/hwmon", "hwmon*"):
        if text_of(chip / "name") not in _TEMPERATURE_CHIPS:
            continue
        labels = {path: text_of(path.with_name(path.name.replace("_input", "_label"))) for path in _inputs(chip)}
        whole = [path for path, label in labels.items() if _WHOLE_CHIP.search(label)]
        for path in whole or list(labels)[:_CORES_READ]:
            label = labels[path] or text_of(chip / "name")
            if reader := opened(path, 1e-3):
                part = part_of(label)
                readers.append((Channel(label, "temperature_c", "cpu" if part == "board" else part), reader))
    return Found([FileSource("hwmon", readers)] if readers else [])


def _inputs(chip: Path) -> list[Path]:
    return numbered(chip, "temp*_input")


def _throttle_counts(root: Path) -> Found:
    """Thermal throttle events; Intel only. One core's package counter stands for its package."""
    readers: list[tuple[Channel, Reader]] = []
    packages: set[str] = set()
    for core in numbered(root / "sys/devices/system/cpu", "cpu[0-9]*"):
        package = text_of(core / "topology/physical_package_id") or "0"
        if package in packages:
            continue
        for scope in ("package", "core"):
            if reader := opened(core / f"thermal_throttle/{scope}_throttle_count"):
                packages.add(package)
                name = f"{core.name} {scope} too hot"
                readers.append((Channel(name, "throttle_count", "cpu"), reader))
    return Found([FileSource("thermal_throttle", readers)] if readers else [])
