"""Names of a Jetson's power rails in; which of them make the total, and what each feeds, out."""

from __future__ import annotations

from collections.abc import Iterable

from edgeclip.devices.sensors import Part

# A rail that all others hang on. VDD_IN: the module (TX2, Xavier NX, Orin Nano and NX); POM_5V_IN: the board (Nano);
# VIN: the board, through the carrier's own sensor (Thor). NVIDIA, Jetson Linux Developer Guide, "Software-Based Power
# Consumption Modeling" of each series.
_WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
# Fed by VIN_SYS_5V0 and so already counted there (AGX Orin, same place).
_WITHIN_ANOTHER = frozenset({"VDDQ_VDD2_1V8AO"})


def in_total(rails: Iterable[str]) -> frozenset[str]:
    """The rails whose powers add up to the most that is measured: one that feeds all, else all that are apart."""
    names = set(rails)
    for whole in _WHOLE:
        if whole in names:
            return frozenset({whole})
    return frozenset(names - _WITHIN_ANOTHER)


def part_of_rail(rail: str) -> Part:
    """``gpu`` and ``cpu`` for a rail of its own; ``board`` for one that feeds several parts."""
    gpu, cpu = "GPU" in rail, "CPU" in rail
    if gpu != cpu:
        return "gpu" if gpu else "cpu"
    return "board"
