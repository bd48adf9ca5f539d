"""A machine's files in, what makes it a Jetson out: Jetson Linux release, power modes, and JetPack's own TensorRT.

``power_mode`` names the power mode of any machine, and whether its clocks are pinned.
"""

from __future__ import annotations

import re

import msgspec

from edgeclip.devices.machine.clocks import read_clocks
from edgeclip.devices.machine.tree import Tree

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
_MODE = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_LIBRARY = re.compile(r"libnvinfer\.so\.(\d+\.\d+\.\d+)$")


class Mode(msgspec.Struct, frozen=True):
    """One of nvpmodel's modes on this board; ids and names differ between boards and releases."""

    id: int
    name: str


class SystemTensorRt(msgspec.Struct, frozen=True):
    """TensorRT as JetPack's packages install it.

    Attributes:
        version: of ``libnvinfer``, ``10.3.0``.
        bindings: the folders of the system's Python that hold its module; empty where its package is missing.
    """

    version: str
    bindings: tuple[str, ...]


class Jetson(msgspec.Struct, frozen=True):
    """What only a Jetson has; None for what its files do not say.

    Attributes:
        l4t: release of Jetson Linux, ``36.4.3``.
        modes: nvpmodel's, in the order of their ids.
        mode: the one that it is in.
    """

    l4t: str | None
    modes: tuple[Mode, ...]
    mode: Mode | None
    tensorrt: SystemTensorRt | None


def is_jetson(tree: Tree) -> bool:
    """Whether this is a Jetson, by L4T's release file or the device tree."""
    soc = any(name.startswith("nvidia,tegra") for name in tree.strings("proc/device-tree/compatible"))
    return soc or tree.exists("etc/nv_tegra_release")


def read_jetson(tree: Tree) -> Jetson | None:
    """What a Jetson's files say, or None for another machine.

    A container on a Jetson has the board's device tree, but need not have its other files.
    """
    if not is_jetson(tree):
        return None
    release = tree.text("etc/nv_tegra_release")
    modes = power_modes(tree.text("etc/nvpmodel.conf") or "")
    return Jetson(l4t_release(release or ""), modes, current_mode(tree, modes), _tensorrt(tree))


def current_mode(tree: Tree, modes: tuple[Mode, ...]) -> Mode | None:
    """The mode that nvpmodel's status file names by id, ``pmode:0002``; None if it left none.

    Where no mode of that id is defined it is called by it, ``mode 2``.
    """
    now = re.search(r"pmode:(\d+)", tree.text("var/lib/nvpmodel/status") or "")
    if now is None:
        return None
    return next((mode for mode in modes if mode.id == int(now[1])), Mode(int(now[1]), f"mode {int(now[1])}"))


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


def nvpmodel_mode(tree: Tree) -> str | None:
    """A Jetson's power mode by name (``"MAXN"``), from nvpmodel's own files, which anyone may read.

    Returns:
        The name; ``"mode 2"`` where only the number is known; None where nvpmodel has left no status.
    """
    mode = current_mode(tree, power_modes(tree.text("etc/nvpmodel.conf") or ""))
    return mode.name if mode else None


def l4t_release(text: str) -> str | None:
    """``# R36 (release), REVISION: 4.3, …`` as ``36.4.3``."""
    found = _RELEASE.search(text)
    return f"{found[1]}.{found[2]}" if found else None


def power_modes(text: str) -> tuple[Mode, ...]:
    """The modes that an nvpmodel.conf defines, ``< POWER_MODEL ID=0 NAME=15W >`` each."""
    return tuple(sorted((Mode(int(number), name) for number, name in _MODE.findall(text)), key=lambda mode: mode.id))


def fastest_mode(modes: tuple[Mode, ...]) -> Mode | None:
    """The mode that takes off most limits: MAXN_SUPER, else MAXN, else most watts and most cores in the name.

    Xavier NX has no MAXN; its modes are named ``MODE_20W_6CORE`` and the like. Its id says nothing: 0 is ``15W`` on an
    Orin Nano.
    """
    return max(modes, key=_speed, default=None)


def _speed(mode: Mode) -> tuple[int, int, int]:
    name = mode.name.upper()
    watts, cores = re.search(r"(\d+)W", name), re.search(r"(\d+)_?CORE", name)
    return (
        2 if name.startswith("MAXN_SUPER") else int(name.startswith("MAXN")),
        int(watts[1]) if watts else 0,
        int(cores[1]) if cores else 0,
    )


def _tensorrt(tree: Tree) -> SystemTensorRt | None:
    versions = [
        found[1] for path in tree.glob("usr/lib/aarch64-linux-gnu/libnvinfer.so.*") if (found := _LIBRARY.search(path))
    ]
    if not versions:
        return None
    tree.exists(f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{versions[-1]}")  # to be recorded
    modules = tree.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py")
    return SystemTensorRt(
        versions[-1], tuple(path.removesuffix("/tensorrt/__init__.py") for path in modules if tree.exists(path))
    )
