"""A machine's files in, the name of its power mode and whether its clocks are pinned out."""

from __future__ import annotations

import re
from pathlib import Path

from edgeclip.devices.sensors import numbered, text_of


def nvpmodel_mode(root: Path = Path("/")) -> str | None:
    """A Jetson's power mode by name (``"MAXN"``), from nvpmodel's own files, which anyone may read.

    Args:
        root: the file system to read (a test's recorded tree, say).

    Returns:
        The name; ``"mode 2"`` where only the number is known; None where nvpmodel has left no status.
    """
    found = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    if not found:
        return None
    number = int(found[1])
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text_of(root / "etc/nvpmodel.conf"))
    known: dict[int, str] = {int(key): name for key, name in names}
    return known.get(number, f"mode {number}")


def power_mode(root: Path = Path("/")) -> str | None:
    """The power mode in words: ``"15W"``, ``"MAXN, CPU clocks pinned"``, ``"governor powersave"``; None if unknown."""
    policies = numbered(root / "sys/devices/system/cpu/cpufreq", "policy*")
    words = []
    if mode := nvpmodel_mode(root):
        words.append(mode)
    elif profile := text_of(root / "sys/firmware/acpi/platform_profile"):
        words.append(f"profile {profile}")
    if not mode and (governors := {text_of(policy / "scaling_governor") for policy in policies} - {""}):
        words.append(f"governor {'/'.join(sorted(governors))}")
    if policies and all(map(_pinned, policies)):
        words.append("CPU clocks pinned")  # as jetson_clocks does
    return ", ".join(words) or None


def _pinned(policy: Path) -> bool:
    least, most = text_of(policy / "scaling_min_freq"), text_of(policy / "scaling_max_freq")
    return bool(least) and least == most
