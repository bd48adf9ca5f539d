"""A machine's files in, the name of its power mode and whether its clocks are pinned out."""

from __future__ import annotations

from edgeclip.devices.clocks import read_clocks
from edgeclip.devices.jetson import current_mode, power_modes
from edgeclip.devices.tree import Tree


def nvpmodel_mode(tree: Tree) -> str | None:
    """A Jetson's power mode by name (``"MAXN"``), from nvpmodel's own files, which anyone may read.

    Returns:
        The name; ``"mode 2"`` where only the number is known; None where nvpmodel has left no status.
    """
    mode = current_mode(tree, power_modes(tree.text("etc/nvpmodel.conf") or ""))
    return mode.name if mode else None


def power_mode(tree: Tree) -> str | None:
    """The power mode in words: ``"15W"``, ``"MAXN, CPU clocks pinned"``, ``"governor powersave"``; None if unknown."""
    clocks = [clock for clock in read_clocks(tree) if clock.name != "gpu"]
    words = []
    if mode := nvpmodel_mode(tree):
        words.append(mode)
    elif profile := tree.text("sys/firmware/acpi/platform_profile"):
        words.append(f"profile {profile}")
    if not mode and (governors := {clock.governor for clock in clocks if clock.governor}):
        words.append(f"governor {'/'.join(sorted(governors))}")
    if clocks and all(clock.pinned for clock in clocks):
        words.append("CPU clocks pinned")  # as jetson_clocks does
    return ", ".join(words) or None
