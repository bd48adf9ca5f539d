"""A Jetson's power monitors, GPU load and clock, and over-current counters in; their channels out, or why not.

Paths are those of L4T 32 (the ``ina3221x`` driver, under iio), 35, 36 and 38 (hwmon); written from NVIDIA's Jetson
Linux Developer Guides and the kernel's documentation of the drivers, not run on a board.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from edgeclip.devices.sensors.base import (
    Channel,
    FileSource,
    Found,
    Part,
    ProductFiles,
    Reader,
    SensorAccuracy,
    ValueFile,
    numbered,
    opened,
    text_of,
)

_GPU = re.compile(r"^(gpu-gpc-0|[0-9a-f]+\.(gpu|gm20b|gp10b|gv11b|ga10b|gb10b))$")
_EVENTS = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
_INA3221_DATASHEET = "TI SBOS576B: shunt offset ±80 µV, gain ±0.25 %, bus ±16 mV and ±0.25 %; the shunt's own not known"
# A rail that all others hang on. VDD_IN: the module (TX2, Xavier NX, Orin Nano and NX); POM_5V_IN: the board (Nano);
# VIN: the board, through the carrier's own sensor (Thor). NVIDIA, Jetson Linux Developer Guide, "Software-Based Power
# Consumption Modeling" of each series.
_WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
# Fed by VIN_SYS_5V0 and so already counted there (AGX Orin, same place).
_WITHIN_ANOTHER = frozenset({"VDDQ_VDD2_1V8AO"})
# Words of a rail's name that say nothing of what it feeds: VDD, VDDQ, VIN, POM, SYS5V, 1V8AO.
_NO_PART = re.compile(r"(VDD\w*|VIN|POM|SYS\w*|IN|\d+V\w*)$")
_ON_MODULE = {"CPU", "GPU", "CV", "SOC", "MSS", "DDR"}
PowerRail = tuple[str, Reader, SensorAccuracy | None]


def jetson_sources(root: Path) -> Found:
    """What only a Jetson reports; ``absent`` names the board's power where no monitor can be read."""
    found = Found()
    rails = _hwmon_rails(root) or _iio_rails(root)
    if rails:
        total = total_rails(name for name, _, _ in rails)
        found.sources.append(
            FileSource(
                "INA power monitors",
                [(rail_channel(name, total, accuracy), reader) for name, reader, accuracy in rails],
            )
        )
    else:
        found.absent["board power"] = "no INA3221 in /sys/class/hwmon nor /sys/bus/i2c/drivers/ina3221x"
    found.add(_gpu(root))
    found.add(_over_current(root))
    return found


def _hwmon_rails(root: Path) -> list[PowerRail]:
    """Rails of L4T 35 and later: ``in<n>_label``, ``in<n>_input`` (mV) and ``curr<n>_input`` (mA), or power itself."""
    rails: list[PowerRail] = []
    for chip in numbered(root / "sys/class/hwmon", "hwmon*"):
        name = text_of(chip / "name")
        if name == "ina238" and (power := opened(chip / "power1_input", 1e-6)):  # µW; the input of a Thor's carrier
            rails.append(("VIN", power, None))
        if name != "ina3221":
            continue
        for label_file in numbered(chip, "in[123]_label"):
            number, label = label_file.name[2], text_of(label_file)
            volts, amperes = opened(chip / f"in{number}_input", 1.0), opened(chip / f"curr{number}_input", 1.0)
            if volts and amperes and label not in ("", "NC"):
                rails.append((label, ProductFiles(volts, amperes), _ina3221_accuracy(chip, number, volts)))
            else:
                for file in (volts, amperes):
                    if file:
                        file.close()
    return rails


def _ina3221_accuracy(chip: Path, number: str, volts: ValueFile) -> SensorAccuracy | None:
    """From the datasheet's limits and the shunt's resistance; None where that is not told."""
    shunt, bus_v = text_of(chip / f"shunt{number}_resistor"), volts.read() * 1e-3  # µΩ
    if not shunt.isdigit() or int(shunt) == 0 or not bus_v > 0:
        return None
    current_offset_a = 80e-6 / (int(shunt) * 1e-6)
    return SensorAccuracy(
        absolute_w=bus_v * current_offset_a,
        relative=0.0025 + 0.0025 + 16e-3 / bus_v,
        source=_INA3221_DATASHEET,
    )


