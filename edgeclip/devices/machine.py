"""A machine's files in, what it is and how it is set out; and the device profile that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgeclip.devices.clocks import Clock, read_clocks
from edgeclip.devices.cpu import Cpu, cpu_flags, read_cpu
from edgeclip.devices.jetson import Jetson, read_jetson
from edgeclip.devices.memory import MachineMemory, read_memory
from edgeclip.devices.nvidia import NvidiaCards, count_graphics_cards, read_nvidia
from edgeclip.devices.profile import DeviceProfile, load_profiles
from edgeclip.devices.tree import Tree, open_tree
from edgeclip.devices.video_devices import VideoDevice, read_cameras


class ThermalZone(msgspec.Struct, frozen=True):
    """A temperature sensor.

    Attributes:
        celsius: None where the sensor is switched off.
        throttles_at: the lowest temperature at which Linux slows something down; None where it names none.
    """

    name: str
    celsius: float | None
    throttles_at: float | None


class Machine(msgspec.Struct, frozen=True):
    """What a machine's files say of it; None, or nothing, for what they do not say.

    Attributes:
        board: name in the device tree.
        compatible: what the device tree says it is compatible with, the board itself first.
        distribution, distribution_id: ``Ubuntu 22.04.5 LTS`` and ``ubuntu``.
        container: ``docker`` (or another that looks so), ``podman``.
        wsl: whether it is Windows' subsystem for Linux.
        intel_gpus: how many of Intel's graphics cards the PCI bus shows.
    """

    board: str | None
    compatible: tuple[str, ...]
    distribution: str | None
    distribution_id: str | None
    kernel: str | None
    container: Literal["docker", "podman"] | None
    wsl: bool
    cpu: Cpu
    memory: MachineMemory
    clocks: tuple[Clock, ...]
    temperatures: tuple[ThermalZone, ...]
    jetson: Jetson | None
    nvidia: NvidiaCards | None
    intel_gpus: int
    cameras: tuple[VideoDevice, ...]

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return self.board or self.cpu.name or self.cpu.architecture or "unknown machine"


def read_machine(tree: Tree) -> Machine:
    """Everything that the files of a machine say; nothing raises, what cannot be read is absent."""
    release = _os_release(tree)
    kernel = tree.text("proc/sys/kernel/osrelease")
    return Machine(
        board=tree.text("proc/device-tree/model"),
        compatible=tree.strings("proc/device-tree/compatible"),
        distribution=release.get("PRETTY_NAME"),
        distribution_id=release.get("ID"),
        kernel=kernel,
        container=_container(tree),
        wsl="microsoft" in (kernel or "").lower(),
        cpu=read_cpu(tree),
        memory=read_memory(tree),
        clocks=read_clocks(tree),
        temperatures=tuple(_zone(tree, path) for path in tree.glob("sys/class/thermal/thermal_zone*")),
        jetson=read_jetson(tree),
        nvidia=read_nvidia(tree),
        intel_gpus=count_graphics_cards(tree, "0x8086"),
        cameras=read_cameras(tree),
    )


def find_profile(root: Path = Path("/")) -> DeviceProfile | None:
    """The profile that a machine fits best: its board's, else its GPU's, else its CPU's; None if none does.

    Args:
        root: ``/`` for this machine; a folder or a recorded tar with another's files.

    Raises:
        InputError: ``root`` is neither.
    """
    return match_profile(open_tree(root))


def match_profile(
    tree: Tree, gpu_names: tuple[str, ...] = (), gpu_memory_gib: float | None = None
) -> DeviceProfile | None:
    """As :func:`find_profile`.

    Args:
        gpu_names, gpu_memory_gib: of this machine's GPUs and of the first one, where NVML or CUDA was asked; the names
            that the driver's files tell are known without.
    """
    compatible = "\n".join(tree.strings("proc/device-tree/compatible"))
    board = tree.text("proc/device-tree/model") or ""
    cards = read_nvidia(tree)
    names = {*gpu_names, *(cards.names if cards else ())}
    flags, memory_gib = cpu_flags(tree), read_memory(tree).total_gib
    best: tuple[tuple[int, float, float], DeviceProfile] | None = None
    for profile in load_profiles():
        match = profile.match
        # Rank of the kind of evidence, then how much of it, then how near the memory: some devices share all else.
        if any(part in compatible for part in match.device_tree):
            fit = (4, float(max(len(part) for part in match.device_tree if part in compatible)))
        elif names & set(match.gpu_names):
            fit = (3, 0.0)
        elif any(part in board for part in match.cpu_models):
            fit = (2, 0.0)
        elif match.cpu_flags and flags.issuperset(match.cpu_flags):
            fit = (1, float(len(match.cpu_flags)))
        else:
            continue
        size, has = profile.memory.gib, memory_gib if profile.memory.shared else gpu_memory_gib
        near = -abs(size.value - has) if size and has else 0.0
        if best is None or (*fit, near) > best[0]:
            best = (*fit, near), profile
    return best[1] if best else None


def _os_release(tree: Tree) -> dict[str, str]:
    """/etc/os-release, ``KEY=value`` or ``KEY="value"`` a line."""
    lines = (line.partition("=") for line in (tree.text("etc/os-release") or "").splitlines())
    return {key: value.strip().strip("\"'") for key, separator, value in lines if separator}


def _container(tree: Tree) -> Literal["docker", "podman"] | None:
    if tree.exists("run/.containerenv"):
        return "podman"
    return "docker" if tree.exists(".dockerenv") else None


def _zone(tree: Tree, path: str) -> ThermalZone:
    celsius = tree.number(f"{path}/temp")
    trips = [
        degrees
        for kind in tree.glob(f"{path}/trip_point_*_type")
        if tree.text(kind) in {"passive", "hot"}
        and (degrees := tree.number(f"{kind.removesuffix('_type')}_temp")) is not None
        and degrees > 0
    ]
    return ThermalZone(
        name=tree.text(f"{path}/type") or path.rpartition("/")[2],
        celsius=None if celsius is None else celsius / 1000,
        throttles_at=min(trips) / 1000 if trips else None,
    )
