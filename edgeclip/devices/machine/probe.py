"""This machine in, a small dictionary out that says what a measurement was taken on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from edgeclip.devices.machine.cpu import usable_cores
from edgeclip.devices.machine.jetson import nvpmodel_mode
from edgeclip.devices.machine.machine import read_nvidia
from edgeclip.devices.machine.memory import read_memory
from edgeclip.devices.machine.tree import Tree, field
from edgeclip.engine_list import engine_packages

Description = dict[str, str | int | float]


def describe_machine(root: Path = Path("/")) -> Description:
    """Board or CPU, a Jetson's power mode, NVIDIA cards and driver, cores, memory, versions of what runs encoders.

    What cannot be read is left out, never guessed.

    Args:
        root: the file system to read (a test's recorded tree, say).

    Returns:
        JSON-able values; memory in GiB.
    """
    tree = Tree(root)
    described: Description = {
        "architecture": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores_usable": usable_cores(tree),
    }
    if board := tree.text("proc/device-tree/model"):
        described["board"] = board
    if l4t := (tree.text("etc/nv_tegra_release") or "").partition("\n")[0].lstrip("# "):
        described["l4t"] = l4t
    if mode := nvpmodel_mode(tree):
        described["power_mode"] = mode  # another mode is another machine to whoever reads a timing
    if cpu := field(tree.text("proc/cpuinfo"), "model name"):
        described["cpu"] = cpu
    if (memory_gib := read_memory(tree).total_gib) is not None:
        described["memory_gib"] = round(memory_gib, 1)
    if cards := read_nvidia(tree):
        if cards.names:
            described["gpu"] = ", ".join(cards.names)
        if cards.driver:
            described["nvidia_driver"] = cards.driver
    described.update(installed_versions((*engine_packages(), "torch")))
    return described


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed, by their names on PyPI."""
    found = ((package, _installed_version(package)) for package in packages)
    return {package: version for package, version in found if version is not None}


@cache
def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def summary(described: Description) -> str:
    """One line for people: ``AMD EPYC, 2 cores, 23.5 GiB, onnxruntime 1.32.0``; with a GPU, it and its driver.

    Args:
        described: from ``describe_machine``, or as a file has it, which may lack anything.
    """
    engines = [f"{name} {described[name]}" for name in engine_packages() if name in described]
    parts = [
        str(described.get("board") or described.get("cpu") or described.get("architecture") or "an unknown machine"),
        *([f"{described['cores_usable']} cores"] if "cores_usable" in described else []),
        *([f"{described['memory_gib']} GiB"] if "memory_gib" in described else []),
        *([str(described["gpu"])] if "gpu" in described else []),
        *([f"driver {described['nvidia_driver']}"] if "nvidia_driver" in described else []),
        *engines[:1],
    ]
    return ", ".join(parts)
