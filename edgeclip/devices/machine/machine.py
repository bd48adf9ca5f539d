"""A machine's files in; what it is and how it is set out, and the device profile that it fits, out.

Among it are the PCI graphics cards, NVIDIA's with or without a driver and Intel's, and the cameras that Linux shows,
USB and CSI, by the index that OpenCV takes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from edgeclip.devices.catalogue.profile import DeviceProfile, GpuTold, Match, load_profiles
from edgeclip.devices.machine.clocks import Clock, read_clocks
from edgeclip.devices.machine.cpu import Cpu, cpu_flags, read_cpu
from edgeclip.devices.machine.jetson import Jetson, read_jetson
from edgeclip.devices.machine.memory import MachineMemory, read_memory
from edgeclip.devices.machine.temperatures import ThermalZone, read_temperatures
from edgeclip.devices.machine.tree import Tree, field, open_tree

_DRIVER = re.compile(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)")
# Codecs, scalers and image processors, which are video devices to V4L2 too.
_NO_CAMERA = ("bcm2835-", "pispbe", "rpivid", "rpi-hevc-dec", "rockchip-", "hantro")
# Receivers of CSI ports: a Jetson's, and a Raspberry Pi's up to 4 and from 5 on.
_CSI = ("vi-output", "unicam", "rp1-cfe")


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


class VideoDevice(msgspec.Struct, frozen=True):
    """A video device that gives frames.

    Attributes:
        device: ``/dev/video0``.
        name: as its driver calls it.
        kind: how it is connected; what is not known to be a CSI port's receiver counts as USB.
        sensor: of a CSI camera, ``imx219``; None if the name does not say.
    """

    device: str
    name: str
    kind: Literal["usb", "csi"]
    sensor: str | None = None


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
        temperatures=read_temperatures(tree),
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


def match_profile(tree: Tree, gpu_names: tuple[str, ...] = (), told: GpuTold | None = None) -> DeviceProfile | None:
    """As ``find_profile``, with the memory that the machine has, and at the power that a laptop's GPU is granted.

    Args:
        gpu_names, told: of this machine's GPUs and of the first one, where NVML or CUDA was asked; the names that the
            driver's files tell are known without.
    """
    cards, memory_gib, gpu = read_nvidia(tree), read_memory(tree).total_gib, told or GpuTold()
    seen = _Seen(
        compatible=tree.strings("proc/device-tree/compatible"),
        board=tree.text("proc/device-tree/model") or "",
        gpu_names=frozenset(map(_bare, (*gpu_names, *(cards.names if cards else ())))),
        cpu_flags=cpu_flags(tree),
    )
    fits = [(fit, profile) for profile in load_profiles() if (fit := _fit(profile.match, seen))]
    if not fits:
        return None
    best = max(fit for fit, _ in fits)
    # Some devices share all evidence; what is read of memory and power tells them apart, else the smallest is taken.
    near = [
        profile.sized(memory_gib if profile.memory.shared else gpu.memory_gib) for fit, profile in fits if fit == best
    ]
    found = min(near, key=lambda profile: (_distance(profile, memory_gib, gpu), *_size(profile)))
    return found.at_power(gpu.power_w)


class _Seen(msgspec.Struct, frozen=True):
    """What a machine shows that devices are known by; ``gpu_names`` as ``_bare`` has them."""

    compatible: tuple[str, ...]
    board: str
    gpu_names: frozenset[str]
    cpu_flags: frozenset[str]


def _fit(match: Match, seen: _Seen) -> tuple[int, int] | None:
    """Rank of the kind of evidence, and how much of it there is; None for none."""
    parts = [len(part) for part in match.device_tree if any(_names(name, part) for name in seen.compatible)]
    if parts:
        return 5, max(parts)
    if not set(match.boards).isdisjoint(seen.compatible):
        return 4, 0
    if not seen.gpu_names.isdisjoint(map(_bare, match.gpu_names)):
        return 3, 0
    if any(part in seen.board for part in match.cpu_models):
        return 2, 0
    if match.cpu_flags and seen.cpu_flags.issuperset(match.cpu_flags):
        return 1, len(match.cpu_flags)
    return None


def _names(compatible: str, part: str) -> bool:
    """Whether a part stands there whole: ``p3701-0005`` does in ``p3701-0005-b00``, not in ``p3701-00050``."""
    return re.search(rf"{re.escape(part)}(?!\d)", compatible) is not None


def _bare(gpu_name: str) -> str:
    """A card's name without its maker's, which drivers before 465 left out."""
    return gpu_name.removeprefix("NVIDIA ")


def _distance(profile: DeviceProfile, memory_gib: float | None, told: GpuTold) -> float:
    """How far a device's published memory, bandwidth and power limit are from what was read of the machine's."""
    memory = profile.memory
    if memory.shared:
        pairs = [(memory.gib, memory_gib)]
    else:
        pairs = [
            (memory.gib, told.memory_gib),
            (memory.bandwidth_gb_s, told.bandwidth_gb_s),
            (profile.power_w, told.power_w),
        ]
    return sum(abs(read / figure.value - 1) for figure, read in pairs if figure and read)


def _size(profile: DeviceProfile) -> tuple[float, float]:
    memory = profile.memory
    return memory.gib.value if memory.gib else 0.0, memory.bandwidth_gb_s.value if memory.bandwidth_gb_s else 0.0


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


def read_cameras(tree: Tree) -> tuple[VideoDevice, ...]:
    """The cameras of a machine, in the order of their numbers.

    A USB camera has a second device for its metadata; only index 0 of each gives frames.
    """
    cameras = []
    for path in tree.glob("sys/class/video4linux/video*"):
        name, index = tree.text(f"{path}/name"), tree.number(f"{path}/index")
        if name is None or index not in (None, 0) or name.startswith(_NO_CAMERA):
            continue
        sensor = re.match(r"vi-output, (\S+)", name)
        kind: Literal["usb", "csi"] = "csi" if name.startswith(_CSI) else "usb"
        cameras.append(VideoDevice(f"/dev/{path.rpartition('/')[2]}", name, kind, sensor[1] if sensor else None))
    return tuple(cameras)


def _os_release(tree: Tree) -> dict[str, str]:
    """/etc/os-release, ``KEY=value`` or ``KEY="value"`` a line."""
    lines = (line.partition("=") for line in (tree.text("etc/os-release") or "").splitlines())
    return {key: value.strip().strip("\"'") for key, separator, value in lines if separator}


def _container(tree: Tree) -> Literal["docker", "podman"] | None:
    if tree.exists("run/.containerenv"):
        return "podman"
    return "docker" if tree.exists(".dockerenv") else None
