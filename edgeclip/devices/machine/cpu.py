"""A machine's files in, its processor out: name, cores, the instructions that INT8 needs, and a container's quota."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import msgspec

from edgeclip.devices.machine.tree import Tree, field

# (implementer, part) of /proc/cpuinfo -> core. Source: Arm's and NVIDIA's main ID registers, as util-linux's lscpu has
# them.
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}
# What matters to inference, as Linux names it.
_TOLD = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimdhp", "asimddp", "i8mm", "bf16")


class Cpu(msgspec.Struct, frozen=True):
    """A processor; None for what its files do not say.

    Attributes:
        architecture: ``x86_64`` or ``aarch64``.
        cores: logical ones that are switched on.
        features: those of its instruction sets that matter to inference.
        quota_cores: how many cores' time the control group grants (a container's ``--cpus``).
    """

    architecture: str | None
    name: str | None
    cores: int | None
    features: tuple[str, ...]
    quota_cores: float | None

    @property
    def adds_int8_exactly(self) -> bool:
        """See ``adds_int8_exactly``."""
        return adds_int8_exactly(self.architecture or "", frozenset(self.features))

    @property
    def multiplies_int8(self) -> bool:
        """Whether it has instructions for dot products of bytes, without which INT8 gains little."""
        return bool({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"} & set(self.features))


def read_cpu(tree: Tree) -> Cpu:
    """The processor of a machine."""
    cpuinfo = tree.text("proc/cpuinfo")
    flags = cpu_flags(tree)
    cores = sum(line.partition(":")[0].strip() == "processor" for line in (cpuinfo or "").splitlines())
    return Cpu(
        architecture=_architecture(tree, cpuinfo),
        name=field(cpuinfo, "model name") or _arm_cores(cpuinfo),
        cores=cores or None,
        features=tuple(name for name in _TOLD if name in flags),
        quota_cores=_quota(tree),
    )


def cpu_flags(tree: Tree | None = None) -> frozenset[str]:
    """Instruction sets, of this machine by default, as Linux names them (``avx512_vnni``, ``asimddp``, …)."""
    cpuinfo = (tree or Tree()).text("proc/cpuinfo")
    return frozenset((field(cpuinfo, "flags") or field(cpuinfo, "Features") or "").split())


def adds_int8_exactly(machine: str, flags: frozenset[str]) -> bool:
    """Whether products of unsigned and signed bytes are added in 32 bits here (x86: only with VNNI; Arm: always).

    Sources: ONNX Runtime's documentation of quantization, on ``reduce_range`` and U8S8; OpenVINO's, on the saturation
    issue.
    """
    return machine not in {"x86_64", "AMD64"} or bool(flags & {"avx512_vnni", "avx_vnni"})


def _architecture(tree: Tree, cpuinfo: str | None) -> str | None:
    if tree.live:
        return platform.machine()
    if field(cpuinfo, "flags") is not None:
        return "x86_64"
    return "aarch64" if field(cpuinfo, "CPU implementer") is not None else None


def _arm_cores(cpuinfo: str | None) -> str | None:
    """``6 × Cortex-A78AE``, of the lines that Arm's cores have in place of a name."""
    counts: dict[str, int] = {}
    implementer = -1
    for line in (cpuinfo or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() not in {"CPU implementer", "CPU part"}:
            continue
        try:
            code = int(value, 16)
        except ValueError:
            continue
        if name.strip() == "CPU implementer":
            implementer = code
        else:
            core = _ARM_PARTS.get((implementer, code), f"unknown core {implementer:#x}/{code:#x}")
            counts[core] = counts.get(core, 0) + 1
    return " + ".join(f"{count} × {core}" for core, count in counts.items()) or None


def usable_cores(tree: Tree | None = None) -> int:
    """How many CPU threads this process should use: the cores that it may run on, or what its control group grants.

    Part of a core's time counts as none, as ``edgeclip doctor`` tells it, but one thread is the least.
    """
    quota = _quota(tree or Tree())
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else max(1, min(cores, int(quota)))


def _quota(tree: Tree) -> float | None:
    """The least that any control group from the process's own up to the root grants, cores; None for no bound.

    Source: cgroups(7); a container sees its own group as the root, a service of systemd does not.
    """
    groups = dict(_groups(tree.text("proc/self/cgroup")))
    found = [
        *(_granted(tree.text(f"{folder}/cpu.max")) for folder in _upwards("sys/fs/cgroup", groups.get(""))),
        *(
            _granted(f"{tree.text(f'{folder}/cpu.cfs_quota_us')} {tree.text(f'{folder}/cpu.cfs_period_us')}")
            for folder in _upwards("sys/fs/cgroup/cpu", groups.get("cpu"))
        ),
    ]
    return min((quota for quota in found if quota is not None), default=None)


def _groups(text: str | None) -> Iterator[tuple[str, str]]:
    """Controller → its group, of lines such as ``4:cpu,cpuacct:/docker/0123`` (version 1) and ``0::/`` (version 2)."""
    for line in (text or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        yield from ((controller, group) for controller in controllers.split(","))


def _upwards(root: str, group: str | None) -> Iterator[str]:
    """The folders of a group and of all that it lies in."""
    parts = [part for part in (group or "").split("/") if part not in {"", ".."}]
    for length in range(len(parts), -1, -1):
        yield "/".join([root, *parts[:length]])


def _granted(text: str | None) -> float | None:
    """``200000 100000`` is two cores; ``max 100000`` and ``-1 100000`` are no bound."""
    quota, _, period = (text or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
