"""A machine's files in, its temperature sensors out: how warm each is, and where Linux slows something down for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from edgeclip.devices.machine.tree import Tree

# A Jetson's power chip has a zone of one value: 100 °C up to JetPack 4.5, 50 °C from 4.6 on.
_CONSTANT = re.compile("pmic", re.IGNORECASE)
# A Jetson says -256 °C of a part that is switched off; none works near this, and a cold chamber is far above.
_OFF_C = -100.0


class ThermalZone(msgspec.Struct, frozen=True):
    """A temperature sensor.

    Attributes:
        celsius: None where the sensor is switched off.
        throttles_at: the lowest temperature at which Linux slows something down; None where it names none.
    """

    name: str
    celsius: float | None
    throttles_at: float | None


def read_temperatures(tree: Tree) -> tuple[ThermalZone, ...]:
    """The thermal zones of a machine, in the order of their numbers."""
    return tuple(_zone(tree, path) for path in tree.glob("sys/class/thermal/thermal_zone*"))


def hottest(zones: Iterable[ThermalZone]) -> ThermalZone | None:
    """The hottest zone that measures something; None where none does."""
    measured = [(zone.celsius, zone) for zone in zones if zone.celsius is not None and not is_constant(zone.name)]
    return max(measured, key=lambda each: each[0])[1] if measured else None


def is_constant(zone: str) -> bool:
    """Whether a zone of that name shows one value at all times."""
    return bool(_CONSTANT.search(zone))


def is_switched_off(celsius: float) -> bool:
    """Whether that is what a sensor says whose part is switched off."""
    return celsius < _OFF_C


def _zone(tree: Tree, path: str) -> ThermalZone:
    millicelsius = tree.number(f"{path}/temp")
    celsius = None if millicelsius is None or is_switched_off(millicelsius / 1000) else millicelsius / 1000
    trips = [
        degrees
        for kind in tree.glob(f"{path}/trip_point_*_type")
        if tree.text(kind) in {"passive", "hot"}
        and (degrees := tree.number(f"{kind.removesuffix('_type')}_temp")) is not None
        and degrees > 0
    ]
    return ThermalZone(
        name=tree.text(f"{path}/type") or path.rpartition("/")[2],
        celsius=celsius,
        throttles_at=min(trips) / 1000 if trips else None,
    )
