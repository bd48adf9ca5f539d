"""A machine's files in, its PCI graphics cards out: NVIDIA's with or without a driver, and Intel's."""

from __future__ import annotations

import re

import msgspec

from edgeclip.devices.tree import Tree, field

_DRIVER = re.compile(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)")


class NvidiaCards(msgspec.Struct, frozen=True):
    """NVIDIA's graphics cards, as the kernel and its driver show them.

    Attributes:
        driver: version of the kernel's driver; None if it is not loaded.
        names: as NVIDIA calls them; known by the driver only.
        on_bus: how many there are on the PCI bus, with or without a driver.
    """

    driver: str | None
    names: tuple[str, ...]
    on_bus: int


def read_nvidia(tree: Tree) -> NvidiaCards | None:
    """NVIDIA's cards, or None where neither the bus nor a driver shows one."""
    found = re.search(_DRIVER, field(tree.text("proc/driver/nvidia/version"), "NVRM version") or "")
    names = [
        field(tree.text(path), "Model") or "NVIDIA GPU" for path in tree.glob("proc/driver/nvidia/gpus/*/information")
    ]
    on_bus = count_graphics_cards(tree, "0x10de")
    if found is None and not names and not on_bus:
        return None
    return NvidiaCards(found[1] if found else None, tuple(names), on_bus)


def count_graphics_cards(tree: Tree, vendor: str) -> int:
    """PCI devices of a vendor whose class is display (VGA 0x0300…, 3D 0x0302…)."""
    devices = [path.removesuffix("/class") for path in tree.glob("sys/bus/pci/devices/*/class")]
    return sum(
        (tree.text(f"{device}/class") or "").startswith("0x03") and tree.text(f"{device}/vendor") == vendor
        for device in devices
    )