def _iio_rails(root: Path) -> list[PowerRail]:
    """Rails of L4T 32: ``rail_name_<n>`` and ``in_power<n>_input`` (mW) of each iio device."""
    rails: list[PowerRail] = []
    for device in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio*device*")):
        for name_file in numbered(device, "rail_name_*"):
            number = name_file.name.rpartition("_")[2]
            label, power = text_of(name_file), opened(device / f"in_power{number}_input", 1e-3)
            if power and label and label not in [name for name, _, _ in rails]:  # iio_device may link to iio:device0
                rails.append((label, power, None))
            elif power:
                power.close()
    return rails


def rail_channel(rail: str, total: Collection[str], accuracy: SensorAccuracy | None = None) -> Channel:
    """The channel of a rail's power; ``total``: the rails that make the machine's."""
    parts = parts_of_rail(rail)
    return Channel(rail, "power_w", part_of_rail(rail), in_total=rail in total, accuracy=accuracy, feeds=parts)


def total_rails(rails: Iterable[str]) -> frozenset[str]:
    """The power rails whose powers add up to the most that is measured: one that feeds all, else all that are apart."""
    names = set(rails)
    whole = whole_rail(names)
    return frozenset({whole}) if whole else frozenset(names - _WITHIN_ANOTHER)


def whole_rail(rails: Iterable[str]) -> str | None:
    """The rail that feeds all others; None where none of them does."""
    names = set(rails)
    return next((whole for whole in _WHOLE if whole in names), None)


def parts_of_rail(rail: str) -> tuple[str, ...]:
    """What a rail feeds, as its name says: ``("CPU", "SOC", "MSS")`` of ``VDD_CPU_SOC_MSS``; none where it does not."""
    return tuple(word for word in rail.upper().split("_") if not _NO_PART.match(word))


def doubt_of(powers_w: Mapping[str, float]) -> str:
    """What speaks against a total: the rail that feeds all reads less than one of its parts. Empty where nothing does.

    On some carriers the monitors' channels are wired in another order than the device tree names them.

    Args:
        powers_w: mean power by rail.
    """
    whole = whole_rail(powers_w)
    # A carrier's own rails (VDD_MUX of a TX2's) lie beside or above the module's input, not below it.
    below = [rail for rail in powers_w if whole != "VDD_IN" or set(parts_of_rail(rail)) & _ON_MODULE]
    part = max(below, key=lambda rail: powers_w[rail], default=None)
    if whole is None or part is None or powers_w[part] <= powers_w[whole]:
        return ""
    return (
        f"{whole} reads {powers_w[whole]:.2f} W, less than {part} with {powers_w[part]:.2f} W, which it feeds: "
        "this carrier may name its rails wrongly"
    )


def part_of_rail(rail: str) -> Part:
    """``gpu`` and ``cpu`` for a rail of its own; ``board`` for one that feeds several parts, or something else."""
    match parts_of_rail(rail):
        case ("GPU",):
            return "gpu"
        case ("CPU",):
            return "cpu"
        case _:
            return "board"


def _gpu(root: Path) -> Found:
    readers: list[tuple[Channel, Reader]] = []
    devices = [path for path in sorted((root / "sys/class/devfreq").glob("*")) if _GPU.match(path.name)]
    for device in devices[:1]:
        if clock := opened(device / "cur_freq", 1e-6):  # Hz
            readers.append((Channel("GPU", "clock_mhz", "gpu"), clock))
    loads = [*(device / "device/load" for device in devices)]
    loads += [root / "sys/devices/platform/gpu.0/load", root / "sys/devices/gpu.0/load"]
    for path in loads:
        if load := opened(path, 1e-3):  # per mille
            readers.append((Channel("GPU", "load", "gpu"), load))
            break
    absent = {} if readers else {"GPU": "no GPU in /sys/class/devfreq"}
    return Found([FileSource("devfreq", readers)] if readers else [], absent)


def _over_current(root: Path) -> Found:
    """Counters of what makes the hardware throttle (Orin and later: the hwmon ``soctherm_oc``)."""
    readers: list[tuple[Channel, Reader]] = []
    for chip in numbered(root / "sys/class/hwmon", "hwmon*"):
        for path in numbered(chip, "oc[123]_event_cnt"):
            if count := opened(path):
                readers.append((Channel(_EVENTS[path.name[:3]], "throttle_count", "board"), count))
    return Found([FileSource("over-current events", readers)] if readers else [])
